"""One reasoning problem with its derivation: "What is 4 + 3?", ("4 + 3 = 7.",), "7"."""

from dataclasses import dataclass
from typing import Literal

AnswerKind = Literal["number", "numbers", "word", "words", "factors", "fraction", "yes_no"]


@dataclass(frozen=True)
class Problem:
    """A question in our wording, the sentences that derive its answer, and that answer in our short form.

    The question names the problem: the same numbers or words always give the same text.
    """

    family: str
    question: str
    steps: tuple[str, ...]
    answer: str
    answer_kind: AnswerKind


@dataclass(frozen=True)
class FaultyProblem:
    """The same question derived with one fault, carried through to a wrong answer."""

    steps: tuple[str, ...]
    answer: str
    fault: str
