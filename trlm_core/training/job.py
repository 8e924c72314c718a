"""The job of a training process, as the process that launches it writes it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import ReportedExecution, Training
from trlm_core.tracking import RunAddress
from trlm_core.training.watch import ProcessAddress

METRICS = "metrics.jsonl"  # in the workspace: on their way to MLflow


class TrainingJob(BaseModel):
    """Everything one training needs; crosses the process border as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str  # of what is asked for: one in all processes of a group
    training: Training
    execution: Execution
    reported_execution: ReportedExecution | None
    dataset: Path  # folder of the stage dataset
    parent: Path  # folder of the checkpoint to start from
    reference: Path | None  # folder of its reference log-probs: DPO's, but where they are what is asked for
    asks_for: Literal["checkpoint", "reference"]
    output: Path  # folder of what is asked for
    workspace: Path  # folder that outlives this process: saves, history, metrics on their way
    progress: Path
    error_files: Path  # folder, a file a process of the group: what one says must not be lost under what it does to the others
    run: RunAddress | None
    launched_by: ProcessAddress
