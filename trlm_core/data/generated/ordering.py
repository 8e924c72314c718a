"""Sorting by repeated choice: "Sort ascending: 31, 4, 15" by "Smallest of 31, 4, 15 is 4. ... Then 31."."""

from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

from trlm_core.data.generated.family import Derivation, Entry, Family, NotDerivableError
from trlm_core.data.generated.notation import listing, number_text, plain_word, quoted_list
from trlm_core.data.generated.slips import NoSlip

Item = TypeVar("Item", str, Decimal)


def word_number_sorting(entry: Entry) -> str:
    return f"Sort {entry['metadata']['direction']}: {listing(map(number_text, _numbers(entry)))}"


def derive_number_sorting(entry: Entry, slip: NoSlip) -> Derivation:
    ascending = entry["metadata"]["direction"] == "ascending"
    numbers = [slip.read_number(number) for number in _numbers(entry)]
    return _sort(numbers, ("Smallest", min) if ascending else ("Largest", max), number_text, slip)


def _numbers(entry: Entry) -> list[Decimal]:
    """Without trailing zeros: reasoning-gym writes whole numbers as 31.0."""
    return [Decimal(number_text(Decimal(number))) for number in entry["metadata"]["original_numbers"]]


def word_word_sorting(entry: Entry) -> str:
    order = "A to Z" if entry["metadata"]["direction"] == "ascending" else "Z to A"
    return f"Sort {order}: {listing(_words(entry))}"


def derive_word_sorting(entry: Entry, slip: NoSlip) -> Derivation:
    ascending = entry["metadata"]["direction"] == "ascending"
    words = [slip.read_word(word) for word in _words(entry)]
    return _sort(words, ("First", min) if ascending else ("Last", max), str, slip)


def _words(entry: Entry) -> list[str]:
    words = entry["metadata"]["transformed_words"]
    if len(set(words)) < len(words) or not all(map(plain_word, words)):
        raise NotDerivableError(f"not distinct words in lower case, whose order is plain: {words}")
    return words


def _sort(items: list[Item], choice: tuple[str, Callable[[list[Item]], Item]], text: Callable[[Item], str], slip: NoSlip) -> Derivation:
    """Choose among the rest until one is left. `choice` is its name and its function: ("Smallest", min)."""
    name, chosen = choice
    rest, picks, steps = list(items), [], []
    while len(rest) > 1:
        pick = slip.picked(chosen(rest), rest)
        steps.append(f"{name} of {listing(map(text, rest))} is {text(pick)}.")
        picks.append(pick)
        rest.remove(pick)
    steps.append(f"Then {text(rest[0])}.")
    return tuple(steps), listing(map(text, picks + rest))


ORDERING = (
    Family("number_sorting", "numbers", word_number_sorting, derive_number_sorting, quoted_list),
    Family("word_sorting", "words", word_word_sorting, derive_word_sorting),
)
