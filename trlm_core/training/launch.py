"""Launch a training in a process of its own, through torchrun, and follow its progress file."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from trlm_core.artifacts.lease import descriptors
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Stage
from trlm_core.tracking import RunAddress
from trlm_core.training.hardware import FEW_SHAPES, HUGE_PAGES, give_memory_back, usable_cores
from trlm_core.training.job import TrainingJob
from trlm_core.training.watch import ProcessAddress, Progress, read_progress

POLL_SECONDS = 0.5
QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
LOG_LINES = 25


class TrainingFailedError(RuntimeError):
    """The training process ended badly; the message carries what it said last."""


class TrainingKilledError(TrainingFailedError):
    """The training process was killed, by a signal or for its memory: another try can help."""


def run_training(
    stage: Stage,
    execution: Execution,
    *,
    dataset: Path,
    parent: Path,
    output: Path,
    run: RunAddress | None,
    on_progress: Callable[[Progress], None],
) -> None:
    """Train `output` from `parent` on `dataset`; returns when the process has ended well. Raises TrainingFailedError."""
    give_memory_back()  # the base was converted, or tokens were added, in this process
    with tempfile.TemporaryDirectory(prefix="trlm-training-") as scratch:
        job = TrainingJob(
            training=stage.training,
            execution=execution,
            reported_execution=stage.reported_execution,
            dataset=dataset,
            parent=parent,
            output=output,
            progress=Path(scratch) / "progress.json",
            error_file=Path(scratch) / "error.txt",
            run=run,
            launched_by=ProcessAddress.here(),
        )
        _follow(_started(job, Path(scratch)), job, Path(scratch) / "training.log", on_progress)


def _started(job: TrainingJob, scratch: Path) -> subprocess.Popen[bytes]:
    (scratch / "job.json").write_text(job.model_dump_json())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"),
        *("-m", "trlm_core.training.worker", str(scratch / "job.json")),
    ]
    environment = {**HUGE_PAGES, **FEW_SHAPES, **os.environ, **QUIET, "OMP_NUM_THREADS": str(job.execution.threads or usable_cores())}
    with (scratch / "training.log").open("wb") as log:
        # It shares the lease on what it writes: nobody builds that while it lives, even when this process is killed.
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, pass_fds=descriptors())


def _follow(process: subprocess.Popen[bytes], job: TrainingJob, log: Path, on_progress: Callable[[Progress], None]) -> None:
    last = None
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            progress = read_progress(job.progress)
            if progress is not None and progress != last:
                on_progress(progress)
                last = progress
    finally:
        if process.poll() is None:  # we are being interrupted
            process.terminate()
            process.wait()
    if process.returncode:
        raised = job.error_file.exists()
        tail = "\n".join((job.error_file if raised else log).read_text(errors="replace").splitlines()[-LOG_LINES:])
        failure = TrainingFailedError if raised else TrainingKilledError
        raise failure(f"the training process ended with {process.returncode}; the end of what it said:\n{tail}")
