"""The job of a training process, as the process that launches it writes it."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import ReportedExecution, Training
from trlm_core.tracking import RunAddress
from trlm_core.training.watch import ProcessAddress


class TrainingJob(BaseModel):
    """Everything one training needs; crosses the process border as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    training: Training
    execution: Execution
    reported_execution: ReportedExecution | None
    dataset: Path  # folder of the stage dataset
    parent: Path  # folder of the checkpoint to start from
    output: Path  # folder of the checkpoint to write
    progress: Path
    error_file: Path
    run: RunAddress | None
    launched_by: ProcessAddress
