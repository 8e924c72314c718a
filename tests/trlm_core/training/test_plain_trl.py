"""Ours against plain TRL over 50 steps at the report's rates: the same sequences in every step, the same losses, however a step is cut.

Plain: TRL's own trainers, samplers aside, with their own collators, 8 sequences x 4 micro-batches: the tables' 32 x 4, scaled down.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.batching import plan_steps
from trlm_core.training.worker import make_trainer

ROWS, STEPS, SEQUENCES, SEED = 160, 50, 32, 7
TOKENS = 400  # of our micro-batches: 8 of the longest sequences, over 30 of the shortest
NEAR = 1e-4  # relative
PLAIN: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "weight_decay": 0.01,
    "warmup_steps": 0.1,
    "bf16": False,
    "use_cpu": True,
    "train_sampling_strategy": "sequential",  # of rows in the recipe's order
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "max_length": None,
    "activation_checkpointing": False,
    "gradient_checkpointing": False,
}
OURS: dict[str, Any] = {"epochs": STEPS * SEQUENCES // ROWS, "sequences_per_step": SEQUENCES, "warmup_ratio": 0.1, "seed": SEED}
SFT: dict[str, Any] = {"learning_rate": 3e-4, "max_grad_norm": 1.0, "lr_scheduler_type": "cosine"}
DPO: dict[str, Any] = {"learning_rate": 1e-5, "max_grad_norm": 0.2, "lr_scheduler_type": "cosine_with_min_lr"}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("loss_type", ["nll", "dft"])
def test_an_sft_of_50_steps_has_the_losses_of_plain_trl(
    loss_type: str,
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
    make_job: Callable,
    sft_training_of: Callable,
    literal_sft_rows: Callable,
    tmp_path: Path,
):
    rows = literal_sft_rows(ROWS)
    lengths = [len(row["input_ids"]) for row in rows]
    assert max(lengths) == 4 * min(lengths)
    plain = SFTTrainer(
        tiny_model,
        args=SFTConfig(**PLAIN, **SFT, output_dir=str(tmp_path), loss_type=loss_type, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=_in_order([{name: row[name] for name in ("input_ids", "labels")} for row in rows]),
        processing_class=tiny_tokenizer,
    )
    plain_seen = _seen(plain, "input_ids")
    plain.train()

    training = sft_training_of(**OURS, **SFT, loss_type=loss_type)
    ours, mutant = (make_trainer(make_job(training, rows, tokens=TOKENS)) for _ in range(2))
    seen = _seen(ours, "input_ids")
    ours.train()
    assert [*_by_step(seen, ours)] == [*_by_four(plain_seen)]
    _assert_near(ours, plain)

    _weigh_rows(mutant)
    mutant.args.max_steps = 3
    mutant.train()
    with pytest.raises(AssertionError):
        _assert_near(mutant, plain, steps=3)


def test_a_dpo_of_50_steps_has_the_losses_of_plain_trl(
    tiny_model: PreTrainedModel,
    tiny_tokenizer: PreTrainedTokenizerBase,
    make_job: Callable,
    dpo_training_of: Callable,
    tmp_path: Path,
):
    """TRL tokenises its pairs itself; ours gets the ids that it found."""
    args = DPOConfig(
        **PLAIN,
        **DPO,
        output_dir=str(tmp_path),
        loss_type=["apo_zero"],
        beta=0.1,
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        precompute_ref_log_probs=True,
        precompute_ref_batch_size=64,
    )
    plain = DPOTrainer(tiny_model, args=args, train_dataset=_in_order(_pairs()), processing_class=tiny_tokenizer)
    first = sorted(range(SEQUENCES * STEPS), key=lambda place: _order()[place])[:: SEQUENCES * STEPS // ROWS]
    rows = [
        {
            **{name: plain.train_dataset[place][name] for name in ("prompt_ids", "chosen_ids", "rejected_ids")},
            "origin": f"literal row {row}",
        }
        for row, place in enumerate(first)
    ]
    lengths = [len(row["prompt_ids"]) + len(row[side]) for row in rows for side in ("chosen_ids", "rejected_ids")]
    assert max(lengths) >= 4 * min(lengths)
    plain_seen = _seen(plain, "input_ids")
    plain.train()
    ours = make_trainer(make_job(dpo_training_of(**OURS, **DPO, min_lr_rate=0.1), rows, tokens=2 * TOKENS))
    seen = _seen(ours, "input_ids")
    ours.train()
    assert [*_by_step(seen, ours)] == [*_by_four(plain_seen)]
    _assert_near(ours, plain)
    assert _curve(ours, "rewards/margins") == pytest.approx(_curve(plain, "rewards/margins"), abs=1e-5)


def _pairs() -> list[dict[str, str]]:
    """Every digit is a token."""
    random = np.random.default_rng(SEED)

    def digits(low: int, high: int) -> str:
        return "".join(map(str, random.integers(0, 10, int(random.integers(low, high)))))

    return [{"prompt": digits(3, 9), "chosen": digits(3, 27), "rejected": digits(3, 27)} for _ in range(ROWS)]


def _order() -> list[int]:
    steps = plan_steps(ROWS, epochs=OURS["epochs"], sequences_per_step=SEQUENCES, seed=SEED)
    return [row for step in steps for row in step]


def _in_order(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list([rows[row] for row in _order()])


def _seen(trainer: Any, name: str) -> list[list[tuple[int, ...]]]:
    """The sequences of every micro-batch whose loss is taken, without pads: filled while it trains."""
    seen: list[list[tuple[int, ...]]] = []
    inner = trainer.compute_loss

    def watched(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows = zip(inputs[name], inputs["attention_mask"], strict=True)
        seen.append([tuple(ids[mask == 1].tolist()) for ids, mask in rows])
        return inner(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    return seen


def _by_four(seen: list[list[tuple[int, ...]]]) -> list[list[tuple[int, ...]]]:
    assert len(seen) == 4 * STEPS
    return [sorted(ids for batch in seen[start : start + 4] for ids in batch) for start in range(0, len(seen), 4)]


def _by_step(seen: list[list[tuple[int, ...]]], ours: Any) -> list[list[tuple[int, ...]]]:
    batches = iter(seen)
    return [sorted(ids for _ in ours.step_dataset[step].micro_batches for ids in next(batches)) for step in range(len(ours.step_dataset))]


def _weigh_rows(trainer: Any) -> None:
    """What a mean of the sequences' shares would be, not of their tokens."""

    def weighed(model: Any, micro: Any, step: Any) -> torch.Tensor:
        labels = (micro.inputs["labels"][:, 1:] != IGNORED).sum()
        return trainer.compute_loss(model, dict(micro.inputs), num_items_in_batch=labels) * len(micro.rows) / len(step.rows)

    trainer.micro_batch_loss = weighed


def _assert_near(trainer: Any, plain: Any, *, steps: int = STEPS) -> None:
    assert len(_curve(trainer, "loss")) == steps
    assert _curve(trainer, "loss") == pytest.approx(_curve(plain, "loss")[:steps], rel=NEAR)


def _curve(trainer: Any, name: str) -> list[float]:
    return [line[name] for line in trainer.state.log_history if name in line]
