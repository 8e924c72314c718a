"""Trainings in processes of their own, for real: a good end, bad ends, the end of their launcher, and two processes at once."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from tests.processes import running
from trlm_core.artifacts.full_disk import FullDiskError
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.tracking import Tracker
from trlm_core.training.checkpoint import load_model, read_history
from trlm_core.training.errors import (
    Ending,
    OutOfMemoryError,
    StoppedError,
    TrainingFailedError,
    TrainingKilledError,
    TrainingStalledError,
    read_ending,
    write_ending,
)
from trlm_core.training.job import TrainingJob
from trlm_core.training.launch import failure_of, run_training
from trlm_core.training.memory_kills import KillCounter
from trlm_core.training.reference import read_reference, write_reference
from trlm_core.training.saves import newest_step
from trlm_core.training.watch import Progress

STEPS = 12
WORKER = "trlm_core.training.worker"
SECONDS_TO_DIE = 15
LAUNCHER = """
import signal
import sys
from pathlib import Path
from trlm_core.training.job import TrainingJob
from trlm_core.training.launch import run_training
from trlm_core.training.watch import ProcessAddress

# Whoever starts tests in the background may have had SIGINT ignored, which all that they start inherits: a terminal has not.
signal.signal(signal.SIGINT, signal.default_int_handler)
job = TrainingJob.model_validate_json(Path(sys.argv[1]).read_text()).model_copy(update={"launched_by": ProcessAddress.here()})
run_training(lambda scratch: job, lambda progress: print(progress.step, flush=True))
"""


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifacts=tmp_path / "mlruns")


@pytest.fixture
def launcher_of(tmp_path: Path) -> Iterator[Callable[[TrainingJob], subprocess.Popen[str]]]:
    """`launcher_of(job)`: a process that launches the job; returned when it trains."""
    launchers: list[subprocess.Popen[str]] = []

    def launched(job: TrainingJob) -> subprocess.Popen[str]:
        (tmp_path / "job.json").write_text(job.model_dump_json())
        launcher = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(tmp_path / "job.json")], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        launchers.append(launcher)
        assert launcher.stdout is not None
        assert any(int(line) > 0 for line in launcher.stdout), "it trains"
        return launcher

    yield launched
    for launcher in launchers:
        children = psutil.Process(launcher.pid).children(recursive=True) if launcher.poll() is None else []
        for process in children:
            process.kill()
        launcher.kill()
        launcher.wait()


def test_a_training_leaves_a_checkpoint_its_history_and_a_finished_run_with_every_step(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, tracker: Tracker
):
    run = tracker.start("stage1_sft", params={}, tags={})
    job = make_job(sft_training_of(neftune_noise_alpha=0.01), run=run)
    seen: list[Progress] = []
    run_training(lambda scratch: job, seen.append)
    history = read_history(job.workspace)
    assert [line["step"] for line in history] == list(range(1, STEPS + 1))
    assert history[-1]["loss"] < history[0]["loss"]
    assert {"grad_norm", "learning_rate", "mean_token_accuracy", "entropy", "useful_tokens", "useful_tokens_per_second"} <= set(history[0])
    assert load_model(job.output, "float32").num_parameters() == load_model(job.parent, "float32").num_parameters()
    assert len(load_tokenizer(job.output)) == len(load_tokenizer(job.parent))
    assert [progress.step for progress in seen] == sorted({progress.step for progress in seen})
    assert {progress.steps for progress in seen} == {STEPS}
    client = mlflow.MlflowClient(tracking_uri=run.uri)
    assert client.get_run(run.run_id).info.status == "FINISHED"
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(line["step"], line["loss"]) for line in history]


def test_a_training_that_fails_says_why_and_its_run_is_failed(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, literal_sft_rows: Callable, tracker: Tracker
):
    rows = literal_sft_rows(8)
    rows[3]["input_ids"][1] = 5_000  # beyond the vocabulary
    run = tracker.start("stage1_sft", params={}, tags={})
    job = make_job(sft_training_of(), rows, run=run)
    with pytest.raises(TrainingFailedError, match=r"the training process ended with \d+") as raised:
        run_training(lambda scratch: job, print)
    assert str(raised.value).endswith("IndexError: index out of range in self")
    assert "in forward\n" in str(raised.value), "with the end of its traceback"
    assert mlflow.MlflowClient(tracking_uri=run.uri).get_run(run.run_id).info.status == "FAILED"
    assert not (job.output / "model.safetensors").exists()


def test_the_worker_dies_within_seconds_when_its_launcher_is_killed(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, launcher_of: Callable[[TrainingJob], subprocess.Popen[str]]
):
    launcher = launcher_of(make_job(sft_training_of(epochs=10_000), tokens=1))
    started = psutil.Process(launcher.pid).children(recursive=True)
    assert running(WORKER, started)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    killed = time.monotonic()
    _, alive = psutil.wait_procs(started, timeout=SECONDS_TO_DIE)
    assert alive == [], f"still there {time.monotonic() - killed:.0f} s later"


def test_an_interrupted_launcher_lets_its_training_save_what_is_done_and_leaves_nothing_running(
    make_job: Callable[..., TrainingJob],
    sft_training_of: Callable,
    launcher_of: Callable[[TrainingJob], subprocess.Popen[str]],
    tracker: Tracker,
):
    run = tracker.start("stage1_sft", params={}, tags={})
    job = make_job(sft_training_of(epochs=10_000), tokens=1, run=run)
    launcher = launcher_of(job)
    started = psutil.Process(launcher.pid).children(recursive=True)
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal sends it, to all of a group
    assert launcher.wait(timeout=60) != 0
    assert list(_still_running(started)) == []
    assert newest_step(job.workspace / "saves") == len(read_history(job.workspace)) > 0
    assert mlflow.MlflowClient(tracking_uri=run.uri).get_run(run.run_id).info.status == "KILLED"


def test_a_training_has_the_seconds_of_its_execution_to_end_when_it_is_asked_to_and_not_torchrun_s_thirty(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, launcher_of: Callable[[TrainingJob], subprocess.Popen[str]]
):
    job = make_job(sft_training_of(epochs=10_000), tokens=1)
    launcher = launcher_of(job.model_copy(update={"execution": job.execution.model_copy(update={"stop_seconds": 3})}))
    started = psutil.Process(launcher.pid).children(recursive=True)
    (worker,) = running(WORKER, started)
    worker.suspend()  # as one that is still saving
    asked = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=60) != 0
    assert 3 <= time.monotonic() - asked < 20
    assert list(_still_running(started)) == []


def test_a_training_that_stands_still_is_ended_and_can_go_on(make_job: Callable[..., TrainingJob], sft_training_of: Callable):
    job = make_job(sft_training_of(epochs=10_000), tokens=1)
    job = job.model_copy(update={"execution": job.execution.model_copy(update={"stall_seconds": 15.0})})
    seen: list[psutil.Process] = []

    def stop_the_worker(progress: Progress) -> None:
        if progress.step and not seen:
            seen.extend(running(WORKER))
            seen[-1].suspend()

    with pytest.raises(TrainingStalledError, match=r"wanted progress, got none for 15 s \(training \d+ of 60,000\); it is ended"):
        run_training(lambda scratch: job, stop_the_worker)
    assert list(_still_running(seen)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_the_kernel_kills_for_its_memory_goes_on_with_half_the_tokens(
    processes: int, make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path
):
    job = make_job(sft_training_of(epochs=10_000), tokens=150)
    job = job.model_copy(update={"execution": job.execution.model_copy(update={"processes": processes, "save_steps": 1})})
    counter = tmp_path / "memory.events"
    counter.write_text("max 3\noom 1\noom_kill 1\n")

    def kill_the_worker(progress: Progress) -> None:
        if newest_step(job.workspace / "saves"):
            counter.write_text("max 9\noom 2\noom_kill 2\n")
            _kill_a_worker()

    with pytest.raises(
        OutOfMemoryError,
        match=r"wanted memory for micro-batches of 150 tokens, .* got SIGKILL, and 1 more oom_kill in .*memory\.events; the next try",
    ):
        run_training(lambda scratch: job, kill_the_worker, counter=KillCounter(counter))
    ended = newest_step(job.workspace / "saves")
    assert ended
    for left in (job.progress, job.error_files / "tokens_per_micro_batch"):
        left.unlink()  # the next try has a folder of its own for them
    begun: list[Progress] = []

    def stop_it(progress: Progress) -> None:
        begun.append(progress)
        _kill_a_worker()

    with pytest.raises(TrainingKilledError):
        run_training(lambda scratch: job, stop_it, counter=KillCounter(counter))
    assert begun[0].done_before == ended, "it went on from its save"
    assert (job.workspace / "tokens_per_micro_batch").read_text() == "75"
    assert (job.error_files / "tokens_per_micro_batch").read_text() == "75", "which the next process took"


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_somebody_else_kills_can_go_on_and_keeps_its_tokens(
    processes: int, make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path
):
    job = make_job(sft_training_of(epochs=10_000), tokens=150)
    job = job.model_copy(update={"execution": job.execution.model_copy(update={"processes": processes})})
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 1\n")
    with pytest.raises(TrainingKilledError, match="the training process ended with 1"):
        run_training(lambda scratch: job, lambda progress: _kill_a_worker(), counter=KillCounter(counter))
    assert not (job.workspace / "tokens_per_micro_batch").exists()


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_two_processes_give_the_curve_of_one(
    kind: str, make_job: Callable[..., TrainingJob], sft_training_of: Callable, dpo_training_of: Callable
):
    training = sft_training_of(loss_type="dft", neftune_noise_alpha=5.0) if kind == "sft" else dpo_training_of()
    curves = []
    for processes in (1, 2):
        job = make_job(training, tokens=150)
        job = job.model_copy(update={"execution": job.execution.model_copy(update={"processes": processes, "save_steps": 5})})
        run_training(lambda scratch, job=job: job, lambda progress: None)
        curves.append(read_history(job.workspace))
        assert newest_step(job.workspace / "saves") == 10
    one, two = curves
    same = {name for name in one[0] if not name.endswith("per_second")} - {"seconds", "padded_tokens"}
    for name in sorted(same):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-4, abs=1e-5), name


def test_two_processes_tell_the_row_that_makes_a_loss_not_finite(make_job: Callable[..., TrainingJob], dpo_training_of: Callable):
    job = make_job(dpo_training_of(), tokens=150)
    assert job.reference is not None
    chosen, rejected = read_reference(job.reference)
    chosen[13] = math.nan
    write_reference(job.reference, chosen, rejected)
    job = job.model_copy(update={"execution": job.execution.model_copy(update={"processes": 2})})
    with pytest.raises(TrainingFailedError, match="wanted a finite loss, got nan; found in: literal row 13; mend these rows"):
        run_training(lambda scratch: job, lambda progress: None)


def test_the_process_that_has_a_reason_is_heard_above_those_that_lost_it(tmp_path: Path):
    lost = Ending(kind="other", message="Connection closed by peer", traceback="", can_be_cut=False)
    write_ending(tmp_path, 0, lost)
    write_ending(tmp_path, 1, Ending(kind="out_of_memory", message="step 3", traceback="", can_be_cut=True))
    write_ending(tmp_path, 2, lost)
    ending = read_ending(tmp_path)
    assert ending is not None
    assert ending.kind == "out_of_memory"


def test_an_error_is_heard_above_those_that_were_stopped_for_it_or_lost_the_one_that_had_it(tmp_path: Path):
    stopped = Ending.of(StoppedError("stopped before the first step, as it was asked to"), "")
    lost = Ending.of(RuntimeError("[.../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:3"), "")
    assert (stopped.kind, lost.kind) == ("stopped", "peer_lost")
    for rank, (ending, heard) in enumerate([(stopped, "stopped"), (lost, "peer_lost"), (Ending.of(IndexError("5,000"), ""), "other")]):
        write_ending(tmp_path, rank, ending)
        write_ending(tmp_path, 9, stopped)
        found = read_ending(tmp_path)
        assert found is not None
        assert found.kind == heard


def test_two_processes_do_the_reference_log_probs_of_one(make_job: Callable[..., TrainingJob], dpo_training_of: Callable, tmp_path: Path):
    job = make_job(dpo_training_of(), tokens=150)
    two = job.execution.model_copy(update={"processes": 2})
    asked = job.model_copy(update={"execution": two, "asks_for": "reference", "reference": None, "output": tmp_path})
    run_training(lambda scratch: asked, lambda progress: None)
    assert job.reference is not None
    for mine, wanted in zip(read_reference(tmp_path), read_reference(job.reference), strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "can_be_cut", "error", "words"),
    [
        ("stopped", False, TrainingKilledError, "it says"),
        ("peer_lost", False, TrainingKilledError, "wanted every process of the group, got one that is gone; its machine says why"),
        ("full_disk", False, FullDiskError, "it says"),
        ("out_of_memory", True, OutOfMemoryError, "it says; the next try cuts the steps into micro-batches of half as many tokens"),
        ("out_of_memory", False, TrainingFailedError, "one sequence alone is too long for this device: lower rendering.max_length"),
        ("other", False, TrainingFailedError, "the end of what it said:\nTraceback"),
    ],
)
def test_an_ending_becomes_the_error_that_says_what_to_do(kind: Any, can_be_cut: bool, error: type[Exception], words: str, tmp_path: Path):
    ending = Ending(kind=kind, message="it says", traceback="Traceback", can_be_cut=can_be_cut)
    failure = failure_of(1, ending, tmp_path / "training.log")
    assert type(failure) is error or (kind == "stopped" and isinstance(failure, error))
    assert words in str(failure)


def _kill_a_worker() -> None:
    """The last of the group, if any is left."""
    for worker in running(WORKER)[-1:]:
        worker.kill()


def _still_running(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    return (process for process in processes if process.is_running())
