"""What makes the fingerprint of a stage's start and of its checkpoint; imports nothing heavy, so that finished ones are found at once."""

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.store import Spec
from trlm_core.recipes.schema import Recipe, Stage

ROWS_FOR_NEW_TOKENS = 64  # of the stage dataset that show where the tokens are due


def start_spec(recipe: Recipe, stage: Stage, dataset: Fingerprinted, parent: Fingerprinted) -> Spec:
    assert stage.rendering.new_tokens is not None
    identity = {"made_by": "new_tokens/1", "new_tokens": stage.rendering.new_tokens.model_dump(mode="json"), "rows": ROWS_FOR_NEW_TOKENS}
    inputs = {"parent": parent.fingerprint, "dataset": dataset.fingerprint}
    return Spec("checkpoints", recipe.name, f"{stage.name}-start", identity, inputs, recipe.model_dump(mode="json"))


def checkpoint_spec(recipe: Recipe, stage: Stage, dataset: Fingerprinted, start: Fingerprinted) -> Spec:
    identity = {"made_by": "training/2", "training": stage.training.model_dump(mode="json")}
    inputs = {"dataset": dataset.fingerprint, "start": start.fingerprint}
    return Spec("checkpoints", recipe.name, stage.name, identity, inputs, recipe.model_dump(mode="json"))
