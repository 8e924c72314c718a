"""The schema: identity without execution, and JSON that editors can use."""

import json
from typing import Any

import pytest
from pydantic import BaseModel

from trlm_core.artifacts.manifest import Manifest, now
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import DPOTraining, Recipe, ReportedExecution, SFTTraining
from trlm_core.training.specs import checkpoint_spec


def manifest(fingerprint: str) -> Manifest:
    return Manifest(
        kind="datasets",
        group="g",
        name="n",
        version="001-x",
        fingerprint=fingerprint,
        identity={},
        inputs={},
        recipe={},
        counts={},
        git_commit=None,
        packages={},
        created=now(),
        seconds=0.0,
        files={},
    )


def test_the_schema_is_json_that_requires_every_decision():
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    assert set(schema["required"]) == set(Recipe.model_fields)
    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
        assert set(definition["required"]) == set(definition["properties"]), f"{name} has a default"
    assert schema["additionalProperties"] is False


def test_no_field_of_execution_is_a_field_of_a_recipe_but_as_the_report_s_own_execution():
    assert set(Execution.model_fields) & set(_fields(Recipe.model_json_schema())) <= set(ReportedExecution.model_fields)


def test_two_runs_that_differ_only_in_execution_have_the_same_fingerprint(tiny_recipe: Recipe):
    dataset, start = manifest("aa" * 32), manifest("bb" * 32)
    specs = [checkpoint_spec(tiny_recipe, tiny_recipe.stages[0], dataset, start) for _ in range(2)]
    assert specs[0].fingerprint == specs[1].fingerprint
    assert not [name for name in Execution.model_fields if name in json.dumps(specs[0].identity)]


def test_the_report_s_own_execution_is_recorded_but_is_no_identity(tiny_recipe: Recipe):
    stage = tiny_recipe.stages[0]
    reported = ReportedExecution(per_device_train_batch_size=32, gradient_accumulation_steps=4, gradient_checkpointing=True, save_steps=300)
    other = stage.model_copy(update={"reported_execution": reported})
    inputs = manifest("aa" * 32), manifest("bb" * 32)
    assert checkpoint_spec(tiny_recipe, stage, *inputs).fingerprint == checkpoint_spec(tiny_recipe, other, *inputs).fingerprint


@pytest.mark.parametrize(("number", "training"), [(0, SFTTraining), (2, DPOTraining)])
def test_every_field_of_a_training_is_part_of_its_fingerprint(tiny_recipe: Recipe, number: int, training: type[BaseModel]):
    stage, inputs = tiny_recipe.stages[number], (manifest("aa" * 32), manifest("bb" * 32))
    fingerprint = checkpoint_spec(tiny_recipe, stage, *inputs).fingerprint
    for field in training.model_fields:
        changed = stage.model_copy(update={"training": stage.training.model_copy(update={field: 77})})
        assert checkpoint_spec(tiny_recipe, changed, *inputs).fingerprint != fingerprint, field


def test_other_inputs_are_another_fingerprint(tiny_recipe: Recipe):
    stage, a, b = tiny_recipe.stages[0], manifest("aa" * 32), manifest("bb" * 32)
    assert len({checkpoint_spec(tiny_recipe, stage, *pair).fingerprint for pair in ((a, a), (a, b), (b, a), (b, b))}) == 4


def test_a_recipe_is_frozen(tiny_recipe: Recipe):
    with pytest.raises(ValueError, match="frozen"):
        tiny_recipe.stages[0].training.seed = 5  # type: ignore[misc]


def _fields(schema: dict[str, Any]) -> set[str]:
    return set(schema.get("properties", {})) | {field for part in schema.get("$defs", {}).values() for field in part.get("properties", {})}
