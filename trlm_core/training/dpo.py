"""Preference optimization through TRL's DPOTrainer (1.16), an optimizer step at a time, from rows that are token ids already.

TRL tokenises in `_prepare_dataset` and caches reference log-probs in `_precompute_ref_logps`: both private, overridden only here.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from trlm_core.training.batching import MicroBatch, StepBatch, StepDataset, cut_micro_batches
from trlm_core.training.step_trainer import StepTrainer


class StepDPOTrainer(StepTrainer, DPOTrainer):
    """DPOTrainer whose loss (apo_zero: arXiv 2408.06266) is the mean over the pairs of the whole step."""

    def __init__(
        self,
        *args: Any,
        tokens_per_micro_batch: int,
        steps: Sequence[Sequence[int]],
        on_reference: Callable[[int, int], None],
        **kwargs: Any,
    ) -> None:
        self._tokens, self._on_reference = tokens_per_micro_batch, on_reference
        super().__init__(*args, **kwargs)
        rows = self.train_dataset.to_list()
        self.step_dataset = StepDataset(
            rows,
            steps,
            tokens_per_micro_batch=tokens_per_micro_batch,
            length=pair_length,
            loss_units=lambda row: 1,
            collate=self.data_collator,
        )

    def _prepare_dataset(self, dataset: datasets.Dataset, processing_class: Any, args: Any, dataset_name: str) -> datasets.Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """The parent's summed log-probs of both replies, once, before the first step, by length."""
        rows = dataset.to_list()
        chosen, rejected = [0.0] * len(rows), [0.0] * len(rows)
        self.use_label_head()
        assert self.model is not None
        self.model.eval()
        done = 0
        for positions in cut_micro_batches([pair_length(row) for row in rows], self._tokens):
            batch = {key: value.to(self.args.device) for key, value in self.data_collator([rows[p] for p in positions]).items()}
            sums_chosen, sums_rejected = self.compute_ref_log_probs(self.model, batch)
            for position, good, bad in zip(positions, sums_chosen.tolist(), sums_rejected.tolist(), strict=True):
                chosen[position], rejected[position] = good, bad
            done += len(positions)
            self._on_reference(done, len(rows))
        return dataset.add_column("ref_chosen_logps", chosen).add_column("ref_rejected_logps", rejected)

    def micro_batch_loss(self, model: torch.nn.Module, micro: MicroBatch, step: StepBatch) -> torch.Tensor:
        return self.compute_loss(model, dict(micro.inputs)) * micro.share

    def metric_weights(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
        chosen, rejected = (float(half.sum()) for half in inputs["completion_mask"][:, 1:].chunk(2))
        pairs = inputs["input_ids"].shape[0] / 2
        of_pairs = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")
        of_tokens = {"entropy": chosen + rejected, "mean_token_accuracy": chosen, "logits/chosen": chosen, "logits/rejected": rejected}
        return {**dict.fromkeys(of_pairs, pairs), **of_tokens}


def pair_length(row: Mapping[str, Any]) -> int:
    """Padded tokens that a pair asks for: both sequences."""
    return 2 * (len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])))


def pair_collator(pad: int) -> DataCollatorForPreference:
    return DataCollatorForPreference(pad_token_id=pad)
