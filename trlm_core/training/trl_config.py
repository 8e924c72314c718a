"""From a recipe's training to TRL's arguments: every field of the recipe is read here, in step_trainer.py or in batching.py."""

from pathlib import Path
from typing import Any

from trl.trainer.dpo_config import DPOConfig
from trl.trainer.sft_config import SFTConfig

from trlm_core.recipes.schema import DPOTraining, Optimization, SFTTraining
from trlm_core.training.hardware import Hardware


def sft_config(training: SFTTraining, hardware: Hardware, *, steps: int, output: Path) -> SFTConfig:
    """NEFTune is not passed on: the library scales its noise by the padded length (neftune.py does it per row)."""
    return SFTConfig(
        **_shared(training, hardware, steps, output),
        loss_type=training.loss_type,
        max_length=None,  # rows were cut when the stage dataset was rendered
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def dpo_config(training: DPOTraining, hardware: Hardware, *, steps: int, output: Path) -> DPOConfig:
    return DPOConfig(
        **_shared(training, hardware, steps, output),
        loss_type=[training.loss_type],
        beta=training.beta,
        max_length=None,
        precompute_ref_log_probs=True,  # no second model in memory
    )


def _shared(training: Optimization, hardware: Hardware, steps: int, output: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output),
        "max_steps": steps,
        "per_device_train_batch_size": 1,  # one item of StepDataset is one whole optimizer step
        "gradient_accumulation_steps": 1,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "warmup_steps": training.warmup_ratio if training.warmup_ratio < 1 else steps,  # below 1 it is a ratio
        "max_grad_norm": training.max_grad_norm,
        "lr_scheduler_type": training.lr_scheduler_type,
        "lr_scheduler_kwargs": {"min_lr_rate": training.min_lr_rate} if training.min_lr_rate is not None else {},
        "bf16": training.precision == "bf16_mixed",
        "use_cpu": hardware.device == "cpu",
        "seed": training.seed,
        "activation_checkpointing": hardware.activation_checkpointing,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would log another step's loss in the place of one that is not finite
        "average_tokens_across_devices": False,  # step_trainer.py adds up the processes' parts itself
        "ddp_find_unused_parameters": False,
        "save_strategy": "no",  # saver.py says when
        "report_to": "none",  # the process writes its own run: watch.py
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "optim": "adamw_torch_fused",
    }
