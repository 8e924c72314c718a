"""Filters: the reason for which a row is kept out, at the border of each."""

from collections.abc import Sequence
from typing import Any

import pytest

from trlm_core.data.contamination import BenchmarkGrams
from trlm_core.data.filters import Judged, row_filter
from trlm_core.recipes.schema import Filters

ROLES = {"s": "system", "u": "user", "a": "assistant"}
THOUGHT = "<think>\n4 + 3 = 7.\n</think>\n7"
OFF: dict[str, Any] = {
    "turns": False,
    "thoughts": None,
    "max_tokens": None,
    "exact_duplicates": False,
    "near_duplicates": None,
    "contamination": None,
    "spares": 0.0,
}
QUESTION = "Natalia sold clips to forty eight of her friends in April"


def turns(roles: str, *contents: str) -> list[dict[str, str]]:
    told = contents or ("text",) * len(roles)
    return [{"role": ROLES[role], "content": content} for role, content in zip(roles, told, strict=True)]


def row(roles: str, *contents: str) -> dict[str, Any]:
    return {"messages": turns(roles, *contents), "source": "everyday"}


def pair(chosen: list[dict[str, str]], rejected: list[dict[str, str]]) -> dict[str, Any]:
    return {"chosen": chosen, "rejected": rejected, "source": "everyday"}


def letters(texts: Sequence[str]) -> list[int]:
    """A tokenizer whose tokens are letters."""
    return [len(text) for text in texts]


def filters(**on: Any) -> Filters:
    return Filters(**{**OFF, **on})


def reason(example: dict[str, Any], **on: Any) -> str | None:
    return row_filter(filters(**on), letters if "max_tokens" in on else None, None)([example])[0].reason


@pytest.mark.parametrize("roles", ["ua", "sua", "uaua", "suaua"])
def test_user_and_assistant_in_turn_after_at_most_one_system_turn_are_kept(roles: str):
    assert reason(row(roles), turns=True) is None


@pytest.mark.parametrize("roles", ["u", "a", "s", "uu", "uua", "uaa", "au", "uau", "ssua", "usa", "uasua", "sau", "su", "sa"])
def test_any_other_order_of_turns_is_kept_out(roles: str):
    assert reason(row(roles), turns=True) == "turns_do_not_alternate"


@pytest.mark.parametrize(("roles", "contents"), [("ua", ("text", "")), ("ua", (" \n\t", "text")), ("sua", ("", "text", "text"))])
def test_a_turn_of_nothing_but_white_space_is_empty(roles: str, contents: tuple[str, ...]):
    assert reason(row(roles, *contents), turns=True) == "empty_turn"


def test_an_empty_turn_is_told_before_a_wrong_order():
    assert reason(row("uu", "text", ""), turns=True) == "empty_turn"


@pytest.mark.parametrize("reply", [THOUGHT, "<think>a</think>b", " <think>a</think>b"])
def test_one_closed_thought_and_an_answer_pass_where_one_is_due(reply: str):
    assert reason(row("ua", "4 + 3?", reply), thoughts="one") is None


@pytest.mark.parametrize(
    "reply",
    [
        "7",
        "<think>a<think>b</think>c</think>d",
        "<think>a<think>b</think>c",
        "a</think>b",
        "<think>a",
        "<think></think>b",
        "<think>a</think>",
        "<think>a</think>b<think>c</think>d",
        "b<think>a</think>c",
    ],
)
def test_any_other_thought_is_malformed_where_one_is_due(reply: str):
    assert reason(row("ua", "4 + 3?", reply), thoughts="one") == "malformed_thought"


@pytest.mark.parametrize(("first", "last"), [("7", THOUGHT), (THOUGHT, "7")])
def test_a_thought_is_due_in_every_reply(first: str, last: str):
    assert reason(row("uaua", "4 + 3?", first, "4 + 3?", last), thoughts="one") == "malformed_thought"
    assert reason(row("uaua", "4 + 3?", THOUGHT, "4 + 3?", THOUGHT), thoughts="one") is None


@pytest.mark.parametrize("reply", [THOUGHT, "<think>a", "a</think>b"])
def test_either_half_of_a_thought_is_kept_out_where_none_is_due(reply: str):
    assert reason(row("uaua", "4 + 3?", "7", "4 + 3?", reply), thoughts="none") == "thought_where_none_is_due"


def test_a_question_about_thoughts_is_no_thought():
    assert reason(row("ua", "What does <think> mean?", "A thought begins."), thoughts="none") is None
    assert reason(row("ua", "What does <think> mean?", THOUGHT), thoughts="one") is None


def test_any_reply_passes_where_the_recipe_says_nothing_of_thoughts():
    assert [reason(row("ua", "4 + 3?", reply)) for reply in (THOUGHT, "<think>a", "7")] == [None, None, None]


@pytest.mark.parametrize(("limit", "told"), [(9, "too_long"), (10, None), (11, None)])
def test_a_row_of_exactly_the_limit_is_kept(limit: int, told: str | None):
    assert reason(row("sua", "ab", "cdef", "ghij"), max_tokens=limit) == told


@pytest.mark.parametrize(("limit", "told"), [(4, "too_long"), (5, None)])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_pair_is_as_long_as_its_longer_side(limit: int, told: str | None, flipped: bool):
    sides = [turns("ua", "ab", "c"), turns("ua", "ab", "cde")]
    example = pair(*(sides[::-1] if flipped else sides))
    assert row_filter(filters(max_tokens=limit), letters, None)([example]) == [Judged(told, 5)]


@pytest.mark.parametrize(
    ("rejected", "on", "told"),
    [
        (turns("ua", "4 + 3?", " "), {"turns": True}, "empty_turn"),
        (turns("uu", "4 + 3?", "7"), {"turns": True}, "turns_do_not_alternate"),
        (turns("ua", "4 + 3?", "8"), {"thoughts": "one"}, "malformed_thought"),
        (turns("ua", "4 + 3?", "a" * 60), {"max_tokens": 50}, "too_long"),
    ],
)
def test_a_pair_is_kept_out_where_only_its_rejected_side_is_bad(rejected: list[dict[str, str]], on: dict[str, Any], told: str):
    good = turns("ua", "4 + 3?", THOUGHT)
    assert reason(pair(good, good), **on) is None
    assert reason(pair(good, rejected), **on) == told


def test_tokens_are_told_of_every_row_where_they_were_counted():
    judge = row_filter(filters(turns=True, max_tokens=6), letters, None)
    rows = [row("ua", "abc", "def"), row("ua", "abc", ""), row("ua", "abcd", "def")]
    assert judge(rows) == [Judged(None, 6), Judged("empty_turn", 3), Judged("too_long", 7)]


def test_no_tokens_are_told_where_none_were_counted():
    assert row_filter(filters(turns=True), None, None)([row("ua")]) == [Judged(None, None)]


def test_a_batch_of_no_rows_has_no_verdicts():
    assert row_filter(filters(max_tokens=6), letters, None)([]) == []


def test_a_row_that_contains_a_question_is_contaminated_on_either_side():
    judge = row_filter(filters(), None, BenchmarkGrams.of({"gsm8k": [QUESTION]}, 8, 0.5))
    clean, dirty = turns("ua", "What did Natalia sell?", "Clips."), turns("ua", f"Say: {QUESTION}!", "No.")
    told = judge([pair(clean, clean), pair(dirty, clean), pair(clean, dirty), {"messages": dirty}])
    assert told == [Judged(None, None), *[Judged("contaminated", None, "gsm8k 0")] * 3]


def test_the_first_filter_that_a_row_fails_gives_the_reason():
    grams = BenchmarkGrams.of({"gsm8k": [QUESTION]}, 8, 0.5)
    strict = filters(turns=True, thoughts="one", max_tokens=100)
    judge = row_filter(strict, letters, grams)
    worse = [
        row("ua", QUESTION, "<think>a</think>b"),
        row("ua", QUESTION, f"<think>{'a' * 100}</think>b"),
        row("ua", QUESTION, "a" * 100),
        row("uu", QUESTION, "a" * 100),
        row("uuu", QUESTION, "a" * 100, ""),
    ]
    told = ["contaminated", "too_long", "malformed_thought", "turns_do_not_alternate", "empty_turn"]
    assert [judged.reason for judged in judge(worse)] == told


def test_filters_that_are_off_keep_every_row():
    assert reason(row("uu", "", "<think>")) is None


def test_an_empty_turn_of_one_side_is_told_before_a_wrong_order_of_the_other():
    assert reason(pair(turns("u"), turns("ua", " ", "text")), turns=True) == "empty_turn"
