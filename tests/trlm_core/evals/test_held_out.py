"""Held-out rows: log-probs as computed row by row, and preferences by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from trlm_core.evals import held_out
from trlm_core.evals.held_out import as_conversations, held_out_loss, longer_is_chosen, preference_results, token_log_probs
from trlm_core.text.tokenizer import IGNORED

BF16 = 0.05


def rows(count: int = 12) -> list[dict[str, Any]]:
    random = np.random.default_rng(4)
    found = []
    for length in random.integers(8, 60, count).tolist():
        ids = [1, *random.integers(3, 476, length - 2).tolist(), 2]
        found.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    return found


def pair(chosen: int, rejected: int, fault: str) -> dict[str, Any]:
    return {"prompt_ids": [1, 5], "chosen_ids": [7] * chosen, "rejected_ids": [8] * rejected, "fault": fault}


def test_log_probs_are_those_of_each_row_alone_within_bfloat16(tiny_model: PreTrainedModel):
    for row, found in zip(rows(), token_log_probs(tiny_model, rows(), pad=2), strict=True):
        with torch.no_grad():
            log_probs_LV = torch.log_softmax(tiny_model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1], dim=-1)
        naive = [float(log_probs_LV[place, label]) for place, label in enumerate(row["labels"][1:]) if label != IGNORED]
        assert found.dtype == torch.float32
        assert found.tolist() == pytest.approx(naive, abs=BF16)


def test_log_probs_do_not_depend_on_the_batches_or_on_the_order(tiny_model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch):
    together = token_log_probs(tiny_model, rows(), pad=2)
    turned = token_log_probs(tiny_model, rows()[::-1], pad=2)[::-1]
    monkeypatch.setattr(held_out, "TOKENS_PER_BATCH", 1)
    alone = token_log_probs(tiny_model, rows(), pad=2)
    for a, b, c in zip(together, alone, turned, strict=True):
        torch.testing.assert_close(a, b, atol=BF16, rtol=0)
        torch.testing.assert_close(a, c, atol=BF16, rtol=0)


def test_the_rows_done_are_told(tiny_model: PreTrainedModel):
    done: list[int] = []
    token_log_probs(tiny_model, rows(), pad=2, on_batch=done.append)
    assert sum(done) == 12


def test_a_held_out_loss_is_the_mean_over_tokens_with_and_without_the_new_tokens():
    some = [{"labels": [IGNORED, 476, 9, 2]}, {"labels": [9, 8]}]
    after = [torch.tensor([-4.0, -1.0, -1.0]), torch.tensor([-2.0])]
    start = [torch.tensor([-9.0, -2.0, -3.0]), torch.tensor([-2.0])]
    loss = held_out_loss(some, after, start, [476, 477])
    assert (loss.loss, loss.loss_at_start, loss.rows) == (2.0, 4.0, 2)
    assert loss.loss_outside_new_tokens == pytest.approx(4 / 3)
    assert loss.loss_at_start_outside_new_tokens == pytest.approx(7 / 3)


def test_a_pair_becomes_two_rows_labelled_on_the_reply_alone():
    assert as_conversations([pair(2, 1, "misread")]) == [
        {"input_ids": [1, 5, 7, 7], "labels": [IGNORED, IGNORED, 7, 7]},
        {"input_ids": [1, 5, 8], "labels": [IGNORED, IGNORED, 8]},
    ]


def test_preferences_are_the_implicit_rewards_by_kind_of_fault():
    pairs = [pair(2, 2, "misread"), pair(1, 1, "miscount"), pair(1, 1, "miscount"), pair(1, 1, "wrong_pick")]
    start = [torch.tensor(each) for each in ([-1.0, -1.0], [-3.0, -1.0], [-1.0], [-2.0], [-5.0], [-2.0], [-1.0], [-1.0])]
    moves = [1.0, -1.0, 0.5, 1.5, 2.0, 0.0, 0.0, 0.0]  # of each reply's summed log-prob
    after = [each + move / len(each) for each, move in zip(start, moves, strict=True)]
    loss, preferences = preference_results(pairs, after, start, beta=0.5, seen_faults=["miscount", "wrong_pick"], longer_is_chosen=True)
    by_fault = {each.fault: each for each in preferences}
    assert list(by_fault) == ["unseen", "seen", "miscount", "misread", "wrong_pick"]
    assert by_fault["unseen"] == by_fault["misread"].model_copy(update={"fault": "unseen"})
    assert (by_fault["misread"].accuracy.mean, by_fault["misread"].margin.mean) == (1.0, 1.0)
    assert (by_fault["miscount"].accuracy.mean, by_fault["miscount"].margin.mean, by_fault["miscount"].margin.n) == (0.5, 0.25, 2)
    assert by_fault["wrong_pick"].accuracy.mean == 0.0, "a tie is not preferred"
    assert by_fault["seen"].accuracy.mean == pytest.approx(1 / 3)
    assert by_fault["miscount"].start_log_prob_accuracy.mean == 0.5
    rewards = torch.tensor(moves).view(-1, 2) * 0.5
    assert loss.loss == pytest.approx(float((1 - rewards[:, 0].sigmoid() + rewards[:, 1].sigmoid()).mean()))
    assert (loss.loss_at_start, loss.rows) == (1.0, 4)


def test_an_unmoved_model_has_the_loss_of_its_start():
    start = [torch.tensor([-1.0]), torch.tensor([-2.0])]
    loss, _ = preference_results([pair(1, 1, "misread")], start, start, beta=0.1, seen_faults=[], longer_is_chosen=True)
    assert loss.loss == loss.loss_at_start == 1.0


@pytest.mark.parametrize(("longer", "accuracy"), [(True, (1 + 0.5 + 0) / 3), (False, (0 + 0.5 + 1) / 3)])
def test_the_length_control_sees_only_lengths_and_a_tie_counts_half(longer: bool, accuracy: float):
    pairs = [pair(3, 1, "misread"), pair(2, 2, "misread"), pair(1, 2, "misread")]
    logs = [torch.tensor([-1.0])] * 6
    _, (_, misread) = preference_results(pairs, logs, logs, beta=0.1, seen_faults=[], longer_is_chosen=longer)
    assert misread.length_accuracy.mean == pytest.approx(accuracy)


def test_the_length_control_learns_from_the_training_pairs_which_side_is_longer():
    assert longer_is_chosen([pair(3, 1, "a"), pair(1, 2, "a")])
    assert not longer_is_chosen([pair(1, 3, "a"), pair(2, 1, "a")])


def test_no_held_out_pairs_are_no_preferences_and_no_error():
    loss, preferences = preference_results([], [], [], beta=0.1, seen_faults=["misread"], longer_is_chosen=True)
    assert (loss.rows, preferences) == (0, [])
