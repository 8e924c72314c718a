"""Every field of a training reaches something that trains, and the private parts of TRL that we override are as we know them."""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_trainer import SFTTrainer

from trlm_core.recipes.schema import DPOTraining, SFTTraining, Training
from trlm_core.training.hardware import Hardware
from trlm_core.training.sft import StepSFTTrainer
from trlm_core.training.trl_config import dpo_config, sft_config
from trlm_core.training.worker import make_trainer

CPU = Hardware(device="cpu", threads=1, tokens_per_micro_batch=384, activation_checkpointing=False, compile=False, laid_attention=None)
CHANGES: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 3},
    "sequences_per_step": {"sequences_per_step": 6},
    "learning_rate": {"learning_rate": 1e-5},
    "weight_decay": {"weight_decay": 0.3},
    "warmup_ratio": {"warmup_ratio": 0.5},
    "max_grad_norm": {"max_grad_norm": 0.2},
    "lr_scheduler_type": {"lr_scheduler_type": "linear"},
    "min_lr_rate": {"lr_scheduler_type": "cosine_with_min_lr", "min_lr_rate": 0.3},
    "precision": {"precision": "bf16_mixed"},
    "seed": {"seed": 8},
    "beta": {"beta": 0.5},
    "bad_steps": {"bad_steps": "skip"},
    "max_grad_norm_ratio": {"max_grad_norm_ratio": 20.0},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
}
LOSS_TYPES = {"sft": "dft", "dpo": "sigmoid"}
PATHS = {"output_dir", "logging_dir", "run_name"}  # of the job's own folder


@pytest.fixture
def reached(make_job: Callable) -> Callable[[Training], dict[str, Any]]:
    """What a training comes to: trainer arguments, step plan, noise, weights' type, what is done about a bad step."""

    def reach(training: Training) -> dict[str, Any]:
        trainer = make_trainer(make_job(training))
        seen: dict[str, Any] = {key: value for key, value in trainer.args.to_dict().items() if key not in PATHS}
        seen["steps"] = [
            [row for micro in trainer.step_dataset[i].micro_batches for row in micro.rows] for i in range(len(trainer.step_dataset))
        ]
        seen["dtype"] = next(trainer.model.parameters()).dtype  # type: ignore[union-attr]
        noise = trainer._noise if isinstance(trainer, StepSFTTrainer) else None
        seen["noise"] = noise and (noise._alpha, noise._seed)
        seen["bad_steps"] = (trainer.bad_steps._action, trainer.bad_steps._max_ratio)
        return seen

    return reach


@pytest.mark.parametrize("field", sorted(SFTTraining.model_fields.keys() - {"trainer"}))
def test_every_field_of_an_sft_training_is_read(field: str, reached: Callable, sft_training_of: Callable):
    changes = {"loss_type": LOSS_TYPES["sft"]} if field == "loss_type" else CHANGES[field]
    assert reached(sft_training_of()) == reached(sft_training_of())
    assert reached(sft_training_of(**changes)) != reached(sft_training_of())


@pytest.mark.parametrize("field", sorted(DPOTraining.model_fields.keys() - {"trainer"}))
def test_every_field_of_a_dpo_training_is_read(field: str, reached: Callable, dpo_training_of: Callable):
    changes = {"loss_type": LOSS_TYPES["dpo"]} if field == "loss_type" else CHANGES[field]
    assert reached(dpo_training_of(**changes)) != reached(dpo_training_of())


def test_the_share_of_the_minimum_is_told_from_the_scheduler(reached: Callable, dpo_training_of: Callable):
    low, high = (reached(dpo_training_of(lr_scheduler_type="cosine_with_min_lr", min_lr_rate=rate)) for rate in (0.1, 0.3))
    assert low != high


def test_the_three_precisions_are_three_trainings(reached: Callable, sft_training_of: Callable):
    kinds = [reached(sft_training_of(precision=precision)) for precision in ("float32", "bf16_mixed", "bf16")]
    assert [(str(kind["dtype"]), kind["bf16"]) for kind in kinds] == [
        ("torch.float32", False),
        ("torch.float32", True),
        ("torch.bfloat16", False),
    ]


def test_the_report_s_stage_3_reaches_trl_as_it_stands(dpo_training_of: Callable, tmp_path: Path):
    training = dpo_training_of(
        learning_rate=1e-5, max_grad_norm=0.2, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=0.1, precision="bf16_mixed", seed=42
    )
    args = dpo_config(training, CPU, steps=390, output=tmp_path)
    assert (args.max_steps, args.learning_rate, args.weight_decay, args.max_grad_norm, args.seed) == (390, 1e-5, 0.01, 0.2, 42)
    assert (args.loss_type, args.beta, args.lr_scheduler_type, args.lr_scheduler_kwargs) == (
        ["apo_zero"],
        0.1,
        "cosine_with_min_lr",
        {"min_lr_rate": 0.1},
    )
    assert args.get_warmup_steps(390) == 39


@pytest.mark.parametrize(("ratio", "steps"), [(0.0, 0), (0.1, 10), (0.5, 50), (1.0, 100)])
def test_a_warm_up_is_a_share_of_the_steps_for_every_share(ratio: float, steps: int, sft_training_of: Callable, tmp_path: Path):
    args = sft_config(sft_training_of(warmup_ratio=ratio), CPU, steps=100, output=tmp_path)
    assert args.get_warmup_steps(100) == steps


def test_the_library_s_own_noise_packing_and_cutting_are_off(sft_training_of: Callable, tmp_path: Path):
    args = sft_config(sft_training_of(neftune_noise_alpha=5.0), CPU, steps=10, output=tmp_path)
    assert (args.neftune_noise_alpha, args.packing, args.padding_free, args.max_length) == (None, False, False, None)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.save_strategy) == (1, 1, "no")


def test_trl_1_16_has_the_private_methods_that_are_overridden():
    assert version("trl") == "1.16.0"
    assert list(inspect.signature(DPOTrainer._prepare_dataset).parameters) == [
        "self",
        "dataset",
        "processing_class",
        "args",
        "dataset_name",
    ]
    assert list(inspect.signature(DPOTrainer._precompute_ref_logps).parameters) == ["self", "dataset", "name", "batch_size"]
    assert list(inspect.signature(DPOTrainer.compute_ref_log_probs).parameters) == ["self", "model", "inputs"]
    for trainer in (SFTTrainer, DPOTrainer):
        parameters = list(inspect.signature(trainer.compute_loss).parameters)
        assert parameters == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
