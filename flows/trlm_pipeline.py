"""Flow `trlm`: blends, stages, evaluation and report of one recipe, in order."""

from prefect import flow

from flows.build_blend import build_blend
from flows.run_evals import evaluate
from flows.train_stage import train
from tasks.data import fetch_base
from tasks.reports import publish_report
from tasks.runs import pipeline_run
from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.load import load_recipe
from trlm_core.reports.results import RunResults

ANYWHERE = Execution()


@flow(name="trlm", flow_run_name="{recipe}")
def full_pipeline(
    recipe: str = "trlm-135m-local",
    variant: str | None = None,
    budget: str | None = None,
    settings: tuple[str, ...] = (),
    store: str = "runs",
    tracking_uri: str | None = None,
    execution: Execution = ANYWHERE,
) -> tuple[RunResults, Manifest]:
    """The results of a recipe, and its report."""
    loaded = load_recipe(recipe, variant=variant, budget=budget, settings=settings)
    with pipeline_run(loaded, store, tracking_uri, execution) as place:
        base = fetch_base(place)
        blends = [build_blend(place, stage, base) for stage in loaded.stages]
        stages, checkpoints = [], {"base": base}
        for stage, (blend, dataset) in zip(loaded.stages, blends, strict=True):
            stages.append(train(place, stage, blend, dataset, checkpoints[stage.parent]))
            checkpoints[stage.name] = stages[-1].checkpoint
        results = evaluate(place, base, stages)
        return results, publish_report(place, results)
