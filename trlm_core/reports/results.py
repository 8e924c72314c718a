"""What a pipeline run leaves, as manifests: the report's only input."""

from dataclasses import dataclass

from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.schema import Recipe, Stage

BASE, FEW_SHOT = "base", "base-few-shot"


@dataclass(frozen=True)
class StageResult:
    stage: Stage
    blend: Manifest
    dataset: Manifest
    start: Manifest  # the parent, or the parent with the stage's new tokens
    checkpoint: Manifest
    held_out: Manifest


@dataclass(frozen=True)
class RunResults:
    recipe: Recipe
    base: Manifest
    questions: Manifest
    stages: tuple[StageResult, ...]
    replies: dict[str, Manifest]  # subject, in order: base, base-few-shot, stage1_sft, stage2_sft_think-start, stage2_sft_think, stage3_dpo


def subjects_of(stages: list[StageResult]) -> list[tuple[str, Stage, Manifest]]:
    """What answers the questions besides the base: each stage, and before it its start where the stage adds tokens."""
    subjects = []
    for result in stages:
        if result.stage.rendering.new_tokens is not None:
            subjects.append((f"{result.stage.name}-start", result.stage, result.start))
        subjects.append((result.stage.name, result.stage, result.checkpoint))
    return subjects
