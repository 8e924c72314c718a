"""Every step of a training, from inside its process: to history.jsonl and to the metrics' spool; and to the progress file."""

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trlm_core.metric_spool import MetricSpool
from trlm_core.training.checkpoint import HISTORY, append_line
from trlm_core.training.watch import Progress, write_progress


class StepLog(TrainerCallback):
    """For one process of a group."""

    def __init__(self, folder: Path, spool: MetricSpool) -> None:
        self._folder, self._spool = folder, spool
        self._step_began = 0.0

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._step_began = time.monotonic()  # saves and samples come between two steps

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if not logs or "loss" not in logs:
            return  # the summary at the end
        seconds = time.monotonic() - self._step_began
        metrics = {key: value for key, value in logs.items() if key not in {"epoch", "num_tokens"}} | {"seconds": seconds}
        metrics |= {f"{kind}_per_second": logs[kind] / seconds for kind in ("useful_tokens", "padded_tokens")}
        append_line(self._folder / HISTORY, {"step": state.global_step, **metrics})
        self._spool.log(metrics, state.global_step)


class ProgressFile(TrainerCallback):
    """For one process of a machine, whose launcher reads it."""

    def __init__(self, progress: Path) -> None:
        self._progress = progress
        self._began = 0.0
        self._done_before = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._began = time.monotonic()
        self._done_before = state.global_step
        self._write(state, None)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        if logs and "loss" in logs:
            self._write(state, logs["loss"])

    def _write(self, state: TrainerState, loss: float | None) -> None:
        progress = Progress(
            phase="training",
            step=state.global_step,
            steps=state.max_steps,
            done_before=self._done_before,
            seconds=time.monotonic() - self._began,
            loss=loss,
        )
        write_progress(self._progress, progress)
