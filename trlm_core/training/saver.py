"""The saver of a training: when a save is due, and how it is made without harming the last good one."""

import errno
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trlm_core.artifacts.full_disk import FullDiskError, with_room
from trlm_core.artifacts.shelf import sync
from trlm_core.training.checkpoint import HISTORY, read_history
from trlm_core.training.group import is_first_of_machine, told_by_first
from trlm_core.training.saves import SAVES, keep_save, newest_step, prune

if TYPE_CHECKING:
    from trlm_core.training.step_trainer import StepTrainer

HARDLY_ANY = 1 << 16  # bytes
STATES = 3  # of a weight: itself and AdamW's two moments
ADVICE = "choose another with --store"


@dataclass(frozen=True)
class Often:
    """How often a training saves."""

    steps: int | None
    seconds: float
    keep: int  # newest ones, beside the best


class Saver(TrainerCallback):
    """Asks for a save by step and by time; `save` makes it, when the step is logged."""

    def __init__(self, trainer: "StepTrainer", workspace: Path, often: Often) -> None:
        self._trainer, self._workspace, self._often = trainer, workspace, often
        self._last = time.monotonic()

    @property
    def saves(self) -> Path:
        return self._workspace / SAVES

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        by_step = self._often.steps is not None and state.global_step % self._often.steps == 0
        by_time = time.monotonic() - self._last >= self._often.seconds
        # The last step's result is the checkpoint itself.
        control.should_save = state.global_step < state.max_steps and (by_step or self._trainer.agreed(by_time))

    def save(self) -> None:
        """Save what is done, unless that is saved already. Raises FullDiskError, and leaves the saves before as they were."""
        step = self._trainer.state.global_step
        if step == 0 or step == told_by_first(newest_step(self.saves)):  # another machine may not see them
            return
        try:
            with_room(lambda: self._save(step), f"the save of step {step}", self._workspace, ADVICE)
        finally:
            self._last = time.monotonic()
            if is_first_of_machine():  # a further one's processes have left their random states there
                shutil.rmtree(self._workspace / "aside", ignore_errors=True)

    def _save(self, step: int) -> None:
        self._check_room(step)
        aside = self._written()
        if self._trainer.is_world_process_zero():
            for lines in self._workspace.glob("*.jsonl"):  # what a resumed training goes on writing
                sync(lines)
            shutil.copy(self._workspace / HISTORY, aside / HISTORY)  # for whom a save alone is sent to
            keep_save(aside, self.saves, step, self._loss_since(newest_step(self.saves)))
            prune(self.saves, self._often.keep)
        self._trainer.accelerator.wait_for_everyone()

    def _written(self) -> Path:
        try:
            return self._trainer.save_aside()
        except RuntimeError as error:  # of torch's writer, which keeps the reason to itself
            if shutil.disk_usage(self._workspace).free > HARDLY_ANY:
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._workspace)) from error

    def _check_room(self, step: int) -> None:
        """Before anything is written, so that a disk is not filled to its last byte for others; by the first process's disk."""
        model: Any = self._trainer.model
        needed = STATES * sum(weight.numel() * weight.element_size() for weight in model.parameters())
        free = told_by_first(shutil.disk_usage(self._workspace).free)  # who raised here alone would leave the others waiting
        if free < needed:
            raise FullDiskError(
                f"{self._workspace}: wanted {needed:,} bytes for the save of step {step}, got {free:,} free; the saves before are whole; "
                f"free more or {ADVICE}, then run again: the training goes on from them"
            )

    def _loss_since(self, step: int | None) -> float | None:
        """Mean loss of the steps since the last save: in one pass over the data, of rows that it had not seen."""
        losses = [line["loss"] for line in read_history(self._workspace) if line["step"] > (step or 0)]
        return sum(losses) / len(losses) if losses else None
