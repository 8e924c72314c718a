"""One stage trained: stage dataset and start checkpoint -> checkpoint in the store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Recipe, Stage
from trlm_core.tracking import RunAddress
from trlm_core.training.checkpoint import history_counts, read_history
from trlm_core.training.launch import run_training
from trlm_core.training.specs import checkpoint_spec
from trlm_core.training.watch import Progress


def train_stage(
    store: Store,
    recipe: Recipe,
    stage: Stage,
    dataset: Manifest,
    start: Manifest,
    execution: Execution,
    *,
    run: RunAddress | None,
    on_progress: Callable[[Progress], None],
) -> Manifest:
    """The stage's checkpoint: reused where its fingerprint is in the store, trained otherwise."""

    def build(folder: Path) -> dict[str, Any]:
        run_training(
            stage,
            execution,
            dataset=store.folder(dataset),
            parent=store.folder(start),
            output=folder,
            run=run,
            on_progress=on_progress,
        )
        return history_counts(read_history(folder))

    return store.make(checkpoint_spec(recipe, stage, dataset, start), build)
