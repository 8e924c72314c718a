"""Duplicates: word for word and nearly, by the order of the rows, the same in every process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from trlm_core.data.duplicates import Seen, conversation_hash
from trlm_core.recipes.schema import Filters, NearDuplicates

NEAR = NearDuplicates(threshold=0.8, permutations=128, shingle=3)
IN_ANOTHER_PROCESS = """
import json, sys
from trlm_core.data.duplicates import Seen, conversation_hash
from trlm_core.recipes.schema import Filters
filters, rows = json.load(sys.stdin)
seen = Seen(Filters.model_validate(filters))
print(json.dumps([[conversation_hash(row).hex(), seen.reason(row)] for row in rows]))
"""


def filters(*, exact: bool, near: NearDuplicates | None) -> Filters:
    return Filters(
        turns=False, thoughts=None, max_tokens=None, exact_duplicates=exact, near_duplicates=near, contamination=None, spares=0.0
    )


def row(question: str, reply: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}], **more}


def numbered(count: int, changed: Sequence[int] = ()) -> dict[str, Any]:
    """A row of `count` words that differ, those at `changed` replaced. Each replaced word away from the others changes 3 shingles."""
    words = [f"changed{place}" if place in changed else f"word{place}" for place in range(count)]
    return row(" ".join(words[: count // 2]), " ".join(words[count // 2 :]))


def jaccard(one: dict[str, Any], other: dict[str, Any], shingle: int) -> float:
    """The true one, of sets of shingles."""
    sets = []
    for each in (one, other):
        told = " ".join(turn["content"] for turn in each["messages"]).split()
        sets.append({tuple(told[place : place + shingle]) for place in range(len(told) - shingle + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def reasons(rows: Sequence[dict[str, Any]], *, exact: bool = True, near: NearDuplicates | None = NEAR) -> list[str | None]:
    seen = Seen(filters(exact=exact, near=near))
    return [seen.reason(each) for each in rows]


def test_the_second_of_two_equal_rows_is_an_exact_duplicate_whatever_its_source():
    assert reasons([row("4 + 3?", "7", source="a"), row("4 + 3?", "7", source="b", _source_row=9)]) == [None, "exact_duplicate"]


@pytest.mark.parametrize("other", [row("4 + 3?", "7."), row("4 + 3? ", "7"), row("4 + 3?7", ""), row("", "4 + 3?7"), row("7", "4 + 3?")])
def test_rows_that_differ_in_a_letter_or_its_place_are_no_exact_duplicates(other: dict[str, Any]):
    assert reasons([row("4 + 3?", "7"), other], near=None) == [None, None]


def test_rows_that_differ_in_a_role_are_no_exact_duplicates():
    spoken = {"messages": [{"role": "system", "content": "4 + 3?"}, {"role": "assistant", "content": "7"}]}
    assert reasons([row("4 + 3?", "7"), spoken], near=None) == [None, None]


def test_turns_do_not_run_into_each_other():
    one = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    other = {"messages": [{"role": "user", "content": 'a"], ["user", "b'}]}
    assert conversation_hash(one) != conversation_hash(other)


def test_pairs_that_differ_on_their_rejected_side_are_no_exact_duplicates():
    good, bad, worse = (row("4 + 3?", reply)["messages"] for reply in ("7", "8", "9"))
    pairs = [{"chosen": good, "rejected": bad}, {"chosen": good, "rejected": worse}, {"chosen": bad, "rejected": good}]
    assert reasons([*pairs, pairs[1]], near=None) == [None, None, None, "exact_duplicate"]


def test_a_row_well_above_the_threshold_is_a_near_duplicate():
    rows = [numbered(200), numbered(200, changed=[50])]
    assert jaccard(*rows, shingle=3) == pytest.approx(195 / 201)  # 0.97
    assert reasons(rows) == [None, "near_duplicate"]


def test_a_row_well_below_the_threshold_is_kept():
    rows = [numbered(200), numbered(200, changed=range(10, 200, 10))]
    assert jaccard(*rows, shingle=3) == pytest.approx(141 / 255)  # 0.55
    assert reasons(rows) == [None, None]


def test_a_row_below_the_threshold_is_kept_although_a_band_of_its_hashes_agrees():
    """At a Jaccard similarity of 0.45 one of 25 bands of 5 hashes agrees in 6 of these 59 rows."""
    low = NearDuplicates(threshold=0.5, permutations=128, shingle=3)
    shared = " ".join(f"word{place}" for place in range(100))
    rows = [row(shared, " ".join(f"own{number}of{place}" for place in range(60))) for number in range(60)]
    assert all(0.44 < jaccard(rows[0], other, shingle=3) < 0.46 for other in rows[1:])
    assert [reasons([rows[0], other], near=low)[1] for other in rows[1:]] == [None] * 59


def test_longer_shingles_tell_more_rows_apart():
    rows = [numbered(200), numbered(200, changed=range(20, 200, 20))]
    assert jaccard(*rows, shingle=1) > 0.88
    assert jaccard(*rows, shingle=8) < 0.5
    assert reasons(rows, near=NearDuplicates(threshold=0.75, permutations=128, shingle=1)) == [None, "near_duplicate"]
    assert reasons(rows, near=NearDuplicates(threshold=0.75, permutations=128, shingle=8)) == [None, None]


def test_letter_case_and_punctuation_make_no_difference_to_near_duplicates():
    assert (
        reasons([row("What is the sum of four and three?", "Seven."), row("what is the SUM of four, and three", "seven")])[1]
        == "near_duplicate"
    )


def test_a_row_shorter_than_a_shingle_is_compared_whole():
    assert reasons([row("Hi", "Hello"), row("Hi!", "Hello."), row("Hi", "Bye")]) == [None, "near_duplicate", None]


def test_a_pair_is_near_another_only_with_both_its_sides():
    one, other, third = (numbered(100, changed)["messages"] for changed in ((), (40,), range(100)))
    pairs = [{"chosen": one, "rejected": one}, {"chosen": one, "rejected": third}, {"chosen": one, "rejected": other}]
    assert reasons(pairs) == [None, None, "near_duplicate"]


def test_only_rows_that_are_kept_are_remembered():
    """The third is near the second alone, and the second was kept out."""
    settings = NearDuplicates(threshold=0.76, permutations=512, shingle=3)
    rows = [numbered(200), numbered(200, changed=range(10, 70, 10)), numbered(200, changed=range(10, 130, 10))]
    assert [round(jaccard(rows[a], rows[b], 3), 2) for a, b in ((0, 1), (1, 2), (0, 2))] == [0.83, 0.83, 0.69]
    assert reasons(rows, near=settings) == [None, "near_duplicate", None]
    assert reasons([rows[1], rows[2]], near=settings) == [None, "near_duplicate"]


def test_an_exact_duplicate_is_told_before_a_near_one():
    assert reasons([numbered(50), numbered(50)]) == [None, "exact_duplicate"]
    assert reasons([numbered(50), numbered(50)], exact=False) == [None, "near_duplicate"]


def test_filters_that_are_off_keep_every_row():
    assert reasons([numbered(50), numbered(50)], exact=False, near=None) == [None, None]


@pytest.mark.parametrize("seed", ["0", "1", "4711"])
def test_another_process_finds_the_same_duplicates_whatever_its_hash_seed(seed: str):
    rows = [numbered(200, changed) for changed in ((), (50,), range(5, 200, 25), range(0, 200, 3), (), range(4, 200, 20))]
    settings = filters(exact=True, near=NEAR)
    out = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        input=json.dumps([settings.model_dump(mode="json"), rows]),
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(out.stdout) == [[conversation_hash(each).hex(), told] for each, told in zip(rows, reasons(rows), strict=True)]


def test_a_conversation_has_this_hash_for_ever():
    assert conversation_hash(row("4 + 3?", "7")).hex() == "4b5fee5be20504211c07e260ac4402df"


def test_rows_without_words_are_no_near_duplicates():
    assert reasons([row("🎉", "👍"), row("∑ + ∫", "!!"), row("🎉", "👍")]) == [None, None, "exact_duplicate"]
