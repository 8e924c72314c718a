"""Operations of a training step: those that torch counts, but for the keys that the causal mask hides."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, PreTrainedModel

from trlm_core.training.batching import cut_micro_batches
from trlm_core.training.flops import Shape, matmul_peak, padded_lengths, training_flops

SMOLLM2_135M = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1_536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
)


def counted(model: PreTrainedModel, length: int) -> int:
    """By torch, of one sequence that is scored everywhere; eager attention multiplies hidden keys too."""
    model.set_attn_implementation("eager")
    ids = torch.arange(3, 3 + length)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("length", [1, 7, 40])
def test_a_step_has_the_operations_that_torch_counts_less_those_of_hidden_keys(tiny_model: PreTrainedModel, length: int):
    shape = Shape.of(tiny_model.config)
    hidden_keys = length * (length - 1) // 2
    assert counted(tiny_model, length) == training_flops(shape, [length], scored=length) + 12 * 2 * 64 * hidden_keys


def test_a_head_size_of_its_own_is_taken_from_the_config():
    plain, wide = LlamaConfig(hidden_size=64, num_attention_heads=4), LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=32)
    assert (Shape.of(plain).attention_width, Shape.of(wide).attention_width) == (64, 128)


def test_smollm2s_weights_are_counted_but_for_its_norms():
    shape = Shape.of(SMOLLM2_135M)
    norms = (2 * 30 + 1) * 576
    assert shape.body_weights + shape.head_weights + norms == 134_515_008


def test_the_head_counts_for_the_scored_positions_alone():
    shape = Shape(layers=1, attention_width=1, body_weights=10, head_weights=1_000)
    assert training_flops(shape, [4, 6], scored=3) - training_flops(shape, [4, 6], scored=0) == 6 * 1_000 * 3


def test_attention_grows_with_the_square_of_each_sequence_and_not_of_their_sum():
    shape = Shape(layers=2, attention_width=8, body_weights=0, head_weights=0)
    assert training_flops(shape, [3, 3], scored=0) == 2 * 12 * 2 * 8 * (1 + 2 + 3)
    assert training_flops(shape, [6], scored=0) == 12 * 2 * 8 * (1 + 2 + 3 + 4 + 5 + 6)


def test_lengths_are_padded_to_the_longest_of_their_micro_batch():
    lengths = [5, 9, 2, 4]
    assert padded_lengths(lengths, [[0, 1], [2, 3]]) == [9, 9, 4, 4]
    assert padded_lengths(lengths, cut_micro_batches(lengths, 10)) == [9, 5, 5, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_that_of_a_processor(dtype: torch.dtype):
    assert 1e8 < matmul_peak("cpu", dtype, seconds=0.2) < 1e14
