"""Trainings of the tiny model on rows of literal seeds: a job as the worker gets it, and the curve that it leaves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from trlm_core.data.shards import write_shards
from trlm_core.data.stage_dataset import DPO_SCHEMA, SFT_SCHEMA
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import DPOTraining, SFTTraining, Training
from trlm_core.text.tokenizer import IGNORED, load_tokenizer
from trlm_core.training.job import TrainingJob
from trlm_core.training.step_trainer import StepTrainer
from trlm_core.training.watch import ProcessAddress
from trlm_core.training.worker import compute_reference, make_trainer

Rows = list[dict[str, Any]]
VOCABULARY = 476
TEMPLATE = "{% for turn in messages %}<|im_start|>{{ turn.role }} {{ turn.content }}<|im_end|>{% endfor %}<|im_start|>assistant "
ONE_THREAD = Execution(device="cpu", threads=1)  # so that sums have one order
SHARED: dict[str, Any] = {
    "epochs": 2,
    "sequences_per_step": 8,
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "warmup_ratio": 0.1,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine",
    "min_lr_rate": None,
    "precision": "float32",
    "seed": 7,
    "bad_steps": "stop",
    "max_grad_norm_ratio": None,
}


def sft_training(**changes: Any) -> SFTTraining:
    return SFTTraining(**{**SHARED, "trainer": "sft", "loss_type": "nll", "neftune_noise_alpha": None, **changes})


def dpo_training(**changes: Any) -> DPOTraining:
    return DPOTraining(**{**SHARED, "trainer": "dpo", "loss_type": "apo_zero", "beta": 0.1, **changes})


def sft_rows(count: int = 48, seed: int = 5) -> Rows:
    """Conversations of 12 to 48 tokens that differ in length and in the share of their labels."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = (12, 48)[number % 2] if number < 4 else int(random.integers(12, 49))
        ids = [1, *random.integers(3, VOCABULARY, length - 2).tolist(), 2]
        prompt = int(random.integers(3, length - 3))
        labels = [IGNORED] * prompt + ids[prompt:]
        rows.append({"input_ids": ids, "labels": labels, "source": "literal", "fault": None, "origin": f"literal row {number}"})
    return rows


def dpo_rows(count: int = 48, seed: int = 6) -> Rows:
    random = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return random.integers(3, VOCABULARY, int(random.integers(low, high))).tolist()

    return [
        {
            "prompt_ids": [1, *ids(4, 16)],
            "chosen_ids": [*ids(4, 32), 2],
            "rejected_ids": [*ids(4, 32), 2],
            "source": "literal",
            "fault": "miscount",
            "origin": f"literal row {number}",
        }
        for number in range(count)
    ]


@dataclass(frozen=True)
class Trained:
    trainer: StepTrainer
    history: Rows  # what TRL logged, a line a step

    def curve(self, name: str = "loss") -> list[float]:
        return [line[name] for line in self.history]

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.detach().clone() for name, weight in self.trainer.model.named_parameters()}  # type: ignore[union-attr]


MakeJob = Callable[..., TrainingJob]


@pytest.fixture
def make_job(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeJob:
    """`make_job(training, rows, tokens=96)`: a job in a folder of its own; the rows are written as the stage dataset's shards."""

    def make(
        training: Training, rows: Rows | None = None, *, tokens: int = 10_000, parent: Path | None = None, **changes: Any
    ) -> TrainingJob:
        folder = tmp_path_factory.mktemp("job")
        pairs = isinstance(training, DPOTraining)
        chosen = rows if rows is not None else dpo_rows() if pairs else sft_rows()
        (folder / "dataset").mkdir()
        (folder / "output").mkdir()
        (folder / "workspace").mkdir()
        write_shards(folder / "dataset", "train", pa.Table.from_pylist(chosen, schema=DPO_SCHEMA if pairs else SFT_SCHEMA))
        tokenizer = load_tokenizer(tiny_base)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / "dataset" / "tokenizer")
        fields = {
            "fingerprint": "3f2a9c1b" * 8,
            "training": training,
            "execution": ONE_THREAD.model_copy(update={"tokens_per_micro_batch": tokens}),
            "reported_execution": None,
            "dataset": folder / "dataset",
            "parent": parent or tiny_base,
            "reference": None,
            "asks_for": "checkpoint",
            "output": folder / "output",
            "workspace": folder / "workspace",
            "progress": folder / "progress.json",
            "error_files": folder,
            "run": None,
            "launched_by": ProcessAddress.here(),
        }
        job = TrainingJob(**{**fields, **changes})
        return with_reference(job, folder / "reference") if pairs and job.reference is None else job

    return make


def with_reference(job: TrainingJob, folder: Path) -> TrainingJob:
    """The job of a DPO training, with its start's log-probs in the folder."""
    folder.mkdir()
    compute_reference(job.model_copy(update={"asks_for": "reference", "output": folder}))
    job.progress.unlink()
    return job.model_copy(update={"reference": folder})


@pytest.fixture
def train_tiny(make_job: MakeJob) -> Callable[..., Trained]:
    """`train_tiny(training, rows, tokens=96)`: the tiny model trained in this process, on one thread."""

    def train(training: Training, rows: Rows | None = None, **options: Any) -> Trained:
        trainer = make_trainer(make_job(training, rows, **options))
        trainer.train()
        return Trained(trainer, [line for line in trainer.state.log_history if "loss" in line])

    return train


@pytest.fixture
def sft_training_of() -> Callable[..., SFTTraining]:
    return sft_training


@pytest.fixture
def dpo_training_of() -> Callable[..., DPOTraining]:
    return dpo_training


@pytest.fixture
def literal_sft_rows() -> Callable[..., Rows]:
    return sft_rows


@pytest.fixture
def literal_dpo_rows() -> Callable[..., Rows]:
    return dpo_rows
