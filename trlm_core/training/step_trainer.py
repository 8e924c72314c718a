"""What both trainers share: one dataset item is one optimizer step, whose micro-batches are weighted by their share of its loss.

TRL averages DPO per micro-batch and logs unweighted means; here loss, gradient and every logged mean are of the whole step.
"""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer

from trlm_core.training.batching import MicroBatch, StepBatch, StepDataset
from trlm_core.training.hardware import STEPS_BETWEEN_TRIMS, give_memory_back
from trlm_core.training.label_head import score_labels_only


class NotFiniteError(FloatingPointError):
    """The loss of a step is not a number."""


class StepTrainer(Trainer):
    """Mixed in before a TRL trainer. Subclasses give the weights of TRL's metrics and the loss of a micro-batch."""

    step_dataset: StepDataset
    _metrics: dict[str, dict[str, list[float]]]  # TRL's: mode -> name -> values since the last log

    def use_label_head(self) -> None:
        """On a CPU, take the place of TRL's fused head, which is made for GPUs."""
        if self.args.device.type == "cpu":
            assert isinstance(self.model, PreTrainedModel)
            score_labels_only(self.model)

    def get_train_dataloader(self) -> DataLoader[StepBatch]:
        """The steps in the recipe's order; not prepared by accelerate, which would deal single items out to processes."""
        return DataLoader(self.step_dataset, batch_size=1, shuffle=False, collate_fn=_only)

    def get_batch_samples(
        self, epoch_iterator: Iterator[StepBatch], num_batches: int, device: torch.device
    ) -> tuple[list[StepBatch], None]:
        """The next step; its loss units are counted already."""
        return list(itertools.islice(epoch_iterator, num_batches)), None

    def floating_point_ops(self, inputs: Any) -> int:
        """6 N D, as transformers counts it: N parameters outside the embeddings, D padded tokens of the step."""
        return 6 * inputs.padded_tokens * self.model.num_parameters(exclude_embeddings=True)  # type: ignore[operator]

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one whole optimizer step. Raises NotFiniteError before the optimizer moves."""
        step: StepBatch = inputs
        model.train()
        total = torch.zeros((), device=self.args.device)
        means: dict[str, list[tuple[float, float]]] = {}
        for micro in step.micro_batches:
            loss = self._backward(model, micro, step)
            total += loss
            self._collect(means, micro)
        if not torch.isfinite(total):
            rows = [row for micro in step.micro_batches for row in micro.rows]
            raise NotFiniteError(f"step {step.index + 1}: wanted a finite loss, got {total.item()}; rows of the stage dataset: {rows}")
        self._log_step(means, step)
        if self.args.device.type == "cpu" and (step.index + 1) % STEPS_BETWEEN_TRIMS == 0:
            give_memory_back()
        return total

    def micro_batch_loss(self, model: torch.nn.Module, micro: MicroBatch, step: StepBatch) -> torch.Tensor:
        """This micro-batch's part of the step's loss; the parts add up to it."""
        raise NotImplementedError

    def metric_weights(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
        """For each of TRL's metric names, how many tokens or pairs its mean was taken over."""
        raise NotImplementedError

    def _backward(self, model: torch.nn.Module, micro: MicroBatch, step: StepBatch) -> torch.Tensor:
        moved = MicroBatch({key: value.to(self.args.device) for key, value in micro.inputs.items()}, micro.rows, micro.share)
        with self.compute_loss_context_manager():
            loss = self.micro_batch_loss(model, moved, step)
        self.accelerator.backward(loss)
        return loss.detach()

    def _collect(self, means: dict[str, list[tuple[float, float]]], micro: MicroBatch) -> None:
        weights = self.metric_weights(micro.inputs)
        for name, values in self._metrics["train"].items():
            if name in weights and values:
                means.setdefault(name, []).append((values.pop(), weights[name]))

    def _log_step(self, means: Mapping[str, list[tuple[float, float]]], step: StepBatch) -> None:
        for name, pairs in means.items():
            total = sum(weight for _, weight in pairs)
            self._metrics["train"][name].append(sum(value * weight for value, weight in pairs) / total if total else 0.0)
        self._metrics["train"]["useful_tokens"].append(step.useful_tokens)
        self._metrics["train"]["padded_tokens"].append(step.padded_tokens)


def _only(items: list[StepBatch]) -> StepBatch:
    (item,) = items
    return item
