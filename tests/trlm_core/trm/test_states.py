"""Kept hidden states are what the base says of a row alone, whatever its neighbours, shards and pads."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from trlm_core.recipes.trm_schema import Schedule, TrainedLlamaBase
from trlm_core.trm import states
from trlm_core.trm.base_llama import new_llama
from trlm_core.trm.hidden_states import embed, hidden_states
from trlm_core.trm.states import CachedStates, write_states
from trlm_core.trm.sudoku_thoughts import sudoku_tokenizer
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import ThoughtRow, collate

TOKENS = ThinkTokens.of(sudoku_tokenizer())
ROWS = [
    ThoughtRow((5, 1, 0, 6), (1, 2), (1, 2, 8)),
    ThoughtRow((5, 6), (3, 4, 4, 1, 2), (3, 8)),
    ThoughtRow((5, 2, 2, 2, 2, 2, 6), (), (3, 8)),
    ThoughtRow((5, 4, 6), (3,), (3, 8)),
]
WIDTH = 16
HALF_A_UNIT = 2**-8  # bfloat16 keeps 8 bits: relative error of a rounding


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    schedule = Schedule(
        steps=2, batch=1, learning_rate=1e-3, final_rate_share=0, warmup_steps=0, weight_decay=0, betas=(0.9, 0.9), max_gradient_norm=1
    )
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    return new_llama(
        TrainedLlamaBase(kind="trained_llama", **sizes, thought_share=0.5, training=schedule), sudoku_tokenizer(), seed=3
    ).eval()


def alone(llama: LlamaForCausalLM, ids: tuple[int, ...], layer: int = -1) -> torch.Tensor:
    ids_BL = torch.tensor([ids])
    return hidden_states(llama, embed(llama, ids_BL), torch.ones_like(ids_BL, dtype=torch.bool), layer)[0]


@pytest.mark.parametrize("layer", [-1, -2])
def test_a_row_is_kept_as_the_base_says_it_alone_rounded_to_bfloat16(llama: LlamaForCausalLM, tmp_path: Path, layer: int):
    write_states(llama, ROWS, TOKENS, layer, tmp_path, lambda done, total: None)
    kept = CachedStates(tmp_path)
    assert len(kept) == 4
    for number, row in enumerate(ROWS):
        pre, post = alone(llama, row.prompt, layer), alone(llama, (*row.prompt, *row.thought, 7), layer)[len(row.prompt) :]
        assert kept.row(number, "pre").dtype == torch.bfloat16
        torch.testing.assert_close(kept.row(number, "pre").float(), pre, rtol=HALF_A_UNIT, atol=1e-5)
        torch.testing.assert_close(kept.row(number, "post").float(), post, rtol=HALF_A_UNIT, atol=1e-5)


def test_shards_do_not_change_what_is_read(llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, size in (("one", 1 << 20), ("many", 16 * 2 * WIDTH)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(states, "SHARD_BYTES", size)
        write_states(llama, ROWS, TOKENS, -1, tmp_path / name, lambda done, total: None)
    one, many = CachedStates(tmp_path / "one"), CachedStates(tmp_path / "many")
    assert [len([*(tmp_path / name).iterdir()]) for name in ("one", "many")] == [1, 2]
    for number in range(4):
        for side in ("pre", "post"):
            torch.testing.assert_close(one.row(number, side), many.row(number, side), rtol=2 * HALF_A_UNIT, atol=1e-5)


def test_a_batch_lies_in_the_columns_of_its_rows_in_any_order(llama: LlamaForCausalLM, tmp_path: Path):
    write_states(llama, ROWS, TOKENS, -1, tmp_path, lambda done, total: None)
    kept, batch = CachedStates(tmp_path), collate([ROWS[2], ROWS[0]], TOKENS)
    read = kept.read([2, 0], batch)
    assert (read.pre_BLD.shape, read.post_BCD.shape, read.pre_BLD.dtype) == ((2, 7, WIDTH), (2, 3, WIDTH), torch.float32)
    assert torch.equal(read.pre_BLD[1, 3:], kept.row(0, "pre").float())  # left padded
    assert torch.equal(read.post_BCD[0, :1], kept.row(2, "post").float())  # right padded
    assert not read.pre_BLD[~batch.prompt_mask_BL].any()
    assert not read.post_BCD[~batch.thought_mask_BC].any()


def test_a_batch_of_other_rows_is_an_error_with_both_lengths(llama: LlamaForCausalLM, tmp_path: Path):
    write_states(llama, ROWS, TOKENS, -1, tmp_path, lambda done, total: None)
    with pytest.raises(
        ValueError,
        match=r"states \(pre\): wanted a batch of the same rows, got rows \[0, 1\] of \[4, 2\] positions and a batch of \[4, 7\]",
    ):
        CachedStates(tmp_path).read([0, 1], collate([ROWS[0], ROWS[2]], TOKENS))


def test_an_encoding_that_was_cut_off_keeps_its_finished_shards(llama: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(states, "SHARD_BYTES", 2 * WIDTH)  # a row a shard
    with pytest.raises(KeyboardInterrupt):
        write_states(llama, ROWS, TOKENS, -1, tmp_path, _stop_at(2))
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(finished) == 2
    write_states(llama, ROWS, TOKENS, -1, tmp_path, lambda done, total: None)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(CachedStates(tmp_path)) == 4


def test_a_row_that_is_not_there_is_an_error_and_not_another_row(llama: LlamaForCausalLM, tmp_path: Path):
    write_states(llama, ROWS, TOKENS, -1, tmp_path, lambda done, total: None)
    for number in (-1, 4):
        with pytest.raises(IndexError, match=f"wanted a row from 0 to 3, got {number}"):
            CachedStates(tmp_path).row(number, "pre")


def test_a_folder_without_states_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="wanted shards of hidden states, got none"):
        CachedStates(tmp_path)


def _stop_at(rows: int):
    def stop(done: int, total: int) -> None:
        if done == rows:
            raise KeyboardInterrupt

    return stop
