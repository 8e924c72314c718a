"""Flow `trlm`: blends, stages, evaluation and report of one recipe, in order; all here, or with training on its own work pool."""

from prefect import flow
from prefect.client.schemas.objects import State

from flows.build_blend import build_blend
from flows.parameters import DEFAULT_RECIPE, WORKERS_OWN, RecipeChoice
from flows.run_evals import evaluate
from flows.train_stage import train
from tasks.data import find_finished
from tasks.elsewhere import run_elsewhere
from tasks.place import Place, Where
from tasks.reports import publish_report
from tasks.runs import pipeline_run
from tasks.states import cancelled, reported
from trlm_core.recipes.schema import Stage
from trlm_core.tracking import RunCancelledError

TRAINED_BY = {"stage1_sft": "train/stage-1", "stage2_sft_think": "train/stage-2", "stage3_dpo": "train/stage-3"}


@flow(name="trlm", flow_run_name="{recipe.label}")
def local_pipeline(recipe: RecipeChoice = DEFAULT_RECIPE, where: Where = WORKERS_OWN) -> State[None]:
    """Build a recipe from its sources to its report, all in this process."""
    recipe = recipe.resolved()
    with pipeline_run(recipe.load(), where, trains=True) as place:
        for stage in place.recipe.stages:
            build_blend(stage.name, recipe, place.where)
        for stage in place.recipe.stages:
            train(stage.name, recipe, place.where)
        evaluate((), recipe, place.where)
        return reported(publish_report(place))


@flow(name="trlm", flow_run_name="{recipe.label}")
def full_pipeline(recipe: RecipeChoice = DEFAULT_RECIPE, where: Where = WORKERS_OWN) -> State[None]:
    """Build a recipe from its sources to its report; every stage is trained by its deployment, on the work pool of the GPUs."""
    recipe = recipe.resolved()
    try:
        with pipeline_run(recipe.load(), where, trains=False) as place:
            for stage in place.recipe.stages:
                build_blend(stage.name, recipe, place.where)
            for stage in place.recipe.stages:
                train_elsewhere(place, stage, recipe, where.tracking_uri)
            evaluate((), recipe, place.where)
            return reported(publish_report(place))
    except RunCancelledError as error:
        return cancelled(error)


def train_elsewhere(place: Place, stage: Stage, recipe: RecipeChoice, tracking_uri: str | None) -> None:
    """Have the stage trained on its own work pool, unless all that it leaves is there.

    The store's address is handed over, and no artifact's: the other side finds what it reads by fingerprint. MLflow's address goes
    with it only where the run was given one, and nothing of this machine's execution does.
    """
    left = (place.lineage.start(stage), place.lineage.checkpoint(stage), place.lineage.held_out(stage))
    if all(place.store.find(spec) is not None for spec in left):
        return
    there = Where(store=place.store_address, tracking_uri=tracking_uri, pipeline_run=place.where.pipeline_run)
    parameters = {"stage": stage.name, "recipe": recipe.model_dump(mode="json"), "where": there.model_dump(mode="json")}
    run_elsewhere(TRAINED_BY[stage.name], parameters, work=f"{left[-1].fingerprint} in {place.store_identity}")
    find_finished(place, left[-1])
