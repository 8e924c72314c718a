"""The questions of a recipe's evaluation: of the held-out side, from a seed that no blend uses, with solved examples for a few-shot prompt.

{"family": "chain_sum", "question": "What is 4 + 3?", "answer": "7", "answer_kind": "number", "trained_on": true,
 "shots": [["2 + 2?", "4"]]}
"""

import itertools
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.generated.draw import draw_problems
from trlm_core.data.generated.problem import Problem
from trlm_core.data.split import is_held_out, seed_of
from trlm_core.evals.specs import questions_spec
from trlm_core.recipes.schema import Evaluation, Recipe

QUESTIONS = "questions.jsonl"


class SuiteError(ValueError):
    """The evaluation cannot ask what the recipe wants."""


class Question(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    question: str
    answer: str
    answer_kind: str
    trained_on: bool  # the family, never the question
    shots: list[tuple[str, str]]  # solved questions of the same family, from the training side


def make_questions(store: Store, recipe: Recipe, evaluation: Evaluation) -> Manifest:
    """The recipe's questions. Raises SuiteError where a family has fewer than it should ask."""

    def build(folder: Path) -> dict[str, Any]:
        asked = [
            question
            for family in (*evaluation.families, *evaluation.unseen_families)
            for question in _family_questions(recipe, evaluation, family)
        ]
        (folder / QUESTIONS).write_text("\n".join(question.model_dump_json() for question in asked) + "\n")
        return {"questions": len(asked)}

    return store.make(questions_spec(recipe, evaluation), build)


def read_questions(folder: Path) -> list[Question]:
    return [Question.model_validate(json.loads(line)) for line in (folder / QUESTIONS).read_text().splitlines()]


def _family_questions(recipe: Recipe, evaluation: Evaluation, family: str) -> list[Question]:
    solved = _drawn(recipe, evaluation, family, evaluation.few_shot, held_out=False)
    asked = _drawn(recipe, evaluation, family, evaluation.questions_per_family, held_out=True)
    return [
        Question(
            family=family,
            question=problem.question,
            answer=problem.answer,
            answer_kind=problem.answer_kind,
            trained_on=family in evaluation.families,
            shots=[(shot.question, shot.answer) for shot in solved],
        )
        for problem in asked
    ]


def _drawn(recipe: Recipe, evaluation: Evaluation, family: str, count: int, *, held_out: bool) -> list[Problem]:
    seed = seed_of(evaluation.seed, f"evaluation/{family}/{'asked' if held_out else 'solved'}")
    problems = draw_problems(family, recipe.families[family], seed, accept=lambda problem: is_held_out(problem.question) == held_out)
    drawn = list(itertools.islice(problems, count))
    if len(drawn) < count:
        raise SuiteError(
            f"evaluation of {family}: wanted {count} questions, its sizes give {len(drawn)}; lower questions_per_family or widen the sizes"
        )
    return drawn
