"""A training that is killed and taken up again ends as if nothing had happened: curve and weights to the last bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trlm_core.training.checkpoint import read_history, read_lines
from trlm_core.training.errors import read_ending
from trlm_core.training.job import TrainingJob
from trlm_core.training.saves import newest_step

STEPS = 24
KILLS = 10
CURVE = ("loss", "grad_norm", "learning_rate", "entropy", "mean_token_accuracy", "useful_tokens")
WHOLE: dict[str, TrainingJob] = {}
SAVING = {"save_steps": 3, "sample_steps": 5}
# A worker that sends itself a signal in the middle of a step.
WORKER = """
import os, sys
from trlm_core.training import worker

kill_at, number = int(sys.argv[2]), int(sys.argv[3])


def deadly(cls):
    inner = cls.micro_batch_loss

    def loss(self, model, micro, step):
        found = inner(self, model, micro, step)
        if step.index + 1 == kill_at and micro.rows == step.micro_batches[-1].rows:
            os.kill(os.getpid(), number)
        return found

    cls.micro_batch_loss = loss


deadly(worker.StepSFTTrainer)
deadly(worker.StepDPOTrainer)
worker.main(sys.argv[1])
"""


def run(job: TrainingJob, *, kill_at: int = 0, number: int = signal.SIGKILL) -> int:
    """The worker in a process of its own; its exit code."""
    path = job.progress.parent / "job.json"
    path.write_text(job.model_dump_json())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(path), str(kill_at), str(int(number))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode in {0, -number, 143}, done.stderr[-3000:]
    return done.returncode


def curve(folder: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in ("step", *CURVE) if name in line} for line in read_history(folder)]


def weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return load_file(job.output / "model.safetensors")


def assert_same_end(job: TrainingJob, whole: TrainingJob) -> None:
    assert curve(job.workspace) == curve(whole.workspace)
    assert [line["step"] for line in read_lines(job.workspace / "samples.jsonl")] == [
        line["step"] for line in read_lines(whole.workspace / "samples.jsonl")
    ]
    expected = weights(whole)
    assert {name: torch.equal(weight, expected[name]) for name, weight in weights(job).items()} == dict.fromkeys(expected, True)


@pytest.fixture
def job_of(make_job: Callable[..., TrainingJob], sft_training_of: Callable, dpo_training_of: Callable) -> Callable[[str], TrainingJob]:
    """A job of 24 steps that saves every third."""

    def make(kind: str) -> TrainingJob:
        training = sft_training_of(epochs=4, neftune_noise_alpha=5.0) if kind == "sft" else dpo_training_of(epochs=4)
        job = make_job(training, tokens=200)
        return job.model_copy(update={"execution": job.execution.model_copy(update=SAVING)})

    return make


@pytest.fixture
def whole(job_of: Callable[[str], TrainingJob]) -> Callable[[str], TrainingJob]:
    """The same training without an interruption; run once for this file."""

    def ran(kind: str) -> TrainingJob:
        if kind not in WHOLE:
            WHOLE[kind] = job_of(kind)
            assert run(WHOLE[kind]) == 0
        return WHOLE[kind]

    return ran


@pytest.mark.parametrize("kind", [pytest.param("sft"), pytest.param("dpo", marks=pytest.mark.long)])
def test_ten_kills_at_random_steps_change_no_bit(kind: str, job_of: Callable[[str], TrainingJob], whole: Callable[[str], TrainingJob]):
    job = job_of(kind)
    assert len(curve(whole(kind).workspace)) == STEPS
    steps = sorted(random.Random(3).sample(range(2, STEPS + 1), KILLS))
    for step in steps:
        assert run(job, kill_at=step) == -signal.SIGKILL, "it was killed with work unfinished"
        assert not (job.output / "model.safetensors").exists()
        assert newest_step(job.workspace / "saves") == ((step - 1) // 3 * 3 or None)
    assert run(job) == 0
    assert_same_end(job, whole(kind))


def test_sigterm_saves_what_is_done_in_the_middle_of_a_step_and_the_rest_is_the_same(
    job_of: Callable[[str], TrainingJob], whole: Callable[[str], TrainingJob]
):
    job = job_of("sft")
    assert run(job, kill_at=11, number=signal.SIGTERM) == 143
    assert newest_step(job.workspace / "saves") in {10, 11}, "not only the regular ones: 9 was the last"
    ending = read_ending(job.error_files)
    assert ending is not None
    assert ending.kind == "stopped"
    assert run(job) == 0
    assert_same_end(job, whole("sft"))


def test_sigterm_in_the_last_step_saves_that_too(job_of: Callable[[str], TrainingJob], whole: Callable[[str], TrainingJob]):
    job = job_of("sft")
    assert run(job, kill_at=STEPS, number=signal.SIGTERM) == 143
    assert newest_step(job.workspace / "saves") in {STEPS - 1, STEPS}
    assert run(job) == 0
    assert_same_end(job, whole("sft"))


def test_a_damaged_newest_save_is_passed_over_and_the_end_is_the_same(
    job_of: Callable[[str], TrainingJob], whole: Callable[[str], TrainingJob]
):
    job = job_of("sft")
    assert run(job, kill_at=17) == -signal.SIGKILL
    newest = job.workspace / "saves" / "step-000015" / "optimizer.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (job.workspace / "history.jsonl").write_text("")  # as a kill in the middle of a resume might have left it
    assert run(job) == 0
    assert newest_step(job.workspace / "saves") == 21
    assert_same_end(job, whole("sft"))


def test_a_finer_cut_goes_on_with_the_same_sequences(job_of: Callable[[str], TrainingJob], whole: Callable[[str], TrainingJob]):
    """What is execution may change between a kill and the next try."""
    job = job_of("sft")
    assert run(job, kill_at=13) == -signal.SIGKILL
    cut = job.model_copy(update={"execution": job.execution.model_copy(update={"tokens_per_micro_batch": 60})})
    assert run(cut) == 0
    losses = [[line["loss"] for line in read_history(each.workspace)] for each in (job, whole("sft"))]
    assert losses[0][:12] == losses[1][:12]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_saves_by_time_are_made_whatever_the_steps(make_job: Callable[..., TrainingJob], sft_training_of: Callable):
    job = make_job(sft_training_of(epochs=4), tokens=200)
    job = job.model_copy(update={"execution": job.execution.model_copy(update={"save_seconds": 1e-3, "keep_saves": 100})})
    began = time.monotonic()
    assert run(job) == 0
    assert time.monotonic() - began > 1e-3
    saved = sorted(int(folder.name[5:]) for folder in (job.workspace / "saves").iterdir())
    assert saved == list(range(1, STEPS)), "after the last step there is the checkpoint itself"
