"""Words letter by letter: "Spell backward: sun" by "s u n. Backward: n u s."."""

import re
from functools import cache

from reasoning_gym.data import read_data_file

from trlm_core.data.generated.family import Derivation, Entry, Family, NotDerivableError
from trlm_core.data.generated.notation import spaced
from trlm_core.data.generated.slips import NoSlip

LETTERS = "ABCDE"
INSERTIONS = {"ABCD": "A", "BCDE": "B", "CDEA": "C", "DEAB": "D", "EABC": "E"}


def word_spell_backward(entry: Entry) -> str:
    return f"Spell backward: {_word(entry)}"


def derive_spell_backward(entry: Entry, slip: NoSlip) -> Derivation:
    word = slip.read_word(_word(entry))
    backward = slip.spelled(word[::-1])
    return (f"{spaced(word)}.", f"Backward: {spaced(backward)}."), backward


def _word(entry: Entry) -> str:
    """Only ordinary words: reasoning-gym's list is a whole dictionary, with names, rarities and slurs."""
    word = entry["metadata"]["word"].lower()
    if word not in ordinary_words():
        raise NotDerivableError(f"not an ordinary word: {word}")
    return word


@cache
def ordinary_words() -> frozenset[str]:
    """The words in lower case of the story that reasoning-gym takes its words to sort and count from."""
    return frozenset(re.findall(r"\b[a-z]+\b", read_data_file("in_the_year_2889.txt")))


def word_string_insertion(entry: Entry) -> str:
    rules = ", ".join(f"{letter} after {pattern}" for pattern, letter in INSERTIONS.items())
    return f"From left to right, without overlap, insert {rules}: {entry['metadata']['string']}"


def derive_string_insertion(entry: Entry, slip: NoSlip) -> Derivation:
    """Only strings with something to insert: most random ones have nothing, and would teach to copy."""
    asked = entry["metadata"]["string"]
    string = slip.read(asked, [asked[:i] + letter + asked[i + 1 :] for i in range(len(asked)) for letter in LETTERS])
    pieces, insertions = _insert(string, slip)
    if not insertions:
        raise NotDerivableError(f"nothing to insert in {string}")
    result = "".join(pieces)
    return (f"{spaced(string)}.", *insertions, f"Result: {spaced(result)}."), result


def _insert(string: str, slip: NoSlip) -> tuple[list[str], list[str]]:
    """The pieces of the result, and a sentence for each insertion."""
    pieces, steps, place = [], [], 0
    while place < len(string):
        pattern = string[place : place + 4]
        if pattern in INSERTIONS:
            letter = slip.picked(INSERTIONS[pattern], LETTERS)
            steps.append(f"{spaced(pattern)} adds {letter}.")
            pieces.append(pattern + letter)
        else:
            pieces.append(string[place])
        place += 4 if pattern in INSERTIONS else 1
    return pieces, steps


SPELLING = (
    Family("spell_backward", "word", word_spell_backward, derive_spell_backward),
    Family("string_insertion", "word", word_string_insertion, derive_string_insertion),
)
