"""Launch a training in a process of its own, through torchrun, and follow its progress file."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from trlm_core.artifacts.full_disk import FullDiskError
from trlm_core.artifacts.lease import descriptors
from trlm_core.recipes.execution import Execution
from trlm_core.training.errors import (
    FOLLOW,
    Ending,
    GroupError,
    OutOfMemoryError,
    RendezvousError,
    TrainingFailedError,
    TrainingKilledError,
    TrainingStalledError,
    TrainingStoppedError,
    read_ending,
)
from trlm_core.training.hardware import BUDGET, FEW_SHAPES, HUGE_PAGES, give_memory_back, halve_budget, usable_cores
from trlm_core.training.job import TrainingJob
from trlm_core.training.memory_kills import KillCounter
from trlm_core.training.saves import SAVES, newest_step, save_folder
from trlm_core.training.watch import Progress, changed, read_progress

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
SECONDS_TO_END = 15.0  # of what was killed
SECONDS_TO_TELL = 2.0  # where it stands
SECONDS_TO_MEET = 600  # of the machines of a training
TAKEN = "EADDRINUSE"  # of torch's store, which listens there
NOT_MET = ("DistStoreError", "DistNetworkError")  # torchrun's, where not all come
SIGKILLED = "Signal 9 (SIGKILL) received by PID"  # torchrun's words for a process of its that was killed
QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_TELEMETRY": "1"}
LOG_LINES = 25


OnSave = Callable[[Path, int], None]  # folder and step of a save that is finished


def run_training(
    make_job: Callable[[Path], TrainingJob],
    on_progress: Callable[[Progress], None],
    on_save: OnSave = lambda folder, step: None,
    counter: KillCounter | None = None,
) -> None:
    """Run a job, made with a folder for what only this try needs; returns when its process has ended well.

    `counter`: of what the kernel kills for its memory; None: the nearest.
    Raises TrainingFailedError or one of its kinds, FullDiskError.
    """
    give_memory_back()  # the base was converted, or tokens were added, in this process
    counter = counter or KillCounter.nearest()
    with tempfile.TemporaryDirectory(prefix="trlm-training-") as scratch:
        job = make_job(Path(scratch))
        log = Path(scratch) / "training.log"
        before = counter.count()
        process = _started(job, Path(scratch), log)
        _follow(process, job, log, on_progress, on_save)
        if process.returncode:
            ending, killed = read_ending(job.error_files), _was_killed(process.returncode, log)
            if killed and (kills := counter.count() - before) > 0:
                raise _killed_for_memory(job, f"got SIGKILL, and {kills} more oom_kill in {counter.path}")
            if killed and ending is not None and ending.kind in FOLLOW:
                ending = None  # of a group: the others lost one, or torchrun stopped them; nobody asked for it, or this were not reached
            if ending is None and _began_alone(job):
                _check_met(job.execution, log)
            raise failure_of(process.returncode, ending, log)


def _started(job: TrainingJob, scratch: Path, log: Path) -> subprocess.Popen[bytes]:
    (scratch / "job.json").write_text(job.model_dump_json())
    command = [
        *(sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={job.execution.processes}", *_meeting(job.execution)),
        *("-m", "trlm_core.training.worker", str(scratch / "job.json")),
    ]
    threads = job.execution.threads or max(1, usable_cores() // job.execution.processes)
    # Of torchrun: from a signal that it hands on to the SIGKILL that follows. Where a process fails, the others still have its 30 s.
    limits = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.execution.stop_seconds)}
    # What torch.compile makes lies with this try: a process that is killed while it compiles leaves half a library, which the next loads.
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled")}
    own = {**QUIET, **limits, **compiled, "OMP_NUM_THREADS": str(threads)}
    environment = {**HUGE_PAGES, **FEW_SHAPES, **os.environ, **own}
    with log.open("wb") as file:
        # It shares the lease on what it writes: nobody builds that while it lives, even when this process is killed.
        # In a session of its own: Ctrl-C in a terminal goes to this process, which then lets it save.
        return subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, pass_fds=descriptors(), start_new_session=True
        )


def _meeting(execution: Execution) -> list[str]:
    """How torchrun's agents find each other. Static: the first node's first process is the group's first."""
    if execution.nodes == 1:
        return ["--standalone"]
    return [
        f"--nnodes={execution.nodes}",
        f"--node-rank={execution.node_rank}",
        "--rdzv-backend=static",
        f"--rdzv-endpoint={execution.rendezvous}",
        f"--rdzv-conf=timeout={SECONDS_TO_MEET}",
    ]


def _follow(
    process: subprocess.Popen[bytes], job: TrainingJob, log: Path, on_progress: Callable[[Progress], None], on_save: OnSave
) -> None:
    """Until it ends. Raises TrainingStalledError where it shows no progress for too long."""
    last, touched, moved, saved = None, None, time.monotonic(), newest_step(job.workspace / SAVES)
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            progress = read_progress(job.progress)
            if progress is not None and progress != last:
                on_progress(progress)
            if progress != last or changed(job.progress) != touched:
                last, touched, moved = progress, changed(job.progress), time.monotonic()
            if (step := newest_step(job.workspace / SAVES)) is not None and step != saved:
                on_save(save_folder(job.workspace / SAVES, step), step)
                saved = step
            if time.monotonic() - moved > job.execution.stall_seconds:
                raise _stalled(process, job, last, log)
    finally:
        if process.poll() is None:  # we are being interrupted
            _stop(process, job.execution.stop_seconds)


def _stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Let it save what is done; torchrun hands the signal on."""
    process.terminate()
    try:
        process.wait(seconds + SECONDS_TO_END)  # torchrun itself kills what does not end in time
    except subprocess.TimeoutExpired:
        _kill(process)


def _stalled(process: subprocess.Popen[bytes], job: TrainingJob, last: Progress | None, log: Path) -> TrainingStalledError:
    for worker in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # or a zombie: it has just ended
            if "trlm_core.training.worker" in worker.cmdline():
                worker.send_signal(signal.SIGUSR1)
    time.sleep(SECONDS_TO_TELL)
    _kill(process)
    where = f"{last.phase} {last.step:,} of {last.steps:,}" if last else "before its first step"
    limit = job.execution.stall_seconds
    return TrainingStalledError(f"wanted progress, got none for {limit:g} s ({where}); it is ended; where it stood:\n{_end(log)}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    children = psutil.Process(process.pid).children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.kill()
    process.wait()
    psutil.wait_procs(children, SECONDS_TO_END)  # what one writes into is another's next


def failure_of(code: int, ending: Ending | None, log: Path) -> Exception:
    """The error that a process which ended badly stands for."""
    if ending is None:
        return TrainingKilledError(f"the training process ended with {code}; the end of what it said:\n{_end(log)}")
    if ending.kind == "stopped":
        return TrainingStoppedError(ending.message)
    if ending.kind == "peer_lost":
        return TrainingKilledError(
            "wanted every process of the group, got one that is gone; its machine says why, and the end of what this one said:\n"
            f"{_tail(ending.traceback)}"
        )
    if ending.kind == "full_disk":
        return FullDiskError(ending.message)
    if ending.kind == "group":
        return GroupError(ending.message)
    if ending.kind == "out_of_memory" and ending.can_be_cut:
        return OutOfMemoryError(f"{ending.message}; the next try cuts the steps into micro-batches of half as many tokens")
    if ending.kind == "out_of_memory":
        return TrainingFailedError(f"{ending.message}; one sequence alone is too long for this device: lower rendering.max_length")
    return TrainingFailedError(f"the training process ended with {code}; the end of what it said:\n{_tail(ending.traceback)}")


def _was_killed(code: int, log: Path) -> bool:
    """By SIGKILL: torchrun, or a process of its, which it then tells of."""
    return code == -signal.SIGKILL or SIGKILLED in log.read_text(errors="replace")


def _killed_for_memory(job: TrainingJob, got: str) -> TrainingFailedError:
    """The error, when the next try's budget is half of this one's: nobody could ask the process that is gone what it was at."""
    budget = job.error_files / BUDGET
    if not budget.exists():
        return TrainingKilledError(f"wanted memory for the model, {got}; give the training more, or choose fewer processes")
    tokens = int(budget.read_text())
    halve_budget(job.workspace, tokens)
    return OutOfMemoryError(
        f"wanted memory for micro-batches of {tokens:,} tokens, or of one sequence that is longer, {got}; "
        "the next try cuts the steps into micro-batches of half as many; if that goes on, lower rendering.max_length or find more memory"
    )


def _began_alone(job: TrainingJob) -> bool:
    """Of several machines, where nothing has begun."""
    return job.execution.nodes > 1 and not job.progress.exists()


def _check_met(execution: Execution, log: Path) -> None:
    """Raise GroupError or RendezvousError where torchrun's agents did not find each other."""
    said = log.read_text(errors="replace")
    if TAKEN in said:
        raise GroupError(f"rendezvous {execution.rendezvous}: wanted a free port on node 0, it is taken; choose another on every node")
    if not any(name in said for name in NOT_MET):
        return
    raise RendezvousError(
        f"rendezvous {execution.rendezvous}: wanted {execution.nodes} nodes there within {SECONDS_TO_MEET} s, node {execution.node_rank} "
        "did not meet them all; start the same command on every node, each with its --node-rank; the end of what torchrun said:\n"
        f"{_end(log)}"
    )


def _end(log: Path) -> str:
    return _tail(log.read_text(errors="replace"))


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_LINES:])
