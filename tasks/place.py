"""The place of a run: what flows are told of it (`Where`), and the one value that they hand to every task (`Place`)."""

import functools
import os
import socket
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.lineage import Lineage
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Evaluation, Recipe
from trlm_core.tracking import RunAddress, Tracker


class Where(BaseModel):
    """Where and how a recipe runs. None of it changes a number or enters a fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str | None = Field(default=None, description="Address of the store: a folder, file: or s3:. Empty: the worker's TRLM_STORE.")
    tracking_uri: str | None = Field(
        default=None, description="MLflow's address. Empty: the worker's MLFLOW_TRACKING_URI, else a database in the store."
    )
    pipeline_run: str | None = Field(default=None, description="MLflow run that this belongs to; a pipeline sets it for what it starts.")
    execution: Execution = Field(default=Execution(), description="Device, micro-batches and threads.")


def database_in(store: Store) -> str:
    """MLflow's address where nobody names one. Raises ValueError for a bucket: the database would lie in this machine's cache."""
    if store.remote is not None:
        raise ValueError(f"tracking_uri: wanted MLflow's address beside the store {store.address}, got none; set MLFLOW_TRACKING_URI")
    return f"sqlite:///{store.root / 'mlflow.db'}"


class AnyPlace(BaseModel):
    """The place of a run, whatever kind of recipe it builds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store_address: str
    tracking_uri: str
    execution: Execution
    run: RunAddress | None  # the pipeline's own run, once it is open

    @property
    def where(self) -> Where:
        """For what this place's run starts, here or elsewhere."""
        run_id = self.run.run_id if self.run else None
        return Where(store=self.store_address, tracking_uri=self.tracking_uri, pipeline_run=run_id, execution=self.execution)

    @property
    def store(self) -> Store:
        return _opened(self.store_address)

    @property
    def store_identity(self) -> str:
        """What tells this store from others that MLflow and Prefect know: a folder's path says nothing without its machine."""
        return self.store_address if self.store.remote is not None else f"{socket.gethostname()}:{self.store_address}"

    @property
    def tracker(self) -> Tracker:
        return Tracker(self.tracking_uri, artifacts=self.store.root / "mlflow-artifacts")

    def folder(self, manifest: Manifest) -> Path:
        return self.store.folder(manifest)


class Place(AnyPlace):
    recipe: Recipe

    @classmethod
    def of(cls, recipe: Recipe, where: Where) -> "Place":
        """Raises ValueError where no store is named, StoreError where it cannot be used."""
        return cls(recipe=recipe, **addresses(where))

    @property
    def lineage(self) -> Lineage:
        return Lineage(self.recipe)

    @property
    def evaluation(self) -> Evaluation:
        return self.lineage.evaluation


def addresses(where: Where) -> dict[str, Any]:
    """A place's fields but its recipe, with what the environment says.

    Raises ValueError where no store is named, StoreError where it cannot be used.
    """
    address = where.store or os.environ.get("TRLM_STORE")
    if not address:
        raise ValueError("store: wanted its address, got none; set where.store, or TRLM_STORE in the worker's environment")
    store = _opened(address)
    uri = where.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or database_in(store)
    run = RunAddress(uri=uri, run_id=where.pipeline_run) if where.pipeline_run else None
    return {"store_address": store.address, "tracking_uri": uri, "execution": where.execution, "run": run}


@functools.cache
def _opened(address: str) -> Store:
    return Store.open(address)
