"""The split: a question's side is its own for ever."""

import pytest

from trlm_core.data.split import is_held_out, seed_of


@pytest.mark.parametrize(("question", "held_out"), [("What is 4 + 3?", False), ("What is 1 + 2?", True), ("What is 7 + 0?", True)])
def test_a_question_is_on_this_side_for_ever(question: str, held_out: bool):
    assert is_held_out(question) is held_out


def test_one_question_in_eight_is_held_out():
    share = sum(is_held_out(f"question {number}") for number in range(8_000)) / 8_000
    assert share == pytest.approx(1 / 8, abs=0.01)


def test_every_name_has_a_seed_of_its_own_under_every_recipe_seed():
    assert (seed_of(1, "train"), seed_of(1, "held_out"), seed_of(2, "train")) == (1993118420, 1321471236, 1240398131)
    seeds = {seed_of(seed, name) for seed in range(30) for name in ("train", "held_out", "chain_sum-trace/train")}
    assert len(seeds) == 90
    assert all(0 <= seed < 2**31 for seed in seeds)
