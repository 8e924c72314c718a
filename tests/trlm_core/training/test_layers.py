"""Compiled decoder layers: the curve of layers that are not, from a handful of graphs whatever the shapes; names and saves stay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from trlm_core.training.job import TrainingJob
from trlm_core.training.step_trainer import StepTrainer
from trlm_core.training.worker import make_trainer

MOST_GRAPHS = 4


@pytest.fixture
def trained(make_job: Callable[..., TrainingJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., StepTrainer]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def train(training: Any, *, compiled: bool) -> StepTrainer:
        torch._dynamo.reset()
        counters.clear()
        job = make_job(training, tokens=150)
        trainer = make_trainer(job.model_copy(update={"execution": job.execution.model_copy(update={"compile": compiled})}))
        trainer.train()
        return trainer

    return train


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_compiled_layers_give_the_same_curve_from_few_graphs(
    kind: str, trained: Callable[..., StepTrainer], sft_training_of: Callable, dpo_training_of: Callable
):
    training = sft_training_of(neftune_noise_alpha=5.0) if kind == "sft" else dpo_training_of()
    plain, compiled = trained(training, compiled=False), trained(training, compiled=True)
    shapes = {tuple(micro.inputs["input_ids"].shape) for step in range(12) for micro in compiled.step_dataset[step].micro_batches}
    assert len(shapes) > 4 * MOST_GRAPHS, "micro-batches of many shapes"
    assert 0 < counters["stats"]["unique_graphs"] <= MOST_GRAPHS
    for name in ("loss", "grad_norm", "entropy", "mean_token_accuracy"):
        curves = [[line[name] for line in trainer.state.log_history if "loss" in line] for trainer in (plain, compiled)]
        assert curves[1] == pytest.approx(curves[0], rel=1e-4, abs=1e-5), name
    names = [[name for name, _ in trainer.model.named_parameters()] for trainer in (plain, compiled)]  # type: ignore[union-attr]
    assert names[1] == names[0]
