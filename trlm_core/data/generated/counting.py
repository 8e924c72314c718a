"""Counting legs and letters: "How many legs do 3 crabs and 2 ducks have?" by "3 crabs: 3 * 10 = 30. ..."."""

from reasoning_gym.arithmetic.leg_counting import ANIMALS

from trlm_core.data.generated.arithmetic import added
from trlm_core.data.generated.family import Derivation, Entry, Family, NotDerivableError
from trlm_core.data.generated.notation import enumeration, plain_word
from trlm_core.data.generated.slips import NoSlip, misreadings

PLURALS = {
    "butterfly": "butterflies",
    "cockroach": "cockroaches",
    "deer": "deer",
    "firefly": "fireflies",
    "jellyfish": "jellyfish",
    "leech": "leeches",
    "praying mantis": "praying mantises",
    "sheep": "sheep",
    "shrimp": "shrimp",
    "starfish": "starfish",
    "woodlouse": "woodlice",
}


def herd(count: int, animal: str) -> str:
    """3 crabs, 1 crab, 2 sheep."""
    return f"{count} {animal if count == 1 else PLURALS.get(animal, animal + 's')}"


def word_leg_counting(entry: Entry) -> str:
    animals = entry["metadata"]["animals"]
    verb = "does" if list(animals.values()) == [1] else "do"
    return f"How many legs {verb} {enumeration(herd(count, animal) for animal, count in animals.items())} have?"


def derive_leg_counting(entry: Entry, slip: NoSlip) -> Derivation:
    steps: list[str] = []
    total = 0
    for place, (animal, asked) in enumerate(entry["metadata"]["animals"].items()):
        count = slip.read_number(asked)
        legs = slip.computed(count * ANIMALS[animal], count, ANIMALS[animal])
        steps.append(f"{herd(count, animal)}: {count} * {ANIMALS[animal]} = {legs}.")
        total = added(total, legs, slip, steps) if place else legs
    return tuple(steps), str(total)


def word_letter_counting(entry: Entry) -> str:
    letter, words = _letter_words(entry)
    return f"How many times is the letter {letter} in: {' '.join(words)}?"


def derive_letter_counting(entry: Entry, slip: NoSlip) -> Derivation:
    letter, words = _letter_words(entry)
    steps: list[str] = []
    total = 0
    for asked in words:
        word = slip.read(asked, misreadings(asked) + _with_letter(asked, letter))
        count = slip.counted(word.count(letter))
        total = slip.computed(total + count, total, count)
        steps.append(f"{word} {count}, total {total}.")
    return tuple(steps), str(total)


def _letter_words(entry: Entry) -> tuple[str, list[str]]:
    """Letter and words in lower case, since reasoning-gym's counts ignore case."""
    letter, words = entry["metadata"]["target_letter"], [word.lower() for word in entry["metadata"]["span"]]
    if not all(map(plain_word, [letter, *words])):
        raise NotDerivableError(f"not plain words: {letter} in {words}")
    return letter, words


def _with_letter(word: str, letter: str) -> list[str]:
    """The word with one of its letters mistaken for the letter that is counted."""
    return [word[:i] + letter + word[i + 1 :] for i in range(len(word))]


COUNTING = (
    Family("leg_counting", "number", word_leg_counting, derive_leg_counting),
    Family("letter_counting", "number", word_letter_counting, derive_letter_counting),
)
