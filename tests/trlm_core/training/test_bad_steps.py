"""Bad steps: told before the optimizer moves, by the provenance of their rows; stopped at or left out, never a silent 0."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.bad_steps import BadSteps
from trlm_core.training.batching import MicroBatch, StepBatch
from trlm_core.training.checkpoint import read_history
from trlm_core.training.errors import BadStepError
from trlm_core.training.job import TrainingJob
from trlm_core.training.reference import read_reference, write_reference
from trlm_core.training.suspects import Suspects, joined, suspects_in, whole_step
from trlm_core.training.worker import StopSignal, make_trainer, train

ROW = 11  # of the literal rows


def step_of(index: int, loss_units: int = 5) -> StepBatch:
    return StepBatch(index=index, micro_batches=[], rows=[3, 1], loss_units=loss_units, useful_tokens=9, padded_tokens=9)


def is_bad(bad: BadSteps, step: StepBatch, loss: float, norm: float, suspects: Suspects | None = None) -> bool:
    return bad.is_bad(step, loss, norm, lambda: suspects or whole_step(step))


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
        is_bad(bad, step_of(6, loss_units), loss, norm)


def test_a_bad_step_is_kept_on_record_where_the_recipe_says_skip():
    bad, skipped = judge("skip")
    assert is_bad(bad, step_of(6), math.nan, 1.0)
    assert not is_bad(bad, step_of(7), 0.7, 1.0)
    assert skipped == [{"step": 7, "why": "wanted a finite loss, got nan", "scope": "step", "rows": ["source row 3", "source row 1"]}]


@pytest.mark.parametrize(
    ("suspects", "words"),
    [
        (Suspects("row", [1]), "got nan; found in: source row 1; mend"),
        (Suspects("micro-batch", [1]), "got nan; the rows of its micro-batch: source row 1; mend"),
        (Suspects("step", [3, 1]), "got nan; its rows: source row 3, source row 1; mend"),
    ],
)
def test_what_is_not_finite_is_told_by_the_rows_that_it_was_found_in(suspects: Suspects, words: str):
    bad, _ = judge()
    with pytest.raises(BadStepError, match=words):
        is_bad(bad, step_of(6), math.nan, 1.0, suspects)


def test_a_gradient_over_its_range_stays_the_whole_step_s():
    bad, skipped = judge("skip", 10.0)
    bad.remember([2.0] * 16)
    assert is_bad(bad, step_of(16), 0.7, 21.0, Suspects("row", [1]))
    assert (skipped[0]["scope"], skipped[0]["rows"]) == ("step", ["source row 3", "source row 1"])


@pytest.mark.parametrize(
    ("losses", "unfit", "suspects"),
    [
        ([0.1, math.nan, 0.2], set(), Suspects("micro-batch", [4, 5])),  # as it was seen, though it does not come again
        ([0.1, math.nan, 0.2], {5}, Suspects("row", [5])),
        ([0.1, math.inf, math.nan], {5}, Suspects("micro-batch", [5, 6])),
        ([0.1, 0.1, 0.2], {4, 6}, Suspects("row", [4, 6])),
        ([0.1, 0.1, 0.2], set(), Suspects("step", [6, 5, 4, 3, 2])),
        ([math.nan] * 3, {2, 3, 4, 5, 6}, Suspects("step", [6, 5, 4, 3, 2])),  # it is the weights
    ],
)
def test_suspects_are_as_few_rows_as_can_be_told(losses: list[float], unfit: set[int], suspects: Suspects):
    micros = [MicroBatch({}, rows, 0.1) for rows in ([2, 3], [4, 5], [6])]
    step = StepBatch(index=0, micro_batches=micros, rows=[6, 5, 4, 3, 2], loss_units=5, useful_tokens=9, padded_tokens=9)
    found = suspects_in(
        step, losses, lambda micro: unfit.isdisjoint(micro.rows), lambda micro: [MicroBatch({}, [row], 0.1) for row in micro.rows]
    )
    assert joined(step, [found]) == suspects
    assert joined(step, [Suspects("row", []), found]) == suspects, "beside a process that found none"


def test_a_gradient_is_measured_by_the_median_of_the_good_ones_once_there_are_enough():
    bad, skipped = judge("skip", 10.0)
    assert not is_bad(bad, step_of(0), 0.7, 500.0), "nothing to measure it by"
    for index in range(1, 16):
        assert not is_bad(bad, step_of(index), 0.7, 2.0)
    assert not is_bad(bad, step_of(16), 0.7, 20.0)
    assert is_bad(bad, step_of(17), 0.7, 20.1)
    assert skipped[0]["why"] == "wanted a gradient norm of at most 10 times the usual 2, got 20.1"
    for index in range(18, 30):
        assert is_bad(bad, step_of(index), 0.7, 21.0), "bad ones do not become the usual"


def test_skipping_ends_where_it_is_the_training_and_not_its_rows():
    bad, skipped = judge("skip")
    assert not is_bad(bad, step_of(0), 0.7, 1.0)
    for index in range(1, 17):
        assert is_bad(bad, step_of(index), math.nan, 1.0)
    with pytest.raises(BadStepError, match="step 18: wanted a finite loss, got nan; so were the 16 before: it is the training"):
        is_bad(bad, step_of(17), math.nan, 1.0)
    assert len(skipped) == 16


def test_a_resumed_training_measures_by_the_norms_that_it_has_behind_it():
    bad, _ = judge("skip", 10.0)
    bad.remember([2.0] * 16)
    assert is_bad(bad, step_of(16), 0.7, 21.0)


def test_a_skipped_step_moves_no_weight_and_the_next_one_does(make_job: Callable, sft_training_of: Callable):
    """Weight decay and momentum are left out too."""
    job = make_job(sft_training_of(bad_steps="skip", weight_decay=0.1))
    trainer = make_trainer(job)
    weights: list[dict[str, torch.Tensor]] = []
    _poison(trainer, lambda micro, step: step.index == 4)
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
    (line,) = _skipped(job)
    assert line["step"] == 5
    assert len(line["rows"]) == 8


def test_its_loss_is_logged_as_it_is(make_job: Callable, sft_training_of: Callable):
    job = make_job(sft_training_of(bad_steps="skip"))
    trainer = make_trainer(job)
    _poison(trainer, lambda micro, step: step.index == 4)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert [math.isnan(loss) for loss in losses] == [step == 4 for step in range(12)]


def test_a_row_that_makes_a_loss_not_finite_is_told_from_all_others(make_job: Callable, dpo_training_of: Callable):
    """A pair whose reference log-prob is not a number."""
    job = make_job(dpo_training_of(bad_steps="skip"), tokens=200)
    chosen, rejected = read_reference(job.reference)
    chosen[ROW] = math.nan
    write_reference(job.reference, chosen, rejected)
    trainer = make_trainer(job)
    trainer.train()
    assert [line["rows"] for line in _skipped(job)] == [[f"literal row {ROW}"]] * 2, "once an epoch"
    assert {line["scope"] for line in _skipped(job)} == {"row"}


def test_a_row_whose_gradient_alone_is_not_finite_is_told(make_job: Callable, sft_training_of: Callable):
    trainer = make_trainer(make_job(sft_training_of(neftune_noise_alpha=5.0), tokens=96))
    _poison(trainer, lambda micro, step: ROW in micro.rows, _Overflowing.apply)
    with pytest.raises(BadStepError, match=rf"wanted a finite gradient, got a norm of (nan|inf); found in: literal row {ROW}; mend"):
        trainer.train()


def test_where_no_row_does_it_alone_its_micro_batch_is_told(make_job: Callable, sft_training_of: Callable):
    job = make_job(sft_training_of(bad_steps="skip", epochs=1), tokens=96)
    trainer = make_trainer(job)
    _poison(trainer, lambda micro, step: ROW in micro.rows and len(micro.rows) > 1)
    trainer.train()
    (line,) = _skipped(job)
    step = trainer.step_dataset[line["step"] - 1]
    (micro,) = [micro for micro in step.micro_batches if ROW in micro.rows]
    assert line["scope"] == "micro-batch"
    assert line["rows"] == [f"literal row {row}" for row in sorted(micro.rows)]
    assert 1 < len(line["rows"]) < 8


def test_looking_for_the_rows_leaves_every_other_number_as_it_is(make_job: Callable, sft_training_of: Callable):
    """The same step is skipped, told by its row in one training and by all of its rows in the other."""
    curves = []
    for is_poisoned in (lambda micro, step: ROW in step.rows, lambda micro, step: ROW in micro.rows):
        job = make_job(sft_training_of(bad_steps="skip", epochs=1, neftune_noise_alpha=5.0), tokens=96)
        trainer = make_trainer(job)
        _poison(trainer, is_poisoned)
        trainer.train()
        names = ("learning_rate", "entropy", "mean_token_accuracy", "num_tokens", "useful_tokens", "padded_tokens")
        curves.append(
            [{name: line[name] for name in names} | {"loss": str(line["loss"])} for line in trainer.state.log_history if "loss" in line]
        )
        assert len(_skipped(job)) == 1
    assert curves[0] == curves[1]


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
    _poison(trainer, lambda micro, step: step.index == 0)
    with pytest.raises(BadStepError, match=r"step 1: wanted a finite loss, got nan; its rows: literal row \d+, "):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not _moved(before, dict(trainer.model.named_parameters()))  # type: ignore[union-attr]


def _moved(before: dict[str, torch.Tensor], after: dict[str, Any]) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def _skipped(job: TrainingJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (job.workspace / "skipped_steps.jsonl").read_text().splitlines()]


class _Overflowing(torch.autograd.Function):
    """As it is forward, and beyond any float backward."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * math.inf


def _poison(
    trainer: Any,
    is_poisoned: Callable[[MicroBatch, StepBatch], bool],
    poison: Callable[[torch.Tensor], Any] = lambda loss: loss * math.nan,
) -> None:
    """Make the loss of some micro-batches not a number, gradient and all."""
    inner = trainer.micro_batch_loss

    def poisoned(model: Any, micro: MicroBatch, step: StepBatch) -> torch.Tensor:
        loss = inner(model, micro, step)
        return poison(loss) if is_poisoned(micro, step) else loss

    trainer.micro_batch_loss = poisoned
