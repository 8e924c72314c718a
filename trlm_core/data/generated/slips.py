"""Places in a derivation where one fault can be put: slip.computed(4 + 3) is 7, or once in a while 8.

A derivation passes each value through a slip. `NoSlip` returns it unchanged and notes how many other values could
stand there; `Slip` puts the chosen one at one place, and whatever follows is derived from it.
"""

from collections import defaultdict
from collections.abc import Sequence
from decimal import Decimal
from typing import TypeVar

FAULTS: dict[str, str] = {
    "wrong_result": "an operation is given a result that is off by three or more",
    "near_miss": "an operation is given a result that is off by one or two",
    "echo_first": "an operation is given its own first operand as its result",
    "echo_second": "an operation is given its own second operand as its result",
    "misread": "a number, word, letter or name is copied wrongly from the question",
    "wrong_pick": "the wrong item is chosen among those that remain",
    "wrong_verdict": "a comparison or a claim is judged the wrong way round",
    "miscount": "occurrences are counted wrongly",
    "misspelled": "letters come out in the wrong order",
}
NEAR = (1, -1, 2, -2)
FAR = (10, -10, 3, -3, 4, -4, 5, -5)
MISREADINGS = (*NEAR, *FAR)  # one digit is taken for any other
VOWELS = "aeiou"
CONSONANTS = "bcdfghjklmnpqrstvwxyz"

Number = TypeVar("Number", int, Decimal)
Value = TypeVar("Value")


class NoSlip:
    """Passes every value through; `options[kind]` lists, place by place, how many faults of that kind fit there."""

    def __init__(self) -> None:
        self.options: defaultdict[str, list[int]] = defaultdict(list)

    def computed(self, value: Number, *operands: Number) -> Number:
        """The result of an operation on these operands."""
        off = self._at("wrong_result", value, nearby(value, FAR))
        off = self._at("near_miss", off, nearby(value, NEAR))
        off = self._at("echo_first", off, [operand for operand in operands[:1] if operand != value])
        return self._at("echo_second", off, [operand for operand in operands[1:2] if operand not in (value, operands[0])])

    def read(self, value: Value, among: Sequence[Value]) -> Value:
        """Something copied from the question; `among` holds what it could be mistaken for."""
        return self._at("misread", value, [other for other in among if other != value])

    def read_number(self, value: Number) -> Number:
        return self.read(value, [other for other in nearby(value, MISREADINGS) if same_sign(other, value)])

    def read_word(self, word: str) -> str:
        return self.read(word, misreadings(word))

    def picked(self, item: Value, remaining: Sequence[Value]) -> Value:
        """The item chosen among those that remain."""
        return self._at("wrong_pick", item, [other for other in remaining if other != item])

    def judged(self, verdict: bool) -> bool:
        return self._at("wrong_verdict", verdict, [not verdict])

    def counted(self, count: int) -> int:
        return self._at("miscount", count, [count + d for d in (1, -1, 2, -2) if count + d >= 0])

    def spelled(self, word: str) -> str:
        """Letters written one after the other."""
        return self._at("misspelled", word, transpositions(word))

    def _at(self, kind: str, value: Value, faults: Sequence[Value]) -> Value:
        self.options[kind].append(len(faults))
        return value


class Slip(NoSlip):
    """Puts the fault number `option` at place number `place` of this kind, and nothing anywhere else."""

    def __init__(self, kind: str, place: int, option: int) -> None:
        super().__init__()
        self.kind, self.place, self.option = kind, place, option

    def _at(self, kind: str, value: Value, faults: Sequence[Value]) -> Value:
        super()._at(kind, value, faults)
        here = kind == self.kind and len(self.options[kind]) - 1 == self.place
        return faults[self.option] if here else value


def nearby(value: Number, distances: Sequence[int]) -> list[Number]:
    """Numbers at these distances, counted in units of the last written decimal."""
    if isinstance(value, Decimal):
        unit = Decimal(1).scaleb(min(0, int(value.as_tuple().exponent)))
        return [value + distance * unit for distance in distances]
    return [value + distance for distance in distances]


def same_sign(one: Number, other: Number) -> bool:
    """A misread number stays positive or negative; a misread zero turns positive."""
    return one < 0 if other < 0 else one > 0


def misreadings(word: str) -> list[str]:
    """The word with one letter mistaken: a vowel for any other, a consonant for its neighbours in the alphabet."""
    return [word[:i] + other + word[i + 1 :] for i, letter in enumerate(word) for other in look_alikes(letter)]


def look_alikes(letter: str) -> list[str]:
    if letter in VOWELS:
        return [other for other in VOWELS if other != letter]
    here = CONSONANTS.find(letter)
    return [CONSONANTS[(here + step) % len(CONSONANTS)] for step in (-1, 1)] if here >= 0 else []


def transpositions(word: str) -> list[str]:
    """The word with two neighbouring letters swapped."""
    swapped = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)]
    return [other for other in swapped if other != word]
