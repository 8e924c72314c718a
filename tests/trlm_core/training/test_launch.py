"""Trainings in processes of their own, for real: a good end, a bad end, and the end of their launcher."""

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

from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Recipe, Stage
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.tracking import Tracker
from trlm_core.training.checkpoint import load_model, read_history
from trlm_core.training.job import TrainingJob
from trlm_core.training.launch import TrainingFailedError, run_training
from trlm_core.training.watch import Progress

STEPS = 12
CPU = Execution(device="cpu")
WORKER = "trlm_core.training.worker"
SECONDS_TO_DIE = 15
LAUNCHER = """
import sys
from pathlib import Path
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Stage
from trlm_core.training.launch import run_training

stage, *folders = sys.argv[1:]
dataset, parent, output = map(Path, folders)
run_training(
    Stage.model_validate_json(stage), Execution(device="cpu", tokens_per_micro_batch=1), dataset=dataset, parent=parent, output=output,
    run=None, on_progress=lambda progress: print(progress.step, flush=True),
)
"""


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifacts=tmp_path / "mlruns")


@pytest.fixture
def stage_of(tiny_recipe: Recipe) -> Callable[[Any], Stage]:
    return lambda training: tiny_recipe.stages[0].model_copy(update={"training": training})


def test_a_training_leaves_a_checkpoint_its_history_and_a_finished_run_with_every_step(
    make_job: Callable[..., TrainingJob], stage_of: Callable, sft_training_of: Callable, tracker: Tracker
):
    job = make_job(sft_training_of(neftune_noise_alpha=0.01))
    run = tracker.start("stage1_sft", params={}, tags={})
    seen: list[Progress] = []
    run_training(stage_of(job.training), CPU, dataset=job.dataset, parent=job.parent, output=job.output, run=run, on_progress=seen.append)
    history = read_history(job.output)
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
    make_job: Callable[..., TrainingJob], stage_of: Callable, sft_training_of: Callable, literal_sft_rows: Callable, tracker: Tracker
):
    rows = literal_sft_rows(8)
    rows[3]["input_ids"][1] = 5_000  # beyond the vocabulary
    job = make_job(sft_training_of(), rows)
    run = tracker.start("stage1_sft", params={}, tags={})
    with pytest.raises(TrainingFailedError, match=r"the training process ended with \d+") as raised:
        run_training(stage_of(job.training), CPU, dataset=job.dataset, parent=job.parent, output=job.output, run=run, on_progress=print)
    assert str(raised.value).endswith("IndexError: index out of range in self")
    assert "in forward\n" in str(raised.value), "with the end of its traceback"
    assert mlflow.MlflowClient(tracking_uri=run.uri).get_run(run.run_id).info.status == "FAILED"
    assert not (job.output / "model.safetensors").exists()


def test_the_worker_dies_within_seconds_when_its_launcher_is_killed(
    make_job: Callable[..., TrainingJob], stage_of: Callable, sft_training_of: Callable
):
    job = make_job(sft_training_of(epochs=10_000))
    arguments = [stage_of(job.training).model_dump_json(), str(job.dataset), str(job.parent), str(job.output)]
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, *arguments], stdout=subprocess.PIPE, text=True)
    started: list[psutil.Process] = []
    try:
        assert launcher.stdout is not None
        assert any(int(line) > 0 for line in launcher.stdout), "it trains"
        started = psutil.Process(launcher.pid).children(recursive=True)
        assert [process for process in started if WORKER in process.cmdline()]
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
        killed = time.monotonic()
        _, alive = psutil.wait_procs(started, timeout=SECONDS_TO_DIE)
        assert alive == [], f"still there {time.monotonic() - killed:.0f} s later"
    finally:
        for process in _still_running(started):
            process.kill()
        launcher.kill()
        launcher.wait()


def _still_running(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    return (process for process in processes if process.is_running())
