"""Flow `evaluate`: the base, each stage and each stage's start answer the same questions."""

from prefect import flow

from tasks.data import make_questions
from tasks.evals import answer_questions
from tasks.place import Place
from trlm_core.artifacts.manifest import Manifest
from trlm_core.reports.results import BASE, FEW_SHOT, RunResults, StageResult, subjects_of


@flow(name="evaluate", flow_run_name="{place.recipe.name}", validate_parameters=False)
def evaluate(place: Place, base: Manifest, stages: list[StageResult]) -> RunResults:
    questions = make_questions(place)
    first = place.recipe.stages[0]
    replies = {BASE: answer_questions(place, BASE, first, base, questions)}
    replies[FEW_SHOT] = answer_questions(place, FEW_SHOT, first, base, questions, shots=True)
    for subject, stage, checkpoint in subjects_of(stages):
        replies[subject] = answer_questions(place, subject, stage, checkpoint, questions)
    return RunResults(place.recipe, base, questions, tuple(stages), replies)
