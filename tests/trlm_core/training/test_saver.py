"""The saver against a full disk and a training that does not fit: the last good save stays, and the error says what to do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trlm_core.artifacts.full_disk import FullDiskError
from trlm_core.training import saver as saver_module
from trlm_core.training import worker
from trlm_core.training.errors import MicroBatchTooLargeError, read_ending
from trlm_core.training.hardware import BUDGET
from trlm_core.training.job import TrainingJob
from trlm_core.training.saves import newest_good
from trlm_core.training.sft import StepSFTTrainer
from trlm_core.training.worker import StopSignal, train


@pytest.fixture
def job_on(make_job: Callable[..., TrainingJob], sft_training_of: Callable) -> Callable[[Path], TrainingJob]:
    """A job of 12 steps that saves every second, with its workspace in the folder."""

    def make(workspace: Path) -> TrainingJob:
        workspace.mkdir()
        job = make_job(sft_training_of(), workspace=workspace)
        return job.model_copy(update={"execution": job.execution.model_copy(update={"save_steps": 2, "keep_saves": 5})})

    return make


def bytes_of_a_save(job: TrainingJob) -> int:
    train(job, StopSignal())
    found = newest_good(job.workspace / "saves")
    assert found is not None
    return sum(entry.size for entry in found[1].files.values())


@pytest.mark.parametrize(
    ("states", "words"),
    [
        pytest.param(3, r"wanted [\d,]+ bytes for the save of step 6, got [\d,]+ free; the saves before are whole", id="seen before"),
        pytest.param(0, r"wanted more room for the save of step 6, got a full disk", id="met while it is written"),
    ],
)
def test_a_disk_that_fills_keeps_the_last_good_save_and_says_what_to_do(
    states: int,
    words: str,
    job_on: Callable[[Path], TrainingJob],
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    size = bytes_of_a_save(job_on(tmp_path / "roomy"))
    job = job_on(small_disk(round(2.6 * size)) / "workspace")
    monkeypatch.setattr(saver_module, "STATES", states)
    with pytest.raises(FullDiskError, match=words) as raised:
        train(job, StopSignal())
    assert "choose another with --store" in str(raised.value)
    found = newest_good(job.workspace / "saves")
    assert found is not None
    assert found[1].step == 4
    assert not (job.workspace / "aside").exists(), "what was begun is gone"
    small_disk(20 * size)
    train(job, StopSignal())
    assert (job.output / "model.safetensors").exists()


def test_a_micro_batch_that_does_not_fit_is_named_and_the_next_process_cuts_finer(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """torch's own allocator refuses, for micro-batches of more than 60 tokens."""
    inner = StepSFTTrainer.micro_batch_loss

    def greedy(self, model, micro, step):
        if micro.inputs["input_ids"].numel() > 60:
            torch.empty(1 << 58)
        return inner(self, model, micro, step)

    monkeypatch.setattr(StepSFTTrainer, "micro_batch_loss", greedy)
    job = make_job(sft_training_of(), tokens=100_000)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    budgets = []
    while not (job.output / "model.safetensors").exists():
        with pytest.raises(MicroBatchTooLargeError, match=r"step 1: wanted memory for \d sequences of \d+ tokens \(rows \[\d+, "):
            worker.main(str(tmp_path / "job.json"))
        ending = read_ending(job.error_files)
        assert ending is not None
        assert (ending.kind, ending.can_be_cut) == ("out_of_memory", True)
        budgets.append(int((job.workspace / BUDGET).read_text()))
        if budgets[-1] <= 60:
            worker.main(str(tmp_path / "job.json"))
    assert 400 > budgets[0] > 60, "half of what did not fit, however large the budget was"
    assert len(budgets) <= 3


def test_a_process_that_ends_while_its_model_loads_has_not_told_the_budget_of_its_micro_batches(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path
):
    """By it the launcher halves the budget where the kernel kills the process for its memory."""
    job = make_job(sft_training_of(), tokens=96)
    with pytest.raises(ValueError, match="Unrecognized model"):
        worker.make_trainer(job.model_copy(update={"parent": tmp_path}))
    assert not (job.error_files / BUDGET).exists()
    worker.make_trainer(job)
    assert (job.error_files / BUDGET).read_text() == "96"


def test_one_sequence_that_does_not_fit_cannot_be_cut(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(StepSFTTrainer, "micro_batch_loss", lambda self, model, micro, step: torch.empty(1 << 58))
    job = make_job(sft_training_of(), tokens=1)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    with pytest.raises(MicroBatchTooLargeError):
        worker.main(str(tmp_path / "job.json"))
    ending = read_ending(job.error_files)
    assert ending is not None
    assert (ending.kind, ending.can_be_cut) == ("out_of_memory", False)
    assert not (job.workspace / BUDGET).exists()
