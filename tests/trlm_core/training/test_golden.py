"""Golden loss curves of the three stages on the tiny model: exact on the machine that wrote them, near on any other.

TRLM_WRITE_GOLDEN=1 pytest tests/trlm_core/training/test_golden.py    writes them anew; look at the difference before you commit it.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trlm_core.artifacts.provenance import machine
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.checkpoint import save_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden"
NEAR = 1e-5  # relative, on other processors and builds of torch
NAMES = {
    "stage1_sft": ["loss", "grad_norm", "learning_rate", "entropy"],
    "stage2_sft_think": ["loss", "grad_norm", "learning_rate", "entropy"],
    "stage3_dpo": ["loss", "grad_norm", "learning_rate", "rewards/margins"],
}
REPORTED = {"epochs": 1, "sequences_per_step": 8, "warmup_ratio": 0.1}


def this_machine() -> str:
    return f"{machine()['cpu']}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


@pytest.fixture
def curves(
    train_tiny: Callable,
    sft_training_of: Callable,
    dpo_training_of: Callable,
    literal_sft_rows: Callable,
    literal_dpo_rows: Callable,
    tiny_base: Path,
    tmp_path: Path,
) -> dict[str, dict[str, list[float]]]:
    """The stages after one another, each from the one before, with the report's losses, schedulers and noise."""
    trainings = {
        "stage1_sft": sft_training_of(**REPORTED, learning_rate=3e-4, loss_type="dft", neftune_noise_alpha=0.01),
        "stage2_sft_think": sft_training_of(**REPORTED, learning_rate=3e-4, loss_type="nll", neftune_noise_alpha=0.02, weight_decay=0.02),
        "stage3_dpo": dpo_training_of(
            **REPORTED, learning_rate=1e-4, max_grad_norm=0.2, lr_scheduler_type="cosine_with_min_lr", min_lr_rate=0.1
        ),
    }
    rows = {"stage1_sft": literal_sft_rows(96, 1), "stage2_sft_think": literal_sft_rows(96, 2), "stage3_dpo": literal_dpo_rows(96, 3)}
    found, parent = {}, tiny_base
    for stage, training in trainings.items():
        trained = train_tiny(training, rows[stage], tokens=200, parent=parent)
        found[stage] = {name: trained.curve(name) for name in NAMES[stage]}
        parent = tmp_path / stage
        save_checkpoint(trained.trainer.model, load_tokenizer(tiny_base), parent)
    return found


def test_loss_curves_are_the_golden_ones(curves: dict[str, dict[str, list[float]]]):
    if os.environ.get("TRLM_WRITE_GOLDEN"):
        _write(curves)
    for stage, curve in curves.items():
        golden = json.loads((GOLDEN / f"{stage}.json").read_text())
        assert len(curve["loss"]) == 12
        wanted: Any = golden["curves"]
        if golden["machine"] == this_machine():
            assert curve == wanted, stage
        else:
            for name, values in wanted.items():
                assert curve[name] == pytest.approx(values, rel=NEAR, abs=NEAR), f"{stage} {name}"


def _write(curves: dict[str, dict[str, list[float]]]) -> None:
    GOLDEN.mkdir(exist_ok=True)
    for stage, curve in curves.items():
        (GOLDEN / f"{stage}.json").write_text(json.dumps({"machine": this_machine(), "curves": curve}, indent=1) + "\n")
