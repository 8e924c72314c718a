"""Filters: why a row is kept out of a blend. `empty_turn`, `turns_do_not_alternate`, `malformed_thought`, `too_long`, `contaminated`, ...

A row has one reason: the first of the filters, in their order, that it fails. Both sides of a pair are looked at.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trlm_core.data.contamination import BenchmarkGrams
from trlm_core.data.rows import CONVERSATIONS, Row
from trlm_core.recipes.schema import Filters
from trlm_core.text.thoughts import CLOSE, OPEN, parse_reply
from trlm_core.text.token_counts import TokenCounter

Turns = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Judged:
    reason: str | None  # why the row is kept out; None: it is kept
    tokens: int | None  # of its turns, where a filter has counted them; of a pair, the longer side's
    question: str | None = None  # of a benchmark, that a contaminated row contains: "gsm8k 12"


def row_filter(
    filters: Filters, count_tokens: TokenCounter | None, grams: BenchmarkGrams | None
) -> Callable[[Sequence[Row]], list[Judged]]:
    """Judges rows, a batch at a time. `count_tokens` and `grams` are needed where the filters name max_tokens and contamination."""

    def judge(rows: Sequence[Row]) -> list[Judged]:
        tokens = token_counts(rows, count_tokens) if count_tokens is not None else [None] * len(rows)
        return [_judged(row, filters, count, grams) for row, count in zip(rows, tokens, strict=True)]

    return judge


def sides(row: Row) -> list[Turns]:
    """The conversation of a row, or both of a pair."""
    return [row[name] for name in CONVERSATIONS if name in row]


def _judged(row: Row, filters: Filters, tokens: int | None, grams: BenchmarkGrams | None) -> Judged:
    reason = _reason(row, filters, tokens)
    if reason is None and grams is not None:
        match = next((found for side in sides(row) if (found := grams.match(text_of(side)))), None)
        if match is not None:
            return Judged("contaminated", tokens, f"{match.benchmark} {match.question}")
    return Judged(reason, tokens)


def _reason(row: Row, filters: Filters, tokens: int | None) -> str | None:
    if filters.turns and (reason := _turns_reason(row)):
        return reason
    if filters.thoughts is not None and (reason := _thoughts_reason(row, filters.thoughts)):
        return reason
    if filters.max_tokens is not None and tokens is not None and tokens > filters.max_tokens:
        return "too_long"
    return None


def _turns_reason(row: Row) -> str | None:
    if any(not turn["content"].strip() for side in sides(row) for turn in side):
        return "empty_turn"
    for side in sides(row):
        roles = [turn["role"] for turn in side]
        spoken = roles[1:] if roles[:1] == ["system"] else roles
        if len(spoken) % 2 or not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
            return "turns_do_not_alternate"
    return None


def _thoughts_reason(row: Row, due: str) -> str | None:
    replies = [turn["content"] for side in sides(row) for turn in side if turn["role"] == "assistant"]
    if due == "none":
        return "thought_where_none_is_due" if any(OPEN in reply or CLOSE in reply for reply in replies) else None
    return None if replies and all(parse_reply(reply) is not None for reply in replies) else "malformed_thought"


def token_counts(rows: Sequence[Row], count_tokens: TokenCounter) -> list[int]:
    """Of each row's turns; of a pair, its longer side's."""
    every = [side for row in rows for side in sides(row)]
    counts = iter(count_tokens([turn["content"] for side in every for turn in side]))
    lengths = iter([sum(next(counts) for _ in side) for side in every])
    return [max(next(lengths) for _ in sides(row)) for row in rows]


def text_of(side: Turns) -> str:
    return "\n".join(turn["content"] for turn in side)
