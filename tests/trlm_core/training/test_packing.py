"""Padding-free micro-batches: the loss and the gradient of the padded ones, without a pad."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from trlm_core.recipes.schema import SFTTraining
from trlm_core.text.tokenizer import IGNORED
from trlm_core.training import packing
from trlm_core.training.batching import plan_steps
from trlm_core.training.job import TrainingJob
from trlm_core.training.label_head import score_labels_only
from trlm_core.training.packing import collate_laid, cut_laid, laid_lengths, variable_length_attention
from trlm_core.training.sft import collate_sft, sft_steps
from trlm_core.training.worker import make_trainer

THREE = [
    {"input_ids": [1, 7, 8, 9, 2], "labels": [IGNORED, IGNORED, 8, 9, 2]},
    {"input_ids": [4], "labels": [4]},
    {"input_ids": [1, 5, 2], "labels": [1, 5, 2]},
]


def test_sequences_lie_end_to_end_and_positions_begin_anew_in_each():
    batch = collate_laid(THREE)
    assert batch["input_ids"].tolist() == [[1, 7, 8, 9, 2, 4, 1, 5, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 0, 1, 2]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 5, 6, 9]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == batch["max_length_k"] == 5
    assert laid_lengths(batch) == [5, 1, 3]
    assert "attention_mask" not in batch


def test_no_sequences_first_token_is_a_label_of_the_one_before():
    assert collate_laid(THREE)["labels"].tolist() == [[IGNORED, IGNORED, 8, 9, 2, IGNORED, IGNORED, 5, 2]]


def loss_and_gradients(model: PreTrainedModel, batch: dict[str, Any]) -> tuple[float, list[torch.Tensor]]:
    """Of the labels' summed losses."""
    model.zero_grad()
    loss = -model(**batch, fused_lm_head=True).log_probs.sum()
    loss.backward()
    return loss.item(), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("own_head", [True, False], ids=["head of a CPU", "TRL's fused head"])
def test_loss_and_gradient_are_those_of_padded_micro_batches(
    tiny_model: PreTrainedModel, literal_sft_rows: Callable[..., list[dict[str, Any]]], attention: str, own_head: bool
):
    tiny_model.set_attn_implementation(attention)
    add_fused_lm_head(tiny_model)
    if own_head:
        score_labels_only(tiny_model)
    rows = [*literal_sft_rows(7), *THREE]
    padded, expected = loss_and_gradients(tiny_model, collate_sft(rows, pad=2))
    laid, gradients = loss_and_gradients(tiny_model, collate_laid(rows))
    assert laid == pytest.approx(padded, rel=1e-6)
    for got, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_with_a_mask_of_ones_the_row_would_be_one_sequence(
    tiny_model: PreTrainedModel, literal_sft_rows: Callable[..., list[dict[str, Any]]]
):
    add_fused_lm_head(tiny_model)
    batch = collate_laid(literal_sft_rows(7))
    right, _ = loss_and_gradients(tiny_model, batch)
    wrong, _ = loss_and_gradients(tiny_model, {**batch, "attention_mask": torch.ones_like(batch["input_ids"])})
    assert abs(wrong - right) / right > 1e-4


def test_cuts_part_the_sequences_and_keep_the_budget_without_pads_for_any_lengths():
    source = random.Random(12)
    for _ in range(500):
        lengths = [source.randint(1, 400) for _ in range(source.randint(1, 40))]
        tokens = source.randint(1, 1200)
        cuts = cut_laid(lengths, tokens)
        assert sorted(position for cut in cuts for position in cut) == list(range(len(lengths)))
        assert all(len(cut) == 1 or sum(lengths[position] for position in cut) <= tokens for cut in cuts)


def test_a_sequence_is_put_where_there_is_room_first_and_equal_lengths_keep_their_order():
    assert cut_laid([3, 9, 4, 3, 20], 10) == [[4], [1], [2, 0, 3]]


def test_a_cpu_has_no_attention_for_sequences_end_to_end():
    assert variable_length_attention("cpu") is None


@pytest.mark.parametrize(
    ("hip", "capability", "flash", "found"),
    [
        ("7.0", (9, 4), True, "flash_attention_2"),
        ("7.0", (9, 4), False, None),
        (None, (8, 0), True, "flash_attention_2"),
        (None, (7, 5), True, None),  # too old for flash-attention, installed or not
    ],
)
def test_a_gpu_has_it_where_flash_attention_is_there_and_made_for_it(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, capability: tuple[int, int], flash: bool, found: str | None
):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(packing, "is_flash_attn_2_available", lambda kernels_fallback_ok: flash and kernels_fallback_ok)
    assert variable_length_attention("cuda") == found


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_a_training_on_sequences_end_to_end_has_the_padded_ones_curve_with_noise_too(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable[..., SFTTraining], loss_type: str
):
    training = sft_training_of(loss_type=loss_type, neftune_noise_alpha=5.0)
    curves, padded_tokens = [], []
    for laid in (False, True):
        trainer = make_trainer(make_job(training, tokens=96))
        rows: Any = trainer.train_dataset
        steps = plan_steps(len(rows), epochs=2, sequences_per_step=8, seed=7)
        trainer.step_dataset = sft_steps(rows, steps, pad=2, tokens_per_micro_batch=96, laid=laid)
        trainer.train()
        history = [line for line in trainer.state.log_history if "loss" in line]
        curves.append([line["loss"] for line in history])
        padded_tokens.append([line["padded_tokens"] - line["useful_tokens"] for line in history])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    assert sum(padded_tokens[0]) > 0 == sum(padded_tokens[1])
