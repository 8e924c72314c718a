"""Flow `train`: one stage from its stage dataset and its parent, with its held-out rows scored."""

from prefect import flow
from prefect.client.schemas.objects import State

from flows.parameters import DEFAULT_RECIPE, WORKERS_OWN, RecipeChoice, StageName
from tasks.data import find_finished
from tasks.evals import score_held_out
from tasks.place import Where
from tasks.runs import training_at
from tasks.states import left
from tasks.training import add_tokens, train_stage


@flow(name="train", flow_run_name="{recipe.label} {stage}")
def train(stage: StageName, recipe: RecipeChoice = DEFAULT_RECIPE, where: Where = WORKERS_OWN) -> State[None]:
    """Train the stage from its finished stage dataset and its parent checkpoint, both found in the store by their fingerprints.

    Args:
        stage: Chat SFT, SFT with thoughts, or DPO.
    """
    place = training_at(recipe.load(), where)
    chosen = place.recipe.stage(stage)
    dataset, parent = find_finished(place, place.lineage.dataset(chosen)), find_finished(place, place.lineage.parent(chosen))
    start = add_tokens(place, chosen, dataset, parent)
    checkpoint = train_stage(place, chosen, dataset, start)
    held_out = score_held_out(place, chosen, checkpoint, start, dataset)
    return left(checkpoint, held_out)
