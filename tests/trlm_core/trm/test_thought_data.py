"""Thoughts as rows, files and batches: what is padded where, which rows a step has, and what is no thought at all."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import (
    BatchOrder,
    ThoughtBatches,
    ThoughtDataError,
    ThoughtExample,
    ThoughtRow,
    check_examples,
    collate,
    read_thoughts,
    write_thoughts,
)

TOKENS = ThinkTokens(think=50, end_think=51, pad=2, eos=2)  # pad is eos, as in many a tokenizer
SHORT = ThoughtRow(prompt=(7, 50), thought=(11, 12, 13), answer=(21, 2))
LONG = ThoughtRow(prompt=(7, 8, 9, 50), thought=(14,), answer=(22, 23, 24, 2))


def example(row: ThoughtRow = SHORT, split: str = "train", provenance: str = "chain_sum/train/3") -> ThoughtExample:
    return ThoughtExample(split, provenance, "What is 4 + 3?<think>", "4 + 3 = 7.", "7</s>", row)  # type: ignore[arg-type]


def test_prompts_are_padded_left_thoughts_and_answers_right():
    batch = collate([SHORT, LONG], TOKENS)
    assert batch.prompt_ids_BL.tolist() == [[2, 2, 7, 50], [7, 8, 9, 50]]
    assert batch.thought_ids_BC.tolist() == [[11, 12, 13, 51], [14, 51, 2, 2]]
    assert batch.answer_ids_BA.tolist() == [[21, 2, 2, 2], [22, 23, 24, 2]]


def test_a_pad_is_told_from_an_eos_of_the_same_id_by_the_mask():
    batch = collate([SHORT, LONG], TOKENS)
    assert batch.prompt_mask_BL.tolist() == [[False, False, True, True], [True] * 4]
    assert batch.thought_mask_BC.tolist() == [[True] * 4, [True, True, False, False]]
    assert batch.answer_mask_BA.tolist() == [[True, True, False, False], [True] * 4]


def test_an_empty_thought_is_closed_at_once():
    batch = collate([SHORT.without_thought()], TOKENS)
    assert (batch.thought_ids_BC.tolist(), batch.thought_mask_BC.tolist()) == ([[51]], [[True]])


def test_a_batch_on_another_device_is_the_whole_batch():
    moved = collate([SHORT, LONG], TOKENS).to("meta")
    assert {getattr(moved, field.name).device.type for field in dataclasses.fields(moved)} == {"meta"}
    assert len(moved) == 2


def test_a_row_as_text_has_its_tag_closed_and_its_length_counts_latents_where_they_are_more():
    assert SHORT.sequence(TOKENS) == (7, 50, 11, 12, 13, 51, 21, 2)
    assert [SHORT.length(num_latents=n) for n in (0, 3, 16)] == [8, 8, 21]


def test_every_row_comes_once_before_any_comes_again():
    order = BatchOrder(rows=10, batch=4, seed=1)
    drawn = [number for step in range(5) for number in order.rows_at(step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == [*range(10)]
    assert drawn[:10] != drawn[10:]


def test_the_same_seed_gives_the_same_order_for_ever():
    assert BatchOrder(rows=8, batch=4, seed=7).rows_at(0) == [0, 6, 7, 2]
    assert BatchOrder(rows=8, batch=4, seed=8).rows_at(0) != [0, 6, 7, 2]


def test_a_batch_larger_than_the_rows_goes_round():
    assert sorted(BatchOrder(rows=2, batch=6, seed=0).rows_at(3)) == [0, 0, 0, 1, 1, 1]


def test_a_run_that_goes_on_from_a_step_sees_what_an_uninterrupted_one_sees():
    rows = [ThoughtRow((number, 50), (number,), (number, 2)) for number in range(3, 20)]
    batches = ThoughtBatches.of(rows, TOKENS, batch=4, seed=5)
    whole = [batch.prompt_ids_BL.tolist() for batch in itertools.islice(batches.starting_at(0), 12)]
    resumed = ThoughtBatches.of(rows, TOKENS, batch=4, seed=5).starting_at(7)
    assert [batch.prompt_ids_BL.tolist() for batch in itertools.islice(resumed, 5)] == whole[7:]


@pytest.mark.parametrize(("rows", "batch"), [(0, 4), (4, 0)])
def test_no_rows_or_an_empty_batch_is_an_error(rows: int, batch: int):
    with pytest.raises(ThoughtDataError, match=f"got {rows} rows, batch {batch}"):
        BatchOrder(rows, batch, seed=0)


def test_what_is_read_is_what_was_written_split_by_split_in_order(tmp_path: Path):
    written = [example(SHORT, "train", "a"), example(LONG, "test", "b"), example(LONG, "train", "ü")]
    assert write_thoughts(written, tmp_path) == {"train": 2, "validation": 0, "test": 1}
    assert read_thoughts(tmp_path, "train") == [written[0], written[2]]
    assert read_thoughts(tmp_path, "test") == [written[1]]


def test_an_empty_split_is_an_error_that_names_it(tmp_path: Path):
    write_thoughts([example()], tmp_path)
    with pytest.raises(ThoughtDataError, match="wanted examples of the split validation, got none"):
        read_thoughts(tmp_path, "validation")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": (7, 8)}, r"wanted a prompt that ends in <think> \(50\), got one that ends in \(8,\)"),
        ({"prompt": ()}, r"wanted a prompt that ends in <think> \(50\), got one that ends in \(\)"),
        ({"prompt": (50, 7, 50)}, r"wanted no tag but the <think> at the prompt's end, got \[50\]"),
        ({"thought": (11, 51)}, r"wanted no tag but the <think> at the prompt's end, got \[51\]"),
        ({"answer": ()}, "wanted an answer, got an empty one"),
        ({"answer": (2,)}, "wanted an answer, got an empty one"),
        ({"answer": (21, 22)}, r"wanted an answer that ends in EOS \(2\), got one that ends in 22"),
        ({"thought": (11,) * 20}, "wanted at most the base's 16 positions, got 25; drop the row"),
    ],
)
def test_a_row_that_cannot_be_thought_about_is_named_by_its_provenance(change: dict[str, tuple[int, ...]], said: str):
    rows = [example(), example(dataclasses.replace(SHORT, **change), provenance="gcd/train/41")]
    with pytest.raises(ThoughtDataError, match=f"gcd/train/41: {said}"):
        check_examples(rows, TOKENS, context=16, num_latents=4)


def test_latents_count_as_positions_of_the_context():
    check_examples([example()], TOKENS, context=8, num_latents=3)
    with pytest.raises(ThoughtDataError, match="wanted at most the base's 8 positions, got 9"):
        check_examples([example()], TOKENS, context=8, num_latents=4)


def test_ids_are_whole_numbers_also_where_every_thought_is_empty():
    assert collate([SHORT.without_thought()], TOKENS).thought_ids_BC.dtype == torch.long
