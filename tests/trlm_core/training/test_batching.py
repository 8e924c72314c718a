"""Steps and micro-batches: the same sequences in the same order, however a step is cut."""

import itertools
import queue
import random
import threading
from typing import Any

import pytest
import torch

from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.batching import Share, StepDataset, cut_micro_batches, deal, plan_steps
from trlm_core.training.dpo import pair_length
from trlm_core.training.sft import collate_sft, sft_steps


def test_steps_are_the_same_for_the_same_seed_and_others_for_another():
    first = plan_steps(50, epochs=2, sequences_per_step=8, seed=3)
    assert first == plan_steps(50, epochs=2, sequences_per_step=8, seed=3)
    assert first != plan_steps(50, epochs=2, sequences_per_step=8, seed=4)


def test_the_order_is_this_one_for_ever():
    assert plan_steps(5, epochs=2, sequences_per_step=2, seed=0) == [[2, 4], [3, 0], [1, 4], [1, 2], [0, 3]]


def test_every_row_comes_once_in_every_epoch_and_epochs_differ_in_order():
    steps = plan_steps(24, epochs=3, sequences_per_step=8, seed=1)
    epochs = [[row for step in steps[at : at + 3] for row in step] for at in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(24))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_steps_are_whole_and_the_last_rows_that_fill_none_are_left_out():
    steps = plan_steps(10, epochs=3, sequences_per_step=4, seed=1)
    assert [len(step) for step in steps] == [4] * 7
    assert len(plan_steps(58_000, epochs=3, sequences_per_step=128, seed=42)) == 1_359


def test_too_few_rows_for_one_step_are_an_error():
    with pytest.raises(ValueError, match="wanted at least 8 sequences for one step, got 3 rows in 2 epochs"):
        plan_steps(3, epochs=2, sequences_per_step=8, seed=0)


def test_micro_batches_part_the_sequences_and_keep_the_budget_for_any_lengths():
    source = random.Random(11)
    for _ in range(500):
        lengths = [source.randint(1, 400) for _ in range(source.randint(1, 40))]
        tokens = source.randint(1, 1200)
        cuts = cut_micro_batches(lengths, tokens)
        assert sorted(position for cut in cuts for position in cut) == list(range(len(lengths)))
        assert all(len(cut) == 1 or max(lengths[position] for position in cut) * len(cut) <= tokens for cut in cuts)
        assert all(lengths[a] >= lengths[b] for cut in cuts for a, b in itertools.pairwise(cut)), "like lengths lie together"


def test_a_sequence_over_the_budget_is_a_micro_batch_of_its_own():
    assert cut_micro_batches([3, 500, 4], 8) == [[1], [2, 0]]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_a_group_s_processes_get_every_sequence_once_and_as_many_micro_batches_each(processes: int):
    source = random.Random(12)
    for _ in range(200):
        lengths = [source.randint(1, 400) for _ in range(processes * source.randint(1, 5))]
        cuts = cut_micro_batches(lengths, source.choice([1, 900]))
        dealt = [deal(cuts, Share(rank, processes)) for rank in range(processes)]
        assert sorted(position for mine in dealt for cut in mine for position in cut) == list(range(len(lengths)))
        assert len({len(mine) for mine in dealt}) == 1
        assert all(cut for mine in dealt for cut in mine)
    assert deal(cuts, Share(0, 1)) == cuts


def test_equal_lengths_keep_their_order():
    assert cut_micro_batches([5, 5, 5, 5], 10) == [[0, 1], [2, 3]]


def test_pads_are_masked_and_carry_no_label_though_the_pad_token_ends_turns():
    rows = [{"input_ids": [1, 7, 2], "labels": [IGNORED, 7, 2]}, {"input_ids": [1, 2], "labels": [IGNORED, 2]}]
    batch = collate_sft(rows, pad=2)
    assert batch["input_ids"].tolist() == [[1, 7, 2], [1, 2, 2]]
    assert batch["labels"].tolist() == [[IGNORED, 7, 2], [IGNORED, 2, IGNORED]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_shares_are_those_of_the_label_tokens_that_are_predicted():
    rows = [
        {"input_ids": [1, 7, 8, 9, 2], "labels": [IGNORED, 7, 8, 9, 2]},
        {"input_ids": [1, 7, 2], "labels": [1, 7, 2]},  # the first token is never predicted
        {"input_ids": [1, 7, 2], "labels": [IGNORED, IGNORED, 2]},
    ]
    (step,) = sft_steps(rows, [[0, 1, 2]], pad=2, tokens_per_micro_batch=6, laid=False)
    assert step.loss_units == 4 + 2 + 1
    assert [micro.rows for micro in step.micro_batches] == [[0], [1, 2]]
    assert [micro.share for micro in step.micro_batches] == [4 / 7, 3 / 7]
    assert (step.useful_tokens, step.padded_tokens) == (11, 11)


def test_useful_and_padded_tokens_of_a_step_are_counted():
    rows = [{"input_ids": [1] * length, "labels": [1] * length} for length in (2, 5, 3)]
    (step,) = sft_steps(rows, [[2, 0, 1]], pad=2, tokens_per_micro_batch=100, laid=False)
    assert (step.useful_tokens, step.padded_tokens) == (10, 15)
    assert torch.equal(step.micro_batches[0].inputs["attention_mask"].sum(dim=1), torch.tensor([5, 3, 2]))
    assert step.micro_batches[0].rows == [1, 2, 0]


class WatchedRows:
    """Rows of unlike lengths, that tell who reads which; `broken` cannot be read."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken
        self.read: queue.Queue[tuple[int, int]] = queue.Queue()  # row, thread

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read.put((index, threading.get_ident()))
        if index == self.broken:
            raise OSError(f"row {index} is on a bad block")
        ids = [1, *range(3, 4 + index), 2]
        return {"input_ids": ids, "labels": ids}

    def steps(self) -> StepDataset:
        return sft_steps(self, [[2, 0], [3, 5], [1, 4]], pad=2, tokens_per_micro_batch=6, laid=False)


def test_the_next_step_is_read_by_another_thread_before_it_is_asked_for():
    rows = WatchedRows()
    assert rows.steps()[0].rows == [2, 0]
    found = [rows.read.get(timeout=30) for _ in range(4)]
    assert [row for row, _ in found] == [2, 0, 3, 5], "and not the one after the next"
    assert [thread == threading.get_ident() for _, thread in found] == [True, True, False, False]


def test_steps_are_the_same_in_whatever_order_they_are_asked_for():
    """In a resumed training the first one is any."""
    in_order = [*WatchedRows().steps()]
    for order in itertools.permutations(range(3)):
        steps = WatchedRows().steps()
        for index in order:
            step, wanted = steps[index], in_order[index]
            assert (step.index, step.rows, step.loss_units) == (index, wanted.rows, wanted.loss_units)
            for micro, other in zip(step.micro_batches, wanted.micro_batches, strict=True):
                assert (micro.rows, micro.share) == (other.rows, other.share)
                assert all(torch.equal(micro.inputs[name], other.inputs[name]) for name in other.inputs)


def test_a_step_that_cannot_be_read_is_an_error_when_it_is_asked_for():
    steps = WatchedRows(broken=5).steps()
    assert steps[0].rows == [2, 0]
    with pytest.raises(OSError, match="row 5 is on a bad block"):
        steps[1]
    assert steps[2].rows == [1, 4]


def test_a_pair_asks_for_both_of_its_sequences():
    assert pair_length({"prompt_ids": [1, 2, 3], "chosen_ids": [4], "rejected_ids": [4, 5]}) == 2 * (3 + 2)
