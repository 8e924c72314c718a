"""Sharded weights change where numbers lie and none of them: the curve of one process, and files that any other training reads."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trlm_core.training.checkpoint import read_history, read_lines
from trlm_core.training.job import TrainingJob
from trlm_core.training.launch import run_training
from trlm_core.training.reference import read_reference
from trlm_core.training.saves import newest_step, save_folder
from trlm_core.training.watch import Progress

HALF, WHOLE = 6, 12  # steps
SHARDED = {"processes": 2, "sharding": "full"}
UNINTERRUPTED: list[dict[str, Any]] = []
SAMPLER = """
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training import samples
from trlm_core.training.checkpoint import load_model
from trlm_core.training.sharding import shard

base, tokenizer, meeting, rank, tokens = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2, timeout=timedelta(seconds=20))
model = load_model(Path(base), "float32")
shard(model, "cpu")
samples.NEW_TOKENS = {"cpu": int(tokens)}
samples.Samples(Path(meeting).parent, load_tokenizer(Path(tokenizer)), None, 1)._sample(model, 1)
"""


def on(job: TrainingJob, **execution: Any) -> TrainingJob:
    return job.model_copy(update={"execution": job.execution.model_copy(update=execution)})


def run(job: TrainingJob, *, done_before: int = 0) -> list[dict[str, Any]]:
    seen: list[Progress] = []
    job.progress.unlink(missing_ok=True)  # of the run before; a launcher's own is a new one
    run_training(lambda scratch: job, seen.append)
    assert {progress.done_before for progress in seen} == {done_before}
    return read_history(job.workspace)


def assert_same_curve(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert len(one) == len(other) == WHOLE
    same = {name for name in one[0] if not name.endswith("per_second")} - {"seconds", "padded_tokens"}
    for name in sorted(same):
        assert [line[name] for line in other] == pytest.approx([line[name] for line in one], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_two_processes_with_half_of_the_weights_each_give_curve_and_checkpoint_of_one_with_all(
    kind: str, make_job: Callable[..., TrainingJob], sft_training_of: Callable, dpo_training_of: Callable
):
    training = sft_training_of(loss_type="dft", neftune_noise_alpha=5.0) if kind == "sft" else dpo_training_of()
    one, two = (make_job(training, tokens=150) for _ in range(2))
    assert_same_curve(run(one), run(on(two, **SHARDED)))
    assert (two.output / "config.json").read_text() == (one.output / "config.json").read_text()
    expected, got = (load_file(job.output / "model.safetensors") for job in (one, two))
    assert got.keys() == expected.keys()
    assert {name for name in got if (got[name] - expected[name]).abs().max() > 1e-5} == set()
    samples = [[line["reply"] for line in read_lines(job.workspace / "samples.jsonl")] for job in (one, two)]
    assert samples[1] == samples[0]


def test_samples_of_a_sharded_model_end_where_one_process_s_replies_end_before_the_other_s(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path
):
    """As where a sum of another order turns a greedy token into another."""
    job = make_job(sft_training_of())
    command = [sys.executable, "-c", SAMPLER, str(job.parent), str(job.dataset / "tokenizer"), str(tmp_path / "meeting")]
    both = [subprocess.Popen([*command, str(rank), tokens]) for rank, tokens in enumerate(("2", "8"))]
    assert [process.wait(timeout=120) for process in both] == [0, 0]


@pytest.fixture
def whole(make_job: Callable[..., TrainingJob], sft_training_of: Callable) -> list[dict[str, Any]]:
    """The curve of one process that nothing interrupts; run once for this file."""
    if not UNINTERRUPTED:
        UNINTERRUPTED.extend(run(make_job(sft_training_of(), tokens=150)))
    return UNINTERRUPTED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(SHARDED, {"processes": 1}, id="sharded to one"),
        pytest.param({"processes": 1}, SHARDED, id="one to sharded"),
        pytest.param(SHARDED, {"processes": 2}, id="sharded to two whole", marks=pytest.mark.long),
        pytest.param(SHARDED, SHARDED, id="sharded to sharded", marks=pytest.mark.long),
    ],
)
def test_a_save_goes_on_however_the_weights_lie(
    before: dict[str, Any],
    after: dict[str, Any],
    whole: list[dict[str, Any]],
    make_job: Callable[..., TrainingJob],
    sft_training_of: Callable,
):
    job = make_job(sft_training_of(), tokens=150)
    run(on(job, save_steps=HALF, **before))
    assert newest_step(job.workspace / "saves") == HALF
    assert_same_curve(whole, run(on(job, **after), done_before=HALF))


def test_a_sharded_save_has_the_files_and_the_numbers_of_a_whole_one(make_job: Callable[..., TrainingJob], sft_training_of: Callable):
    found = []
    for execution in ({"processes": 1}, SHARDED):
        job = make_job(sft_training_of(), tokens=150)
        run(on(job, save_steps=HALF, **execution))
        folder = save_folder(job.workspace / "saves", HALF)
        found.append((load_file(folder / "model.safetensors"), torch.load(folder / "optimizer.pt", weights_only=True)))
    (weights, states), (sharded_weights, sharded_states) = found
    assert {name: weight.shape for name, weight in sharded_weights.items()} == {name: weight.shape for name, weight in weights.items()}
    assert sharded_states["param_groups"] == states["param_groups"]
    assert sharded_states["state"].keys() == states["state"].keys()
    for index, state in states["state"].items():
        for name, value in state.items():
            assert torch.allclose(sharded_states["state"][index][name], value, rtol=1e-3, atol=1e-7), (index, name)


def test_reference_log_probs_of_a_sharded_model_are_those_of_a_whole_one(
    make_job: Callable[..., TrainingJob], dpo_training_of: Callable, literal_dpo_rows: Callable, tmp_path: Any
):
    job = make_job(dpo_training_of(), literal_dpo_rows(9), tokens=1)  # nine forwards: one process has a fifth, the other has none
    asked = on(job, **SHARDED).model_copy(update={"asks_for": "reference", "reference": None, "output": tmp_path})
    run_training(lambda scratch: asked, lambda progress: None)
    assert job.reference is not None
    for mine, wanted in zip(read_reference(tmp_path), read_reference(job.reference), strict=True):
        assert mine == pytest.approx(wanted, rel=1e-5)
