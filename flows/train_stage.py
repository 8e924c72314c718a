"""Flow `train`: one stage from its stage dataset and its parent, with its held-out rows scored."""

from prefect import flow
from prefect.client.schemas.objects import State

from flows.parameters import DEFAULT_RECIPE, WORKERS_OWN, RecipeChoice, StageName
from tasks.data import find_finished
from tasks.evals import score_held_out
from tasks.place import Where
from tasks.publishing import Publishing, check_model_repository, publish_checkpoint
from tasks.runs import training_at
from tasks.states import left
from tasks.training import add_tokens, train_stage


@flow(name="train", flow_run_name="{recipe.label} {stage}")
def train(
    stage: StageName,
    recipe: RecipeChoice = DEFAULT_RECIPE,
    where: Where = WORKERS_OWN,
    publish: Publishing | None = None,
) -> State[None]:
    """Train the stage from its finished stage dataset and its parent checkpoint, both found in the store by their fingerprints.

    Args:
        stage: Chat SFT, SFT with thoughts, or DPO.
        publish: Model repository on the Hub that the checkpoint goes to with its card, and how often.
    """
    place = training_at(recipe.load(), where)
    chosen = place.recipe.stage(stage)
    dataset, parent = find_finished(place, place.lineage.dataset(chosen)), find_finished(place, place.lineage.parent(chosen))
    if publish:
        check_model_repository(place, chosen, publish)
    start = add_tokens(place, chosen, dataset, parent)
    checkpoint = train_stage(place, chosen, dataset, start, publish)
    held_out = score_held_out(place, chosen, checkpoint, start, dataset)
    if publish:
        publish_checkpoint(place, chosen, checkpoint, publish.repo)
    return left(checkpoint, held_out)
