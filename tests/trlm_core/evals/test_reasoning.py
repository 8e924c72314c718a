"""Scores of replies: estimates and differences by hand, and what is well formed."""

import math

import pytest

from trlm_core.evals.reasoning import ScoredReply, estimate, paired_difference, score
from trlm_core.evals.suites import Question
from trlm_core.inference.generate import Generated

SUM = Question(family="chain_sum", question="What is 4 + 3?", answer="7", answer_kind="number", trained_on=True, shots=[])


def test_an_estimate_is_a_mean_and_its_standard_error():
    found = estimate([1, 0, 1, 1])
    assert (found.mean, found.n) == (0.75, 4)
    assert found.standard_error == pytest.approx(math.sqrt(0.25 / 4))  # variance (3 x 0.0625 + 0.5625) / 3 = 0.25


def test_an_estimate_of_one_or_of_equal_values_has_no_spread_and_one_of_nothing_says_so():
    assert estimate([0.3]).model_dump() == {"mean": 0.3, "standard_error": 0.0, "n": 1}
    assert estimate([2, 2, 2]).standard_error == 0.0
    assert estimate([]).model_dump() == {"mean": 0.0, "standard_error": 0.0, "n": 0}


def test_a_paired_difference_is_the_mean_of_the_differences_over_their_standard_error():
    difference = paired_difference(_replies(1, 1, 1, 0), _replies(0, 1, 0, 0))
    assert difference.mean == 0.5
    assert difference.standard_error == pytest.approx(math.sqrt((4 * 0.25 / 3) / 4))
    assert difference.z == pytest.approx(0.5 / math.sqrt(1 / 12))


def test_a_paired_difference_turned_around_changes_its_sign():
    there, back = paired_difference(_replies(1, 1, 0), _replies(0, 1, 0)), paired_difference(_replies(0, 1, 0), _replies(1, 1, 0))
    assert (there.mean, there.z) == (-back.mean, -back.z)


def test_equal_replies_differ_by_nothing():
    assert paired_difference(_replies(1, 0), _replies(1, 0)).z == 0.0


def test_replies_to_other_questions_cannot_be_paired():
    with pytest.raises(ValueError, match="same questions"):
        paired_difference(_replies(1, 0), _replies(1))
    with pytest.raises(ValueError, match="same questions"):
        paired_difference(_replies(1, 0), _replies(1, 0)[::-1])


@pytest.mark.parametrize(
    ("text", "ended", "right", "well_formed"),
    [
        ("<think>\n4 + 3 = 7.\n</think>\n7", True, True, True),
        ("<think>\n4 + 3 = 7.\n</think>\n7", False, True, False),
        ("<think>\n4 + 3 = 8.\n</think>\n8", True, False, True),
        ("<think>\n4 + 3 = 7.\n</think>\nseven", True, False, False),
        ("<think>\n4 + 3 = 7.", True, True, False),
        ("7", True, True, False),
        ("", True, False, False),
    ],
)
def test_well_formed_needs_one_closed_thought_an_answer_and_an_end_and_right_needs_only_the_answer(
    text: str, ended: bool, right: bool, well_formed: bool
):
    scored = score(SUM, Generated(text, tokens=9, ended=ended))
    assert (scored.right, scored.well_formed, scored.ended, scored.reply_tokens) == (right, well_formed, ended, 9)


def test_a_thought_is_measured_in_words_and_none_is_not_zero():
    assert score(SUM, Generated("<think>\n4 + 3 = 7.\n</think>\n7", tokens=9, ended=True)).thought_words == 5
    assert score(SUM, Generated("7", tokens=1, ended=True)).thought_words is None


def _replies(*right: int) -> list[ScoredReply]:
    return [
        ScoredReply(
            family="chain_sum",
            trained_on=True,
            question=f"question {number}",
            answer="7",
            reply="",
            right=bool(each),
            well_formed=False,
            ended=True,
            reply_tokens=1,
            thought_words=None,
        )
        for number, each in enumerate(right)
    ]
