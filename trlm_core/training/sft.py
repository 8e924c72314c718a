"""Supervised fine-tuning through TRL's SFTTrainer, an optimizer step at a time."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from trl.trainer.sft_trainer import SFTTrainer

from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.batching import ALONE, MicroBatch, Rows, Share, StepBatch, StepDataset, cut_micro_batches
from trlm_core.training.neftune import RowNoise, places_of
from trlm_core.training.packing import collate_laid, cut_laid
from trlm_core.training.step_trainer import StepTrainer


class StepSFTTrainer(StepTrainer, SFTTrainer):
    """SFTTrainer whose losses are normalised by the label tokens of the whole step (nll; dft: arXiv 2508.05629)."""

    def __init__(self, *args: Any, step_dataset: StepDataset, noise_alpha: float | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.use_label_head()
        self.step_dataset = step_dataset
        self._noise = None
        if noise_alpha is not None:
            assert isinstance(self.model, PreTrainedModel)
            self._noise = RowNoise(self.model.get_input_embeddings(), noise_alpha, self.args.seed)

    def micro_batch_loss(self, model: torch.nn.Module, micro: MicroBatch, step: StepBatch) -> torch.Tensor:
        noise = self._noise.on(places_of(micro.inputs), step.index, micro.rows) if self._noise else contextlib.nullcontext()
        with noise:
            return self.compute_loss(model, dict(micro.inputs), num_items_in_batch=torch.tensor(step.loss_units))

    def metric_weights(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
        labels = float((inputs["labels"][:, 1:] != IGNORED).sum())
        return {"entropy": labels, "mean_token_accuracy": labels}


def sft_steps(
    rows: Rows, steps: Sequence[Sequence[int]], *, pad: int, tokens_per_micro_batch: int, laid: bool, share: Share = ALONE
) -> StepDataset:
    """`laid`: sequences end to end, without a pad."""
    return StepDataset(
        rows,
        steps,
        tokens_per_micro_batch=tokens_per_micro_batch,
        length=lambda row: len(row["input_ids"]),
        loss_units=lambda row: sum(label != IGNORED for label in row["labels"][1:]),
        cut=cut_laid if laid else cut_micro_batches,
        collate=collate_laid if laid else lambda batch: collate_sft(batch, pad),
        share=share,
    )


def collate_sft(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """input_ids, labels, attention_mask, all (B, L). Pads are masked by place: the pad token is also the end of a turn."""
    ids = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
    labels = [torch.tensor(row["labels"], dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
    }
