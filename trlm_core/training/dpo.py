"""Preference optimization through TRL's DPOTrainer (1.16), an optimizer step at a time, from rows that are token ids already.

TRL tokenises in `_prepare_dataset` and caches reference log-probs in `_precompute_ref_logps`: both private, overridden only here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from trlm_core.training.batching import ALONE, MicroBatch, Share, StepBatch, StepDataset, cut_micro_batches
from trlm_core.training.errors import MicroBatchTooLargeError, is_out_of_memory
from trlm_core.training.step_trainer import StepTrainer


class StepDPOTrainer(StepTrainer, DPOTrainer):
    """DPOTrainer whose loss (apo_zero: arXiv 2408.06266) is the mean over the pairs of the whole step.

    `reference`: the start's log-probs of the chosen and the rejected replies; None: only to compute them.
    """

    def __init__(
        self,
        *args: Any,
        tokens_per_micro_batch: int,
        steps: Sequence[Sequence[int]],
        reference: tuple[list[float], list[float]] | None,
        share: Share = ALONE,
        **kwargs: Any,
    ) -> None:
        self._tokens, self._share, self._reference = tokens_per_micro_batch, share, reference
        super().__init__(*args, **kwargs)
        self.use_label_head()
        assert isinstance(self.train_dataset, datasets.Dataset)
        self.step_dataset = StepDataset(
            self.train_dataset,
            steps,
            tokens_per_micro_batch=tokens_per_micro_batch,
            length=pair_length,
            loss_units=lambda row: 1,
            collate=self.data_collator,
            share=share,
        )

    def reference_log_probs(self, on_pairs: Callable[[int, int], None]) -> tuple[list[float], list[float]]:
        """The model's summed log-probs of both replies of every pair, by length; each process of a group does its part.

        All do as many forwards, since a sharded model's wait for one another: who has none left does the longest once more.
        """
        rows, model = self.train_dataset, self.model
        assert isinstance(rows, datasets.Dataset)
        assert model is not None
        found = torch.zeros(2, len(rows), dtype=torch.float64)
        model.eval()
        cuts = cut_micro_batches(_pair_lengths(rows), self._tokens)
        rounds = math.ceil(len(cuts) / self._share.processes)
        batches = cuts[self._share.rank :: self._share.processes]
        done, total = 0, sum(len(batch) for batch in batches)
        for positions in batches:
            for side, sums in enumerate(self._reference_of(model, rows, positions)):
                found[side, positions] = sums.cpu().double()
            done += len(positions)
            on_pairs(done, total)
        if len(batches) < rounds:
            self._reference_of(model, rows, cuts[0])
        chosen, rejected = self._summed(found).tolist()
        return chosen, rejected

    def _reference_of(self, model: Any, rows: datasets.Dataset, positions: list[int]) -> Sequence[torch.Tensor]:
        batch = self.data_collator([rows[position] for position in positions])
        try:
            return self.compute_ref_log_probs(model, {key: value.to(self.args.device) for key, value in batch.items()})
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MicroBatchTooLargeError.of("reference log-probs", positions, batch["input_ids"].shape, error) from error

    def _prepare_dataset(self, dataset: datasets.Dataset, processing_class: Any, args: Any, dataset_name: str) -> datasets.Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: datasets.Dataset, name: str, batch_size: int) -> datasets.Dataset:
        """What is known already, as the columns that the collator and the loss read."""
        if self._reference is None:
            return dataset
        chosen, rejected = self._reference
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


def _pair_lengths(rows: datasets.Dataset) -> list[int]:
    """`pair_length` of every row, from the lists' offsets: no token is read."""
    prompt, chosen, rejected = (
        pc.call_function("list_value_length", [rows.data.column(name)]).to_numpy() for name in ("prompt_ids", "chosen_ids", "rejected_ids")
    )
    return (2 * (prompt + np.maximum(chosen, rejected))).tolist()


def pair_collator(pad: int) -> DataCollatorForPreference:
    return DataCollatorForPreference(pad_token_id=pad)
