"""How numbers, lists and letters are written in questions and thoughts: Decimal("8.0") is "8", "sun" is "s u n"."""

from collections.abc import Iterable
from decimal import Decimal


def number_text(value: Decimal) -> str:
    """The number without exponent, trailing zeros or the sign of a negative zero."""
    if value == 0:
        return "0"
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def listing(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


def enumeration(items: Iterable[object]) -> str:
    """ "12", "12 and 18", "12, 18 and 30"."""
    *others, last = map(str, items)
    return f"{listing(others)} and {last}" if others else last


def spaced(word: str) -> str:
    """Letters apart, so that the tokenizer sees each one."""
    return " ".join(word)


def quoted_list(answer: str) -> str:
    """ "4, 15" as "['4', '15']", the list that reasoning-gym's scorers of numbers read."""
    return str(answer.split(", "))


def plain_word(word: str) -> bool:
    return word.isascii() and word.isalpha() and word.islower()
