"""Flow `evaluate`: the base, each stage and each stage's start answer the same questions."""

from prefect import flow
from prefect.client.schemas.objects import State

from flows.parameters import DEFAULT_RECIPE, WORKERS_OWN, RecipeChoice, SubjectName
from tasks.data import find_finished
from tasks.evals import answer_questions, make_questions
from tasks.place import Where
from tasks.runs import work_at
from tasks.states import left


@flow(name="evaluate", flow_run_name="{recipe.label}")
def evaluate(subjects: tuple[SubjectName, ...] = (), recipe: RecipeChoice = DEFAULT_RECIPE, where: Where = WORKERS_OWN) -> State[None]:
    """Ask finished checkpoints the recipe's questions and score their replies.

    Args:
        subjects: Who answers. Empty: the base and every stage of the recipe.
    """
    place = work_at(recipe.load(), where)
    questions = make_questions(place)
    chosen = place.lineage.chosen_subjects(subjects)
    checkpoints = [find_finished(place, subject.checkpoint) for subject in chosen]
    replies = [answer_questions(place, *asked, questions) for asked in zip(chosen, checkpoints, strict=True)]
    return left(*replies)
