"""Runs: every task that builds something does it under an MLflow run of its own, below the pipeline's; what is reused opens none."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tasks.place import Place
from trlm_core.artifacts.manifest import MANIFEST_NAME, Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.plan import check_run
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Recipe
from trlm_core.tracking import RunAddress, log_file, tracked


@contextlib.contextmanager
def pipeline_run(recipe: Recipe, store_address: str, tracking_uri: str | None, execution: Execution) -> Iterator[Place]:
    """Check everything cheap, hold the store, open the pipeline's run. Raises ValueErrors that say what to do, before any work."""
    store = Store.open(store_address)
    with store.held():
        check_run(recipe, store.root)
        uri = tracking_uri or f"sqlite:///{store.root / 'mlflow.db'}"
        place = Place(recipe=recipe, store_address=str(store.root), tracking_uri=uri, execution=execution, run=None)
        params = recipe.model_dump(mode="json", exclude={"stages", "families"})
        with tracked(place.tracker, recipe.name, params=params, tags={"trlm.kind": "pipeline", "trlm.variant": recipe.variant}) as run:
            yield place.model_copy(update={"run": run})


def built(place: Place, spec: Spec, params: Mapping[str, Any], build: Callable[[RunAddress], Manifest]) -> Manifest:
    """The artifact of this spec: reused, or built under a child run that keeps its manifest."""
    found = place.store.find(spec)
    if found is not None:
        return found
    with child_run(place, spec, params) as run:
        manifest = build(run)
        log_file(run, place.folder(manifest) / MANIFEST_NAME)
    return manifest


@contextlib.contextmanager
def child_run(place: Place, spec: Spec, params: Mapping[str, Any]) -> Iterator[RunAddress]:
    parent = place.run.run_id if place.run else None
    tags = {"trlm.kind": spec.kind, "trlm.fingerprint": spec.fingerprint}
    with tracked(place.tracker, f"{spec.kind}/{spec.name}", params=params, tags=tags, parent=parent) as run:
        yield run
