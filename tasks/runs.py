"""Runs: every task that builds something does it under an MLflow run of its own, below the pipeline's; what is reused opens none."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run as this_run

from tasks.place import AnyPlace, Place, Where
from tasks.reconcile import FLOW_RUN, reconcile
from trlm_core.artifacts.manifest import MANIFEST_NAME, Manifest
from trlm_core.artifacts.store import Spec
from trlm_core.metric_spool import UNDELIVERED, deliver_kept
from trlm_core.plan import check_machine, check_origins, check_pipeline, check_recipe
from trlm_core.recipes.schema import Recipe
from trlm_core.tracking import RunAddress, log_file, tracked

DELIVERY_SECONDS = 60.0  # for each training whose metrics MLflow could not take when it ended
RUN_MEMORY = "run.json"  # in a training's workspace: the MLflow run that it is in


def work_at(recipe: Recipe, where: Where) -> Place:
    """The place of one station's work. Raises ValueErrors that say what to do, before any work."""
    place = Place.of(recipe, where)
    check_recipe(recipe)
    return place


def reading_at(recipe: Recipe, where: Where) -> Place:
    """The place of a blend, where base and sources can be had."""
    place = work_at(recipe, where)
    check_origins(recipe)
    return place


def training_at(recipe: Recipe, where: Where) -> Place:
    """The place of a training, on a machine that can do it."""
    place = work_at(recipe, where)
    check_machine(recipe, place.store.root, place.execution)
    return place


@contextlib.contextmanager
def pipeline_run(recipe: Recipe, where: Where, *, trains: bool) -> Iterator[Place]:
    """Check everything cheap, hold the store, close what dead runs left open, and open the pipeline's run.

    `trains`: in this process, so that this machine must be able to.
    """
    place = Place.of(recipe, where)
    check_pipeline(recipe)
    if trains:
        check_machine(recipe, place.store.root, place.execution)
    params = recipe.model_dump(mode="json", exclude={"stages", "families"})
    with held_run(place, recipe.name, params, {"trlm.variant": recipe.variant}) as run:
        yield place.model_copy(update={"run": run})


@contextlib.contextmanager
def held_run(place: AnyPlace, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[RunAddress]:
    """Hold the store, close what dead runs left open, and open a run that others belong to."""
    with place.store.held() as hold:
        reconcile(place.tracker, held_store=place.store_identity)
        deliver_kept(place.store.root / UNDELIVERED, DELIVERY_SECONDS)
        with tracked(place.tracker, name, params=params, tags={"trlm.kind": "pipeline", **tags, **_origin(place)}) as run:
            yield run
            hold.check()


def built(place: AnyPlace, spec: Spec, params: Mapping[str, Any], build: Callable[[RunAddress], Manifest]) -> Manifest:
    """The artifact of this spec: reused, or built under a child run that keeps its manifest."""
    found = place.store.find(spec)
    if found is not None:
        return found
    with child_run(place, spec, params) as run:
        return _kept(place, run, build)


def trained(place: AnyPlace, spec: Spec, params: Mapping[str, Any], build: Callable[[RunAddress], Manifest]) -> Manifest:
    """As `built`; but what was begun before, and killed or failed, goes on in the run that it had then."""
    found = place.store.find(spec)
    if found is not None:
        return found
    with child_run(place, spec, params, memory=place.store.workspace(spec) / RUN_MEMORY) as run:
        return _kept(place, run, build)


def _kept(place: AnyPlace, run: RunAddress, build: Callable[[RunAddress], Manifest]) -> Manifest:
    manifest = build(run)
    log_file(run, place.folder(manifest) / MANIFEST_NAME)
    return manifest


@contextlib.contextmanager
def child_run(place: AnyPlace, spec: Spec, params: Mapping[str, Any], memory: Path | None = None) -> Iterator[RunAddress]:
    parent = place.run.run_id if place.run else None
    tags = {"trlm.kind": spec.kind, "trlm.fingerprint": spec.fingerprint, **_origin(place)}
    with tracked(place.tracker, f"{spec.kind}/{spec.name}", params=params, tags=tags, parent=parent, memory=memory) as run:
        yield run


def _origin(place: AnyPlace) -> dict[str, str]:
    """Who opened an MLflow run: by it, a run whose flow run is over is found and closed."""
    return {"trlm.store": place.store_identity, FLOW_RUN: str(this_run.id)}
