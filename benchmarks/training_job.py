"""The job of a training that a benchmark runs itself: on the CPU, without a save and without MLflow."""

from pathlib import Path

from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Training
from trlm_core.training.job import TrainingJob
from trlm_core.training.watch import ProcessAddress


def job_in(folder: Path, training: Training, *, dataset: Path, parent: Path) -> TrainingJob:
    """What it writes goes below the folder."""
    for name in ("output", "workspace"):
        (folder / name).mkdir(parents=True)
    return TrainingJob(
        fingerprint="of a benchmark",
        training=training,
        execution=Execution(device="cpu", save_seconds=1e9),
        reported_execution=None,
        dataset=dataset,
        parent=parent,
        reference=None,
        asks_for="checkpoint",
        output=folder / "output",
        workspace=folder / "workspace",
        progress=folder / "progress.json",
        error_files=folder,
        run=None,
        launched_by=ProcessAddress.here(),
    )
