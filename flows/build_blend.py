"""Flow `blend`: the sources of one stage, its blend, its stage dataset."""

from prefect import flow
from prefect.client.schemas.objects import State

from flows.parameters import DEFAULT_RECIPE, WORKERS_OWN, RecipeChoice, StageName
from tasks.composition import show_checks, show_composition, show_drift
from tasks.data import assemble_blend, check_inputs, fetch_base, render_stage_dataset
from tasks.place import Where
from tasks.publishing import check_repository, publish_blend
from tasks.runners import RunnerName, check_runner, read_sources
from tasks.runs import reading_at
from tasks.states import left, unchanged
from trlm_core.lineage import all_finished


@flow(name="blend", flow_run_name="{recipe.label} {stage}")
def build_blend(
    stage: StageName,
    recipe: RecipeChoice = DEFAULT_RECIPE,
    where: Where = WORKERS_OWN,
    publish: str | None = None,
    runner: RunnerName = "threads",
) -> State[None]:
    """Read the stage's sources down to their counts, join and check them, and render the result for the stage's trainer.

    Args:
        stage: Chat SFT, SFT with thoughts, or DPO.
        publish: Dataset repository on the Hub (owner/name) that the blend goes to with its card; made private where there is none.
        runner: What reads the sources: threads of the flow's process, or the nodes of the Ray cluster that the worker's RAY_ADDRESS names.
    """
    place = reading_at(recipe.resolved().load(), where)
    check_runner(runner, place.store)
    chosen = place.recipe.stage(stage)
    if publish:
        check_repository(publish)
    kept = all_finished(place.store, place.lineage.blend(chosen), place.lineage.dataset(chosen))
    if kept:
        if publish:
            publish_blend(place, kept[0], publish)
        return unchanged(*kept)
    fetched = fetch_base.submit(place)
    check_inputs(place, chosen)
    base = fetched.result()
    blend = assemble_blend(place, chosen, read_sources(place, chosen, base, runner), base)
    show_composition(blend)
    show_checks(place, blend)
    show_drift(place, blend)
    dataset = render_stage_dataset(place, chosen, blend, base)
    if publish:
        publish_blend(place, blend, publish)
    return left(blend, dataset)
