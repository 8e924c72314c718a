"""What makes the fingerprint of every artifact of an evaluation; imports nothing heavy, so that a finished one is found in no time."""

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.store import Spec
from trlm_core.recipes.schema import DPOTraining, Evaluation, Recipe, Rendering, Stage
from trlm_core.text.templates import chat_template


def questions_spec(recipe: Recipe, evaluation: Evaluation) -> Spec:
    asked = evaluation.model_dump(mode="json", include={"seed", "families", "unseen_families", "questions_per_family", "few_shot"})
    families = (*evaluation.families, *evaluation.unseen_families)
    identity = {
        "made_by": "suites/1",
        "asked": asked,
        "sizes": {family: recipe.families[family] for family in families},
        "revision": recipe.generator,
    }
    return Spec("datasets", recipe.name, "questions", identity, {}, recipe.model_dump(mode="json"))


def replies_spec(
    recipe: Recipe,
    evaluation: Evaluation,
    subject: str,
    checkpoint: Fingerprinted,
    questions: Fingerprinted,
    rendering: Rendering,
    *,
    shots: bool,
) -> Spec:
    identity = {
        "made_by": "harness/1",
        "max_new_tokens": evaluation.max_new_tokens,
        "precision": evaluation.precision,
        "few_shot": shots,
        "template": chat_template(rendering),
    }
    inputs = {"checkpoint": checkpoint.fingerprint, "questions": questions.fingerprint}
    return Spec("evals", recipe.name, subject, identity, inputs, recipe.model_dump(mode="json"))


def held_out_spec(recipe: Recipe, stage: Stage, checkpoint: Fingerprinted, start: Fingerprinted, dataset: Fingerprinted) -> Spec:
    identity = {"made_by": "held_out/1", "beta": stage.training.beta if isinstance(stage.training, DPOTraining) else None}
    inputs = {"checkpoint": checkpoint.fingerprint, "start": start.fingerprint, "dataset": dataset.fingerprint}
    return Spec("evals", recipe.name, f"{stage.name}-held-out", identity, inputs, recipe.model_dump(mode="json"))
