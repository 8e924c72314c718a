"""A training's curve in the UI: one markdown artifact, updated in place while it trains, whole when it is done."""

import itertools
import math
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from tasks.progress import shown_or_not
from trlm_core.training.watch import Progress

UPDATE_SECONDS = 15.0
WIDTH = 60  # characters of the sparkline
LEVELS = "▁▂▃▄▅▆▇█"
ROWS = 12  # of the table
SHOWN = ("loss", "mean_token_accuracy", "rewards/accuracies", "rewards/margins", "grad_norm", "learning_rate", "useful_tokens_per_second")


class LiveCurve:
    """Fed with the progress of a training."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        artifact = create_markdown_artifact(key=f"curve-{stage.replace('_', '-')}", markdown=f"# {stage}\n\nstarting", description=stage)
        assert isinstance(artifact, UUID)
        self._artifact = artifact
        self._losses: list[float] = []
        self._written = 0.0

    def add(self, progress: Progress) -> None:
        if progress.loss is None:
            return
        self._losses.append(progress.loss)
        if time.monotonic() - self._written > UPDATE_SECONDS:
            left = "" if progress.seconds_left is None else f", about {progress.seconds_left / 60:.0f} min left"
            self._write(f"# {self._stage}\n\nstep {progress.step:,} of {progress.steps:,}{left}\n\n{_loss_line(self._losses)}\n")

    def finish(self, history: Sequence[dict[str, Any]]) -> None:
        losses = [line["loss"] for line in history if math.isfinite(line["loss"])]  # a skipped step may have none
        self._write(f"# {self._stage}\n\n{len(history):,} steps\n\n{_loss_line(losses)}\n\n{history_table(history)}\n")

    def _write(self, markdown: str) -> None:
        with shown_or_not(), get_client(sync_client=True) as client:
            client.update_artifact(self._artifact, ArtifactUpdate(data=markdown))
        self._written = time.monotonic()


def sparkline(values: Sequence[float]) -> str:
    """The values in at most WIDTH characters, each the mean of its stretch: sparkline([3, 2, 1]) -> "█▄▁"."""
    width = min(WIDTH, len(values))
    bounds = [round(index * len(values) / width) for index in range(width + 1)] if width else []
    means = [sum(values[start:end]) / (end - start) for start, end in itertools.pairwise(bounds)]
    low, span = (min(means), max(means) - min(means)) if means else (0.0, 0.0)
    return "".join(LEVELS[round((mean - low) / span * (len(LEVELS) - 1)) if span else 0] for mean in means)


def history_table(history: Sequence[dict[str, Any]]) -> str:
    """A markdown table of at most ROWS steps, the first and the last among them."""
    columns = [name for name in SHOWN if history and name in history[0]]
    last = len(history) - 1
    picked = sorted({round(index * last / (ROWS - 1)) for index in range(ROWS)}) if history else []
    lines = [f"| {' | '.join(['step', *columns])} |", f"|{'---:|' * (len(columns) + 1)}"]
    lines += [f"| {history[at]['step']} | {' | '.join(f'{history[at][name]:.4g}' for name in columns)} |" for at in picked]
    return "\n".join(lines)


def _loss_line(losses: Sequence[float]) -> str:
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f}\n\n    {sparkline(losses)}" if losses else "no step yet"
