"""Exact scorers with one lenient extractor for every model: "The final answer is 12." and "12" both answer 12.

Only what is said after the thought counts, and one answer is taken from it, the last that has the form asked for.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from trlm_core.text.thoughts import spoken

NUMBER = r"-?\d+(?:\.\d+)?(?!\d)"
_ANSWER_IS = re.compile(r"(?:answer|result|sum|product|total)(?: of [^.:]*?)? (?:is|=)\s*:?\s*(.*)", re.IGNORECASE | re.DOTALL)


def extract_answer(reply: str, kind: str) -> str | None:
    """The answer that a reply gives, as text in the form of its kind; None where it gives none."""
    return _FORMS[kind][0](_focus(spoken(reply)))


def is_right(reply: str, answer: str, kind: str) -> bool:
    """Exact: numbers by value, lists in their order, words letter by letter (case and final punctuation aside)."""
    given = extract_answer(reply, kind)
    parse = _FORMS[kind][1]
    return given is not None and parse(given) == parse(answer)


def _focus(text: str) -> str:
    """What follows the first "answer is"; markdown, quotes and LaTeX boxes taken away."""
    text = re.sub(r"\*\*|[`\"'$]|\\boxed|\\text|[{}]", "", text).strip()
    match = _ANSWER_IS.search(text)
    return match[1].strip() if match and match[1].strip() else text


def _last(pattern: str) -> Callable[[str], str | None]:
    def last(text: str) -> str | None:
        found = re.findall(pattern, text)
        return found[-1] if found else None

    return last


def _last_number(text: str) -> str | None:
    return _last(NUMBER)(re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))  # 1,000 is one number


def _last_list(pattern: str) -> Callable[[str], str | None]:
    """The last run of two or more items between commas, its last item perhaps behind "and"; else the last single item."""
    run = re.compile(rf"{pattern}(?:\s*,\s*{pattern})*(?:\s*,?\s+and\s+{pattern})?")

    def last(text: str) -> str | None:
        runs = [match[0] for match in run.finditer(re.sub(r"[\[\]()]", " ", text))]
        longer = [each for each in runs if "," in each]
        return (longer or runs or [None])[-1]

    return last


def _numbers_or_none(text: str) -> str | None:
    """Numbers; or "none", which is how an empty list is said."""
    return _last_list(NUMBER)(text) or _last(r"(?i)\bnone\b|\[\s*\]|\bempty\b")(text)


def _yes_no(text: str) -> str | None:
    return _last(r"\b(yes|no|true|false)\b")(text.lower())


def _items(text: str) -> list[str]:
    return [item for item in re.split(r"\s*,\s*(?:and\s+)?|\s+and\s+", text.strip().lower()) if item]


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(item) for item in _items(text) if re.fullmatch(NUMBER, item)]


def _fraction(text: str) -> tuple[str, str]:
    """Numerator and denominator as written, so that 6/8 is no answer to "simplify"."""
    numerator, _, denominator = re.sub(r"\s", "", text).partition("/")
    return numerator, denominator or "1"


def _factors(text: str) -> list[str]:
    return sorted(re.findall(r"\d+", text))


_FORMS: dict[str, tuple[Callable[[str], str | None], Callable[[str], Any]]] = {
    "number": (_last_number, Decimal),
    "numbers": (_numbers_or_none, _numbers),
    "word": (_last(r"[A-Za-z]+"), str.lower),
    "words": (_last_list(r"[A-Za-z]+"), _items),
    "factors": (_last(r"\d+(?:\s*[*x×]\s*\d+)*"), _factors),
    "fraction": (_last(r"-?\d+\s*/\s*\d+|-?\d+"), _fraction),
    "yes_no": (_yes_no, {"yes": True, "true": True, "no": False, "false": False}.get),
}
