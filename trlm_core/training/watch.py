"""Watching a training from outside its process: the progress file, the metrics of every step, the end with its parent."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trlm_core.tracking import RunAddress, log_metrics
from trlm_core.training.checkpoint import append_history

CHECK_SECONDS = 0.5


class Progress(BaseModel):
    """What the progress file says: {"step": 12, "steps": 60, "seconds": 31.5, "loss": 0.71}."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    steps: int
    seconds: float  # since the first step began
    loss: float | None

    @property
    def seconds_left(self) -> float | None:
        return self.seconds / self.step * (self.steps - self.step) if self.step else None


class ProcessAddress(BaseModel):
    """A process that is this one and no later one with its number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created: float

    @classmethod
    def here(cls) -> "ProcessAddress":
        return cls(pid=os.getpid(), created=psutil.Process().create_time())

    def is_alive(self) -> bool:
        try:
            return psutil.Process(self.pid).create_time() == self.created
        except psutil.NoSuchProcess:
            return False


def end_with(parent: ProcessAddress) -> None:
    """End this process when that one is gone, so that a retry never trains beside it."""

    def watch() -> None:
        while parent.is_alive():
            time.sleep(CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


class StepLog(TrainerCallback):
    """Every step to history.jsonl and MLflow, and to the progress file."""

    def __init__(self, folder: Path, progress: Path, run: RunAddress | None) -> None:
        self._folder, self._progress, self._run = folder, progress, run
        self._began = self._last = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._began = self._last = time.monotonic()
        self._write(state, None)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return  # the summary at the end
        moment = time.monotonic()
        metrics = {key: value for key, value in logs.items() if key not in {"epoch", "num_tokens"}}
        metrics |= {"seconds": moment - self._last, "useful_tokens_per_second": logs["useful_tokens"] / (moment - self._last)}
        self._last = moment
        append_history(self._folder, {"step": state.global_step, **metrics})
        if self._run is not None:
            log_metrics(self._run, metrics, state.global_step)
        self._write(state, logs["loss"])

    def _write(self, state: TrainerState, loss: float | None) -> None:
        progress = Progress(step=state.global_step, steps=state.max_steps, seconds=time.monotonic() - self._began, loss=loss)
        write_progress(self._progress, progress)


def write_progress(path: Path, progress: Progress) -> None:
    aside = path.with_suffix(".tmp")
    aside.write_text(progress.model_dump_json())
    aside.replace(path)


def read_progress(path: Path) -> Progress | None:
    return Progress.model_validate(json.loads(path.read_text())) if path.exists() else None
