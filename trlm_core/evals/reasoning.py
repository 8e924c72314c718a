"""Scores of replies: right, well formed, ended, length of the thought; means with standard errors.

A reply is well formed when it is one closed thought followed by an answer that can be parsed; to be right it needs no thought.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from trlm_core.evals.suites import Question
from trlm_core.inference.generate import Generated
from trlm_core.text.scorers import extract_answer, is_right
from trlm_core.text.thoughts import parse_reply


class ScoredReply(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    trained_on: bool
    question: str
    answer: str
    reply: str
    right: bool
    well_formed: bool
    ended: bool
    reply_tokens: int
    thought_words: int | None  # None where there is no closed thought


class Estimate(BaseModel):
    """A mean over n replies and its standard error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    standard_error: float
    n: int


@dataclass(frozen=True)
class Difference:
    """Of two models' replies to the same questions: mean of a - b, its standard error, and their ratio z.

    Where all pairs differ alike the standard error is 0; z then takes 1/n for it.
    """

    mean: float
    standard_error: float
    z: float


def score(question: Question, generated: Generated) -> ScoredReply:
    parsed = parse_reply(generated.text)
    return ScoredReply(
        family=question.family,
        trained_on=question.trained_on,
        question=question.question,
        answer=question.answer,
        reply=generated.text,
        right=is_right(generated.text, question.answer, question.answer_kind),
        well_formed=generated.ended and parsed is not None and extract_answer(generated.text, question.answer_kind) is not None,
        ended=generated.ended,
        reply_tokens=generated.tokens,
        thought_words=len(parsed.thought.split()) if parsed else None,
    )


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and standard error (n - 1 in the variance); a mean of nothing is 0 with n = 0."""
    sample = [float(value) for value in values]
    n = len(sample)
    if not n:
        return Estimate(mean=0.0, standard_error=0.0, n=0)
    mean = math.fsum(sample) / n
    variance = math.fsum((value - mean) ** 2 for value in sample) / max(n - 1, 1)
    return Estimate(mean=mean, standard_error=math.sqrt(variance / n), n=n)


def paired_difference(a: Sequence[ScoredReply], b: Sequence[ScoredReply]) -> Difference:
    """Accuracy of a less that of b on the same questions. Raises ValueError where the questions differ."""
    if [reply.question for reply in a] != [reply.question for reply in b]:
        raise ValueError("wanted replies to the same questions in the same order, got different ones")
    differences = estimate(float(left.right) - float(right.right) for left, right in zip(a, b, strict=True))
    z = differences.mean / (differences.standard_error or 1 / max(differences.n, 1))
    return Difference(differences.mean, differences.standard_error, z)
