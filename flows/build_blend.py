"""Flow `blend`: the sources of one stage, its blend, its stage dataset."""

from prefect import flow, unmapped
from prefect.client.schemas.objects import State

from flows.parameters import DEFAULT_RECIPE, WORKERS_OWN, RecipeChoice, StageName
from tasks.composition import show_checks, show_composition, show_drift
from tasks.data import assemble_blend, check_supply, fetch_base, kept_of, read_source, render_stage_dataset
from tasks.place import Where
from tasks.runs import reading_at
from tasks.states import left, unchanged


@flow(name="blend", flow_run_name="{recipe.label} {stage}")
def build_blend(stage: StageName, recipe: RecipeChoice = DEFAULT_RECIPE, where: Where = WORKERS_OWN) -> State[None]:
    """Read the stage's sources down to their counts, join and check them, and render the result for the stage's trainer.

    Args:
        stage: Chat SFT, SFT with thoughts, or DPO.
    """
    place = reading_at(recipe.resolved().load(), where)
    chosen = place.recipe.stage(stage)
    kept = kept_of(place, place.lineage.blend(chosen), place.lineage.dataset(chosen))
    if kept:
        return unchanged(*kept)
    check_supply(place, chosen)
    base = fetch_base(place)
    sources = read_source.map(unmapped(place), unmapped(chosen), list(chosen.blend.sources), unmapped(base))
    blend = assemble_blend(place, chosen, sources.result(), base)
    show_composition(blend)
    show_checks(place, blend)
    show_drift(place, blend)
    dataset = render_stage_dataset(place, chosen, blend, base)
    return left(blend, dataset)
