"""Losses and gradients of a whole step: the same however the step is cut, and equal to the published formulas."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.sft import sft_steps
from trlm_core.training.worker import make_trainer

WHOLE, SINGLE = 10_000, 1  # tokens of a micro-batch: 1 x 8 and 8 x 1
CLOSE = 1e-5


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
@pytest.mark.parametrize("alpha", [None, 5.0])
def test_sft_1_x_8_equals_8_x_1_in_every_loss_and_in_the_final_weights(
    loss_type: str, alpha: float | None, train_tiny: Callable, sft_training_of: Callable
):
    training = sft_training_of(loss_type=loss_type, neftune_noise_alpha=alpha)
    whole, single = (train_tiny(training, tokens=tokens) for tokens in (WHOLE, SINGLE))
    _assert_same(whole, single, ["loss", "grad_norm", "entropy", "mean_token_accuracy", "useful_tokens"])
    assert whole.curve("padded_tokens") != single.curve("padded_tokens"), "they are cut differently"
    assert single.curve("padded_tokens") == single.curve("useful_tokens"), "a sequence alone has no pad"


@pytest.mark.parametrize("loss_type", ["apo_zero", "sigmoid"])
def test_dpo_1_x_8_equals_8_x_1_in_every_loss_and_in_the_final_weights(loss_type: str, train_tiny: Callable, dpo_training_of: Callable):
    training = dpo_training_of(loss_type=loss_type)
    whole, single = (train_tiny(training, tokens=tokens) for tokens in (WHOLE, SINGLE))
    names = ["loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "entropy", "logps/chosen"]
    _assert_same(whole, single, [*names, "mean_token_accuracy", "useful_tokens"])
    assert whole.curve("padded_tokens") != single.curve("padded_tokens")


def test_weighting_micro_batches_by_rows_instead_of_tokens_would_be_seen(
    tiny_model: PreTrainedModel, literal_sft_rows: Callable, make_job: Callable, sft_training_of: Callable
):
    rows = literal_sft_rows(8)
    (step,) = sft_steps(rows, [list(range(8))], pad=2, tokens_per_micro_batch=SINGLE, laid=False)
    means = [-_label_log_probs(tiny_model, rows[row]).mean().item() for micro in step.micro_batches for row in micro.rows]
    by_tokens = sum(mean * micro.share for mean, micro in zip(means, step.micro_batches, strict=True))
    by_rows = sum(means) / len(means)
    assert abs(by_tokens - by_rows) > 1e-4
    trainer = make_trainer(make_job(sft_training_of(), rows, tokens=SINGLE))
    assert float(trainer.training_step(trainer.model, step)) == pytest.approx(by_tokens, abs=CLOSE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("loss_type", "formula"),
    [
        ("nll", lambda log_probs: -log_probs.mean()),
        ("dft", lambda log_probs: -(log_probs.exp().detach() * log_probs).mean()),  # arXiv 2508.05629
    ],
)
def test_an_sft_step_s_loss_and_gradient_are_those_of_its_formula(
    loss_type: str,
    formula: Callable,
    tiny_model: PreTrainedModel,
    make_job: Callable,
    sft_training_of: Callable,
    literal_sft_rows: Callable,
):
    rows = literal_sft_rows(8)
    trainer = make_trainer(make_job(sft_training_of(loss_type=loss_type), rows, tokens=96))
    step = trainer.step_dataset[0]
    assert len(step.micro_batches) > 2
    loss = trainer.training_step(trainer.model, step)  # type: ignore[arg-type]
    expected = formula(torch.cat([_label_log_probs(tiny_model, rows[row]) for micro in step.micro_batches for row in micro.rows]))
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), abs=CLOSE)
    _assert_same_gradient(trainer.model, tiny_model)


@pytest.mark.parametrize(
    ("loss_type", "formula"),
    [
        ("apo_zero", lambda chosen, rejected: 1 - torch.sigmoid(chosen) + torch.sigmoid(rejected)),  # arXiv 2408.06266
        ("sigmoid", lambda chosen, rejected: -torch.nn.functional.logsigmoid(chosen - rejected)),  # arXiv 2305.18290
    ],
)
def test_a_dpo_step_s_loss_and_gradient_are_those_of_its_formula(
    loss_type: str,
    formula: Callable,
    tiny_model: PreTrainedModel,
    make_job: Callable,
    dpo_training_of: Callable,
    literal_dpo_rows: Callable,
):
    rows, beta = literal_dpo_rows(8), 0.3
    trainer = make_trainer(make_job(dpo_training_of(loss_type=loss_type, beta=beta), rows, tokens=150))
    reference = {key: [_reply_log_prob(tiny_model, row, key).item() for row in rows] for key in ("chosen_ids", "rejected_ids")}
    _disturb(trainer.model)
    _disturb(tiny_model)
    loss = trainer.training_step(trainer.model, trainer.step_dataset[0])  # type: ignore[arg-type]
    rewards = [
        torch.stack([beta * (_reply_log_prob(tiny_model, row, key) - was) for row, was in zip(rows, reference[key], strict=True)])
        for key in ("chosen_ids", "rejected_ids")
    ]
    expected = formula(*rewards).mean()
    expected.backward()
    assert abs(float(expected) - (1.0 if loss_type == "apo_zero" else 0.6931472)) > 1e-3, "away from the start"
    assert float(loss) == pytest.approx(float(expected), abs=CLOSE)
    _assert_same_gradient(trainer.model, tiny_model)


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-5), ("bf16_mixed", 1e-2)])
def test_apo_zero_starts_at_1_and_rewards_at_0(precision: str, near: float, train_tiny: Callable, dpo_training_of: Callable):
    trained = train_tiny(dpo_training_of(precision=precision, epochs=1, sequences_per_step=48), tokens=200)
    assert trained.curve() == [pytest.approx(1.0, abs=near)]
    assert trained.curve("rewards/margins") == [pytest.approx(0.0, abs=near)]


def test_a_dpo_trainer_keeps_the_rows_token_ids_and_knows_the_parent_s_log_probs(
    tiny_model: PreTrainedModel, make_job: Callable, dpo_training_of: Callable, literal_dpo_rows: Callable
):
    rows = literal_dpo_rows(8)
    trainer = make_trainer(make_job(dpo_training_of(), rows, tokens=150))
    kept = trainer.train_dataset.to_list()  # type: ignore[union-attr]
    for row, mine in zip(rows, kept, strict=True):
        assert (mine["prompt_ids"], mine["chosen_ids"], mine["rejected_ids"]) == (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"])
        assert mine["ref_chosen_logps"] == pytest.approx(_reply_log_prob(tiny_model, row, "chosen_ids").item(), abs=1e-3)
        assert mine["ref_rejected_logps"] == pytest.approx(_reply_log_prob(tiny_model, row, "rejected_ids").item(), abs=1e-3)


def _assert_same(left: Any, right: Any, names: list[str]) -> None:
    assert len(left.history) >= 10
    for name in names:
        assert left.curve(name) == pytest.approx(right.curve(name), abs=CLOSE, rel=CLOSE), name
    for name, weight in left.weights().items():
        torch.testing.assert_close(weight, right.weights()[name], atol=CLOSE, rtol=0, msg=name)


def _assert_same_gradient(left: Any, right: Any) -> None:
    expected = dict(right.named_parameters())
    for name, weight in left.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, atol=CLOSE, rtol=1e-4)


def _label_log_probs(model: PreTrainedModel, row: dict[str, Any]) -> torch.Tensor:
    labels_L = torch.tensor(row["labels"][1:])
    log_probs_LV = torch.log_softmax(model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1], dim=-1)
    kept_L = labels_L != IGNORED
    return log_probs_LV[kept_L].gather(1, labels_L[kept_L][:, None])[:, 0]


def _reply_log_prob(model: PreTrainedModel, row: dict[str, Any], side: str) -> torch.Tensor:
    ids = row["prompt_ids"] + row[side]
    return _label_log_probs(model, {"input_ids": ids, "labels": [IGNORED] * len(row["prompt_ids"]) + row[side]}).sum()


def _disturb(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
