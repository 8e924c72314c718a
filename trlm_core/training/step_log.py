"""Every step of a training, from inside its process: to history.jsonl, to MLflow, and to the progress file."""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trlm_core.tracking import RunAddress, log_metrics
from trlm_core.training.checkpoint import append_history
from trlm_core.training.watch import Progress, write_progress


class StepLog(TrainerCallback):
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
        progress = Progress(
            phase="training", step=state.global_step, steps=state.max_steps, seconds=time.monotonic() - self._began, loss=loss
        )
        write_progress(self._progress, progress)
