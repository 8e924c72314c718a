"""The place of a run: its recipe, store, execution and tracking; the one value that flows hand to every task."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Evaluation, Recipe
from trlm_core.tracking import RunAddress, Tracker


class Place(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    store_address: str
    tracking_uri: str
    execution: Execution
    run: RunAddress | None  # the pipeline's own run, once it is open

    @property
    def store(self) -> Store:
        return Store(Path(self.store_address))

    @property
    def tracker(self) -> Tracker:
        return Tracker(self.tracking_uri, artifacts=self.store.root / "mlflow-artifacts")

    @property
    def evaluation(self) -> Evaluation:
        if self.recipe.evaluation is None:
            raise ValueError(f"recipe {self.recipe.name}: wanted an evaluation, got null")
        return self.recipe.evaluation

    def folder(self, manifest: Manifest) -> Path:
        return self.store.folder(manifest)
