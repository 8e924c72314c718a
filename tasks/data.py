"""Data tasks: the base model, a source, a blend, a stage dataset, the questions."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.place import Place
from tasks.progress import bar
from tasks.retries import OVER_A_NETWORK
from tasks.runs import built
from trlm_core import base_model
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec
from trlm_core.data import blend, sources, stage_dataset
from trlm_core.lineage import finished
from trlm_core.recipes.schema import Source, Stage
from trlm_core.tracking import RunAddress, log_dataset, log_table


@task(
    name="fetch-base",
    task_run_name="base of {place.recipe.name}",
    **{**OVER_A_NETWORK, "retries": 2},
)
def fetch_base(place: Place) -> Manifest:
    return base_model.make_base(place.store, place.recipe.base)


@task(
    name="check-inputs",
    task_run_name="what {stage.name}'s sources have",
    **OVER_A_NETWORK,
)
def check_inputs(place: Place, stage: Stage) -> None:
    """Before any row is read: every source that is shorter than its count, in one error; the benchmarks' questions."""
    sources.check_inputs(place.store, stage)


@task(
    name="read-source",
    task_run_name="read {source.name}",
    **OVER_A_NETWORK,
)
def read_source(place: Place, stage: Stage, source: Source, base: Manifest) -> Manifest:
    return sources.read_source(place.store, place.recipe, stage, source, base)


@task(name="assemble-blend", task_run_name="blend {stage.name}", tags=["data"], cache_policy=NO_CACHE)
def assemble_blend(place: Place, stage: Stage, read: list[Manifest], base: Manifest) -> Manifest:
    def build(run: RunAddress) -> Manifest:
        manifest = blend.assemble(place.store, place.recipe, stage, read, base)
        profile = {"rows": manifest.counts["rows"], "sources": {name: count["train"] for name, count in manifest.counts["sources"].items()}}
        log_dataset(
            run,
            name=f"{place.recipe.name}/{stage.name}",
            fingerprint=manifest.fingerprint,
            source=place.store.location(manifest),
            profile=profile,
            context="training",
        )
        log_table(run, [check.row for check in blend.read_checks(place.folder(manifest))], blend.CHECKS)
        return manifest

    return built(place, blend.blend_spec(place.recipe, stage, read, base), stage.blend.model_dump(mode="json", exclude={"sources"}), build)


@task(name="render-stage-dataset", task_run_name="render {stage.name}", tags=["data"], cache_policy=NO_CACHE)
def render_stage_dataset(place: Place, stage: Stage, blended: Manifest, base: Manifest) -> Manifest:
    with bar(f"render {stage.name}", "row") as show:
        return stage_dataset.render_stage_dataset(
            place.store, place.recipe, stage, blended, base, threads=place.execution.threads, on_rows=show
        )


@task(name="find-finished", task_run_name="find {spec.name}", tags=["data"], cache_policy=NO_CACHE)
def find_finished(place: Place, spec: Spec) -> Manifest:
    """What another run left in the store."""
    return finished(place.store, spec)
