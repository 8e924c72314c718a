"""What both trainers share: one dataset item is one optimizer step, whose micro-batches are weighted by their share of its loss.

TRL averages DPO per micro-batch and logs unweighted means; here loss, gradient and every logged mean are of the step, of all processes.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from trlm_core.training.bad_steps import BadSteps
from trlm_core.training.batching import MicroBatch, StepBatch, StepDataset
from trlm_core.training.errors import MicroBatchTooLargeError, StoppedError, is_out_of_memory
from trlm_core.training.hardware import STEPS_BETWEEN_TRIMS, give_memory_back
from trlm_core.training.label_head import score_labels_only
from trlm_core.training.saver import Saver
from trlm_core.training.sharding import WholeFiles, is_sharded
from trlm_core.training.suspects import Suspects, joined, suspects_in


class StepTrainer(WholeFiles):
    """Mixed in before a TRL trainer. Subclasses give the weights of TRL's metrics and the loss of a micro-batch."""

    step_dataset: StepDataset
    bad_steps: BadSteps
    saver: Saver
    heartbeat: Callable[[], None] = staticmethod(lambda: None)  # called after every micro-batch
    stop_asked = False  # set by a signal's handler; seen between two micro-batches
    _metrics: dict[str, dict[str, list[float]]]  # TRL's: mode -> name -> values since the last log
    _total_train_tokens: int  # TRL's
    _step: StepBatch  # the one under way
    _loss: float  # of the one under way
    _losses: list[torch.Tensor]  # its parts, of this process's micro-batches

    def use_label_head(self) -> None:
        """On a CPU, take the place of TRL's fused head, which is made for GPUs."""
        if self.args.device.type == "cpu":
            assert isinstance(self.model, PreTrainedModel)
            score_labels_only(self.model)

    def save_aside(self) -> Path:
        """The folder, as the library writes it, of all that a resumed trainer needs after the steps that are done. For every process."""
        assert self.args.output_dir is not None
        model: Any = self.model_wrapped
        super()._save_checkpoint(model, None)
        self.accelerator.wait_for_everyone()
        return Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Where the library's loop saves."""
        self.saver.save()

    def agreed(self, asked: bool) -> bool:
        """Whether any process of the group asks. For every process at once."""
        if self.accelerator.num_processes == 1:
            return asked
        return bool(self._summed(torch.tensor(float(asked))))

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
        """Forward and backward of a whole optimizer step; its loss, or 0 where it is not finite.

        Raises StoppedError, MicroBatchTooLargeError.
        """
        step: StepBatch = inputs
        self._step, self._losses = step, []
        model.train()
        total = torch.zeros((), device=self.args.device)
        means: dict[str, list[tuple[float, float]]] = {}
        last = len(step.micro_batches) - 1
        for number, micro in enumerate(step.micro_batches if step.loss_units else ()):
            self._check_stop(at_step_begin=number == 0)
            with contextlib.nullcontext() if number == last else self.accelerator.no_sync(model):
                self._losses.append(self._backward(model, micro, step))
            self._collect(means, micro)
            self.heartbeat()
        total = sum(self._losses, total)
        total = self._summed(total) if step.loss_units else torch.full_like(total, math.nan)
        self._loss = total.item()
        self._log_step(means, step)
        if self.args.device.type == "cpu" and (step.index + 1) % STEPS_BETWEEN_TRIMS == 0:
            give_memory_back()
        return torch.nan_to_num(total, nan=0.0, posinf=0.0, neginf=0.0)  # the library adds it up for its log, and would never lose a nan

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The step's own loss, finite or not."""
        super().log({**logs, "loss": self._loss} if "loss" in logs else logs, start_time)

    def micro_batch_loss(self, model: torch.nn.Module, micro: MicroBatch, step: StepBatch) -> torch.Tensor:
        """This micro-batch's part of the step's loss; the parts add up to it."""
        raise NotImplementedError

    def metric_weights(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, float]:
        """For each of TRL's metric names, how many tokens or pairs its mean was taken over."""
        raise NotImplementedError

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> float:
        """The library's last call before the optimizer moves, with the norm before clipping: a bad step is found here.

        Raises BadStepError where the recipe says stop; where it says skip, no gradient is left, and AdamW moves no weight without one.
        """
        found: Any = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = float(found)
        if self.bad_steps.is_bad(self._step, self._loss, norm, lambda: self._suspects(model)):
            model.zero_grad(set_to_none=True)
        return norm

    def _suspects(self, model: torch.nn.Module) -> Suspects:
        """For every process at once. In place of the step's gradient, which is lost, there is another after it."""
        step, losses = self._step, [loss.item() for loss in self._losses]
        if is_sharded(model):  # its processes would have to compute as many micro-batches, and have no gradient of their own
            found = suspects_in(step, losses, lambda micro: True, lambda micro: [])
        else:
            with self._unlogged():
                found = suspects_in(
                    step,
                    losses,
                    lambda micro: self._is_finite(model, micro, step),
                    lambda micro: self.step_dataset.singly(micro, step.loss_units),
                )
        return joined(step, self._gathered(found))

    def _is_finite(self, model: torch.nn.Module, micro: MicroBatch, step: StepBatch) -> bool:
        """Whether a micro-batch's loss and gradient are, by themselves."""
        model.zero_grad(set_to_none=True)
        with self.accelerator.no_sync(model):
            loss = self._backward(model, micro, step)
        self.heartbeat()
        norm = torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None])
        return bool(torch.isfinite(loss) & torch.isfinite(norm))

    @contextlib.contextmanager
    def _unlogged(self) -> Iterator[None]:
        """What is computed inside leaves TRL's metrics as they are."""
        kept, tokens = {name: [*values] for name, values in self._metrics["train"].items()}, self._total_train_tokens
        try:
            yield
        finally:
            self._metrics["train"].clear()
            self._metrics["train"].update(kept)
            self._total_train_tokens = tokens

    def _check_stop(self, *, at_step_begin: bool) -> None:
        """A process alone stops between any two micro-batches; a group agrees on it where a step begins."""
        alone = self.accelerator.num_processes == 1
        if (alone or at_step_begin) and self.agreed(self.stop_asked):
            raise StoppedError(f"stopped after step {self.state.global_step} of {self.state.max_steps}, as it was asked to")

    def _backward(self, model: torch.nn.Module, micro: MicroBatch, step: StepBatch) -> torch.Tensor:
        try:
            moved = MicroBatch(
                {key: send_to_device(value, self.args.device) for key, value in micro.inputs.items()}, micro.rows, micro.share
            )
            with self.compute_loss_context_manager(), _metrics_kept_apart(self.accelerator):
                loss = self.micro_batch_loss(model, moved, step)
            # A wrapped model takes the mean of the processes' gradients, and the step's is their sum.
            self.accelerator.backward(loss * self.accelerator.num_processes)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MicroBatchTooLargeError.of(f"step {step.index + 1}", micro.rows, micro.inputs["input_ids"].shape, error) from error
        return loss.detach()

    def _collect(self, means: dict[str, list[tuple[float, float]]], micro: MicroBatch) -> None:
        weights = self.metric_weights(micro.inputs)
        for name, values in self._metrics["train"].items():
            if name in weights and values:
                means.setdefault(name, []).append((values.pop(), weights[name]))

    def _log_step(self, means: Mapping[str, list[tuple[float, float]]], step: StepBatch) -> None:
        """Means over the tokens or pairs of the step's micro-batches, in every process."""
        names = sorted(means)
        sums = [sum(value * weight for value, weight in means[name]) for name in names]
        weights = [sum(weight for _, weight in means[name]) for name in names]
        counts = [float(step.useful_tokens), float(step.padded_tokens)]
        added = self._summed(torch.tensor([*sums, *weights, *counts], dtype=torch.float64)).tolist()
        for index, name in enumerate(names):
            weight = added[len(names) + index]
            self._metrics["train"][name].append(added[index] / weight if weight else 0.0)
        self._metrics["train"]["useful_tokens"].append(int(added[-2]))
        self._metrics["train"]["padded_tokens"].append(int(added[-1]))

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Over the processes."""
        if self.accelerator.num_processes == 1:
            return values
        moved = values.to(self.args.device)
        torch.distributed.all_reduce(moved)
        return moved

    def _gathered(self, found: Suspects) -> list[Suspects]:
        """Of the processes."""
        everybody = [found] * self.accelerator.num_processes
        if len(everybody) > 1:
            torch.distributed.all_gather_object(everybody, found)
        return everybody


@contextlib.contextmanager
def _metrics_kept_apart(accelerator: Any) -> Iterator[None]:
    """TRL gathers every micro-batch's metrics from all processes, pairs of unlike number among them; here they are summed once a step."""
    if accelerator.num_processes == 1:
        yield
        return
    gathers = ("gather", "gather_for_metrics")
    for name in gathers:
        setattr(accelerator, name, _as_it_is)  # over the class's method
    try:
        yield
    finally:
        for name in gathers:
            delattr(accelerator, name)


def _as_it_is(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(1) if values.ndim == 0 else values


def _only(items: list[StepBatch]) -> StepBatch:
    (item,) = items
    return item
