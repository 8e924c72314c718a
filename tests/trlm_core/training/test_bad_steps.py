"""Bad steps: told before the optimizer moves, by the provenance of their rows; stopped at or left out, never a silent 0."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.bad_steps import BadSteps
from trlm_core.training.batching import StepBatch
from trlm_core.training.checkpoint import read_history
from trlm_core.training.errors import BadStepError
from trlm_core.training.worker import StopSignal, make_trainer, train

ROW = 11  # of the literal rows


def step_of(index: int, loss_units: int = 5) -> StepBatch:
    return StepBatch(index=index, micro_batches=[], rows=[3, 1], loss_units=loss_units, useful_tokens=9, padded_tokens=9)


def judge(action: Any = "stop", ratio: float | None = None) -> tuple[BadSteps, list[dict[str, Any]]]:
    skipped: list[dict[str, Any]] = []
    return BadSteps(action, ratio, lambda row: f"source row {row}", skipped.append), skipped


@pytest.mark.parametrize(
    ("loss_units", "loss", "norm", "words"),
    [
        (5, math.nan, 1.0, "wanted a finite loss, got nan"),
        (5, math.inf, 1.0, "wanted a finite loss, got inf"),
        (5, 0.7, math.nan, "wanted a finite gradient, got a norm of nan"),
        (0, math.nan, 0.0, "wanted labels, got not a single one"),
    ],
)
def test_a_bad_step_stops_with_its_rows_where_the_recipe_says_stop(loss_units: int, loss: float, norm: float, words: str):
    bad, _ = judge()
    with pytest.raises(BadStepError, match=f"^step 7: {words}; its rows: source row 3, source row 1; mend these rows"):
        bad.is_bad(step_of(6, loss_units), loss, norm)


def test_a_bad_step_is_kept_on_record_where_the_recipe_says_skip():
    bad, skipped = judge("skip")
    assert bad.is_bad(step_of(6), math.nan, 1.0)
    assert not bad.is_bad(step_of(7), 0.7, 1.0)
    assert skipped == [{"step": 7, "why": "wanted a finite loss, got nan", "rows": ["source row 3", "source row 1"]}]


def test_a_gradient_is_measured_by_the_median_of_the_good_ones_once_there_are_enough():
    bad, skipped = judge("skip", 10.0)
    assert not bad.is_bad(step_of(0), 0.7, 500.0), "nothing to measure it by"
    for index in range(1, 16):
        assert not bad.is_bad(step_of(index), 0.7, 2.0)
    assert not bad.is_bad(step_of(16), 0.7, 20.0)
    assert bad.is_bad(step_of(17), 0.7, 20.1)
    assert skipped[0]["why"] == "wanted a gradient norm of at most 10 times the usual 2, got 20.1"
    for index in range(18, 30):
        assert bad.is_bad(step_of(index), 0.7, 21.0), "bad ones do not become the usual"


def test_skipping_ends_where_it_is_the_training_and_not_its_rows():
    bad, skipped = judge("skip")
    assert not bad.is_bad(step_of(0), 0.7, 1.0)
    for index in range(1, 17):
        assert bad.is_bad(step_of(index), math.nan, 1.0)
    with pytest.raises(BadStepError, match="step 18: wanted a finite loss, got nan; so were the 16 before: it is the training"):
        bad.is_bad(step_of(17), math.nan, 1.0)
    assert len(skipped) == 16


def test_a_resumed_training_measures_by_the_norms_that_it_has_behind_it():
    bad, _ = judge("skip", 10.0)
    bad.remember([2.0] * 16)
    assert bad.is_bad(step_of(16), 0.7, 21.0)


def test_a_skipped_step_moves_no_weight_and_the_next_one_does(make_job: Callable, sft_training_of: Callable):
    """Weight decay and momentum are left out too."""
    job = make_job(sft_training_of(bad_steps="skip", weight_decay=0.1))
    trainer = make_trainer(job)
    weights: list[dict[str, torch.Tensor]] = []
    _poison(trainer, at_step=4)
    inner = trainer.training_step

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        weights.append({name: weight.detach().clone() for name, weight in trainer.model.named_parameters()})  # type: ignore[union-attr]
        return inner(*args, **kwargs)

    trainer.training_step = watched  # type: ignore[method-assign]
    trainer.train()
    assert len(weights) == 12
    assert _moved(weights[3], weights[4])
    assert not _moved(weights[4], weights[5])
    assert _moved(weights[5], weights[6])
    (line,) = [json.loads(line) for line in (job.workspace / "skipped_steps.jsonl").read_text().splitlines()]
    assert line["step"] == 5
    assert len(line["rows"]) == 8


def test_its_loss_is_logged_as_it_is(make_job: Callable, sft_training_of: Callable):
    job = make_job(sft_training_of(bad_steps="skip"))
    trainer = make_trainer(job)
    _poison(trainer, at_step=4)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert [math.isnan(loss) for loss in losses] == [step == 4 for step in range(12)]


def test_a_step_without_a_single_label_is_told_by_its_rows_and_never_a_loss_of_0(
    make_job: Callable, sft_training_of: Callable, literal_sft_rows: Callable
):
    rows = [row if number < 8 else {**row, "labels": [IGNORED] * len(row["labels"])} for number, row in enumerate(literal_sft_rows(16))]
    trainer = make_trainer(make_job(sft_training_of(epochs=1, sequences_per_step=1), rows))
    with pytest.raises(BadStepError, match=r"wanted labels, got not a single one; its rows: literal row (8|9|1\d)"):
        trainer.train()
    skipping = make_job(sft_training_of(epochs=1, sequences_per_step=1, bad_steps="skip"), rows)
    train(skipping, StopSignal())
    history = read_history(skipping.workspace)
    assert sum(math.isnan(line["loss"]) for line in history) == 8
    assert 0.0 not in [line["loss"] for line in history]


def test_nan_in_a_loss_stops_before_the_optimizer_moves_and_names_the_rows(make_job: Callable, sft_training_of: Callable):
    trainer = make_trainer(make_job(sft_training_of(), tokens=96))
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}  # type: ignore[union-attr]
    _poison(trainer, at_step=0)
    with pytest.raises(BadStepError, match=r"step 1: wanted a finite loss, got nan; its rows: literal row \d+, "):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not _moved(before, dict(trainer.model.named_parameters()))  # type: ignore[union-attr]


def _moved(before: dict[str, torch.Tensor], after: dict[str, Any]) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def _poison(trainer: Any, at_step: int) -> None:
    """Make one micro-batch's loss of that step not a number, gradient and all."""
    inner = trainer.micro_batch_loss

    def poisoned(model: Any, micro: Any, step: Any) -> torch.Tensor:
        loss = inner(model, micro, step)
        return loss * float("nan") if step.index == at_step else loss

    trainer.micro_batch_loss = poisoned
