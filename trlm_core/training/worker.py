"""The process that trains: `torchrun -m trlm_core.training.worker job.json`. One job, one checkpoint folder."""

import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trlm_core.data.shards import shard_paths
from trlm_core.recipes.schema import DPOTraining, SFTTraining, Training
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.tracking import finish
from trlm_core.training.batching import plan_steps
from trlm_core.training.checkpoint import load_model, save_checkpoint
from trlm_core.training.dpo import StepDPOTrainer, pair_collator
from trlm_core.training.hardware import Hardware, detect_hardware
from trlm_core.training.job import TrainingJob
from trlm_core.training.sft import StepSFTTrainer, sft_steps
from trlm_core.training.step_log import StepLog
from trlm_core.training.step_trainer import StepTrainer
from trlm_core.training.trl_config import dpo_config, sft_config
from trlm_core.training.watch import Progress, end_with, write_progress


def train(job: TrainingJob) -> None:
    """Train the job's checkpoint and save it. Raises what the trainer raises; the MLflow run ends as the training does."""
    trainer = make_trainer(job)
    trainer.add_callback(StepLog(job.output, job.progress, job.run))
    trainer.train()
    assert isinstance(trainer.model, PreTrainedModel)
    save_checkpoint(trainer.model, load_tokenizer(job.dataset / "tokenizer"), job.output)


def make_trainer(job: TrainingJob) -> StepTrainer:
    hardware = detect_hardware(job.execution, job.reported_execution)
    torch.set_num_threads(hardware.threads)
    rows = datasets.Dataset.from_parquet([*shard_paths(job.dataset, "train")], cache_dir=str(job.progress.parent / "arrow"))
    assert isinstance(rows, datasets.Dataset)
    tokenizer = load_tokenizer(job.dataset / "tokenizer")
    model = load_model(job.parent, job.training.precision)
    make = _dpo_trainer if isinstance(job.training, DPOTraining) else _sft_trainer
    return make(job, hardware, rows, model, tokenizer)


def _sft_trainer(
    job: TrainingJob, hardware: Hardware, rows: datasets.Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> StepTrainer:
    training, steps = job.training, _steps(job.training, len(rows))
    assert isinstance(training, SFTTraining)
    pad: Any = tokenizer.pad_token_id
    return StepSFTTrainer(
        model=model,
        args=sft_config(training, hardware, steps=len(steps), output=_scratch(job)),
        train_dataset=rows,
        processing_class=tokenizer,
        step_dataset=sft_steps(rows.to_list(), steps, pad=pad, tokens_per_micro_batch=hardware.tokens_per_micro_batch),
        noise_alpha=training.neftune_noise_alpha,
    )


def _dpo_trainer(
    job: TrainingJob, hardware: Hardware, rows: datasets.Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> StepTrainer:
    training, steps = job.training, _steps(job.training, len(rows))
    assert isinstance(training, DPOTraining)
    pad: Any = tokenizer.pad_token_id
    began = time.monotonic()

    def on_reference(done: int, total: int) -> None:
        seconds = time.monotonic() - began
        write_progress(job.progress, Progress(phase="reference", step=done, steps=total, seconds=seconds, loss=None))

    return StepDPOTrainer(
        model=model,
        args=dpo_config(training, hardware, steps=len(steps), output=_scratch(job)),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=pair_collator(pad),
        tokens_per_micro_batch=hardware.tokens_per_micro_batch,
        steps=steps,
        on_reference=on_reference,
    )


def _scratch(job: TrainingJob) -> Path:
    return job.progress.parent / "trainer"


def _steps(training: Training, rows: int) -> list[list[int]]:
    return plan_steps(rows, epochs=training.epochs, sequences_per_step=training.sequences_per_step, seed=training.seed)


def leave_group_of_one() -> None:
    """Take away torchrun's marks of a group that is this process alone: wrapping a model for one costs memory and speed."""
    if os.environ.get("WORLD_SIZE") == "1":
        for mark in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(mark, None)


def main(path: str) -> None:
    leave_group_of_one()
    job = TrainingJob.model_validate_json(Path(path).read_text())
    end_with(job.launched_by)
    status = "FAILED"
    try:
        train(job)
        status = "FINISHED"
    except Exception:
        job.error_file.write_text(traceback.format_exc())  # torchrun's own report would bury it
        raise
    finally:
        if job.run is not None:
            finish(job.run, status)


if __name__ == "__main__":
    main(sys.argv[1])
