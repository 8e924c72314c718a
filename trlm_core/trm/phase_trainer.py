"""Runs a phase with Lightning's trainer: saves by step and by time, goes on from the newest good save, and tells how far it is.

WORKSPACE/saves/step-000300/{phase.ckpt, save.json}     as in training/saves.py: written aside, hashed, renamed last
WORKSPACE/history.jsonl                                 {"step": 20, "loss": 1.31, "grad_norm": 0.8, ...}
"""

import contextlib
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as lightning
from pytorch_lightning.callbacks import Callback

from trlm_core.artifacts.full_disk import with_room
from trlm_core.artifacts.shelf import sync
from trlm_core.training.checkpoint import HISTORY, append_line, read_lines, rewind
from trlm_core.training.errors import StoppedError
from trlm_core.training.saves import SAVES, discard_after, keep_save, newest_good, newest_step, prune
from trlm_core.trm.phase_module import PhaseModule

CHECKPOINT = "phase.ckpt"
ASIDE = "aside"
ADVICE = "choose another with --store"
Precision = Literal["32-true", "bf16-mixed"]  # Lightning's words


@dataclass(frozen=True)
class PhaseProgress:
    done: int
    steps: int
    done_before: int  # by an earlier process
    seconds: float  # since this process began the phase
    seconds_left: float | None
    metrics: dict[str, float]  # of the step


@dataclass(frozen=True)
class PhaseRun:
    """Where and how a phase runs. Of it, precision alone changes the weights that come out: it is the recipe's, never the device's."""

    workspace: Path
    save_steps: int | None  # a save every so many steps
    save_seconds: float  # and every so many seconds
    keep_saves: int
    log_steps: int  # a line of history every so many steps, and one for the last
    on_progress: Callable[[PhaseProgress], None]  # with each line
    is_stopped: Callable[[], bool]  # asked after every step
    precision: Precision
    accelerator: str = "auto"


def run_phase(module: PhaseModule, run: PhaseRun) -> list[dict[str, Any]]:
    """The history of a module that is trained to its last step, from the newest good save if there is one. `finish` is the caller's.

    Raises BadStepError at a loss that is not finite, StoppedError where it was stopped: what is done is saved.
    """
    run.workspace.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run.workspace / ASIDE, ignore_errors=True)
    save = newest_good(run.workspace / SAVES)
    done = save[1].step if save else 0
    discard_after(run.workspace / SAVES, done)
    rewind(run.workspace / HISTORY, done)
    keeper = _Keeper(run, done)
    with _quiet():
        trainer = _trainer(module, run, keeper)
        checkpoint = save[0] / CHECKPOINT if save else None
        trainer.fit(module, train_dataloaders=_Steps(), ckpt_path=checkpoint, weights_only=True)
    if module.steps_done < module.schedule.steps:
        raise StoppedError(
            f"{type(module).__name__}: stopped after step {module.steps_done} of {module.schedule.steps}; run it again to go on"
        )
    return read_lines(run.workspace / HISTORY)


class _Steps:
    """An endless loader of nothing: a step's rows follow from its number, which the module counts."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0


class _Keeper(Callback):
    """After each step: a line of history, a save where one is due."""

    def __init__(self, run: PhaseRun, done_before: int) -> None:
        self._run, self._done_before = run, done_before
        self._began = self._saved = time.monotonic()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, PhaseModule)
        step, steps, run = pl_module.steps_done, pl_module.schedule.steps, self._run
        if step % run.log_steps == 0 or step == steps:
            self._log(pl_module)
        stopped = run.is_stopped()
        by_step = run.save_steps is not None and step % run.save_steps == 0
        if stopped or by_step or step == steps or time.monotonic() - self._saved >= run.save_seconds:
            self._save(trainer, step)
        trainer.should_stop = stopped or step >= steps

    def _log(self, module: PhaseModule) -> None:
        metrics = {name: float(each) for name, each in module.last_metrics.items()}
        append_line(self._run.workspace / HISTORY, {"step": module.steps_done, **metrics})
        done, steps = module.steps_done, module.schedule.steps
        seconds = time.monotonic() - self._began
        left = seconds / (done - self._done_before) * (steps - done)
        self._run.on_progress(PhaseProgress(done, steps, self._done_before, seconds, left, metrics))

    def _save(self, trainer: lightning.Trainer, step: int) -> None:
        saves = self._run.workspace / SAVES
        if step != newest_step(saves):
            with_room(lambda: self._write_save(trainer, step), f"the save of step {step}", self._run.workspace, ADVICE)
        self._saved = time.monotonic()

    def _write_save(self, trainer: lightning.Trainer, step: int) -> None:
        # Lightning's own atomic save goes through a temporary file that may lie on another disk, and does not wait for the disk.
        saves, aside = self._run.workspace / SAVES, self._run.workspace / ASIDE
        history = self._run.workspace / HISTORY
        aside.mkdir()
        try:
            trainer.save_checkpoint(aside / CHECKPOINT)
            if history.exists():
                sync(history)
            keep_save(aside, saves, step, loss=None)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        prune(saves, self._run.keep_saves)


def _trainer(module: PhaseModule, run: PhaseRun, keeper: Callback) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator=run.accelerator,
        devices=1,
        precision=run.precision,
        max_steps=module.schedule.steps,
        max_epochs=-1,
        callbacks=[keeper],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning tells what it found in the machine and what it would advise; the run is told by progress and history."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
