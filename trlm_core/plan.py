"""The plan of a run, before anything expensive: rows, tokens, steps, time, disk and memory; and whether this machine can do it."""

import shutil
import time
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from trlm_core.base_model import check_base
from trlm_core.data.sources import check_sources
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import Recipe, Source, Stage

GIB = 2**30
PARAMETERS = 134_515_008  # SmolLM2-135M; another base shifts the estimates in proportion
TOKENS_PER_CHARACTER = 0.45  # short problems, every digit a token
GENERATED_CHARACTERS = {"answer": 45, "trace": 95, "pair": 190}
DIALOG_CHARACTERS = 110
BYTES_PER_TRAINED_PARAMETER = 16  # float32 weights, gradient and two moments
ACTIVATIONS = 1.2 * GIB  # of a micro-batch on a CPU, and the interpreter
MEMORY_GIB = round((PARAMETERS * BYTES_PER_TRAINED_PARAMETER + ACTIVATIONS) / GIB, 1)
FORWARD_BACKWARD_FLOPS = 6  # a parameter and token
EFFICIENCY = 0.25  # of the matmul peak that small batches reach
NUMBERS_SAVED = 3  # of a parameter: itself and AdamW's two moments
BYTES_OF_A_NUMBER = {"bf16": 2, "bf16_mixed": 4, "float32": 4}  # as it is trained, and saved


class PlanError(ValueError):
    """This machine, store or installation cannot do the run; the message says what is short."""


class StagePlan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    rows: int
    tokens: int  # estimated; an upper bound where the sources lie on the Hub
    steps: int


class Plan(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: list[StagePlan]
    generated_tokens: int  # of the evaluation, at most
    minutes: float
    disk_gib: float
    memory_gib: float


def make_plan(recipe: Recipe, execution: Execution) -> Plan:
    """Estimates from the recipe and a short measurement of this machine's arithmetic."""
    stages = [_stage_plan(stage) for stage in recipe.stages]
    asked = recipe.evaluation
    subjects = 3 + len(recipe.stages)
    questions = (len(asked.families) + len(asked.unseen_families)) * asked.questions_per_family if asked else 0
    generated = questions * subjects * (asked.max_new_tokens if asked else 0)
    trained = sum(plan.tokens * stage.training.epochs for plan, stage in zip(stages, recipe.stages, strict=True))
    seconds = (trained * FORWARD_BACKWARD_FLOPS + generated * 6) * PARAMETERS / (_flops_per_second() * EFFICIENCY)
    return Plan(
        stages=stages,
        generated_tokens=generated,
        minutes=round(seconds / 60 + 0.4 * len(recipe.stages) + 1, 1),
        disk_gib=_disk_gib(recipe, execution),
        memory_gib=MEMORY_GIB,
    )


def check_origins(recipe: Recipe) -> None:
    """Raise BaseModelError or SourceError where base or sources cannot be had from here: a pinned package, a folder, the Hub."""
    check_base(recipe.base)
    check_sources(recipe)


def check_recipe(recipe: Recipe) -> None:
    """Raise PlanError where the recipe asks for what there is not, or for a stage without a step."""
    _check_names(recipe)
    for stage in recipe.stages:
        _stage_plan(stage)


def check_pipeline(recipe: Recipe) -> None:
    """Raise the first reason for which no run of this recipe can come to its report: origins, names, steps, nothing to evaluate."""
    check_origins(recipe)
    check_recipe(recipe)
    if recipe.evaluation is None:
        raise PlanError(f"recipe {recipe.name}: wanted an evaluation for the report, got null; run its blends and stages one by one")


def check_machine(recipe: Recipe, store: Path, execution: Execution) -> None:
    """Raise PlanError where disk or memory of this machine are too small to train the recipe."""
    wanted = _disk_gib(recipe, execution)
    free = shutil.disk_usage(store).free / GIB
    if free < wanted:
        raise PlanError(f"disk of {store}: wanted {wanted} GiB free for {recipe.name}, got {free:.1f}; free some or choose another --store")
    available = psutil.virtual_memory().available / GIB
    if available < MEMORY_GIB:
        raise PlanError(f"memory: wanted {MEMORY_GIB} GiB available to train {recipe.name}, got {available:.1f}; close other programs")


def _disk_gib(recipe: Recipe, execution: Execution) -> float:
    """At the worst moment: every checkpoint, and the saves of the stage with the largest; they go when it is finished."""
    checkpoints = 1 + len(recipe.stages) + sum(stage.rendering.new_tokens is not None for stage in recipe.stages)
    saves = max(_bytes_of_saves(stage, execution) for stage in recipe.stages)
    return round((checkpoints * PARAMETERS * 4 + saves) / GIB + 0.2, 1)


def _bytes_of_saves(stage: Stage, execution: Execution) -> int:
    """The newest, the best, and the one that is being written aside while they are all there."""
    at_once = execution.keep_saves + 1 + 1
    return at_once * PARAMETERS * NUMBERS_SAVED * BYTES_OF_A_NUMBER[stage.training.precision]


def _check_names(recipe: Recipe) -> None:
    if not recipe.used_families():
        return
    from trlm_core.data.generated.families import FAMILIES  # reasoning-gym: seconds that a recipe of the Hub need not cost
    from trlm_core.data.generated.slips import FAULTS

    unknown = sorted(recipe.used_families() - FAMILIES.keys())
    if unknown:
        raise PlanError(f"families: wanted some of {', '.join(sorted(FAMILIES))}, got {', '.join(unknown)}")
    faults = {fault for stage in recipe.stages for fault in (*stage.blend.faults, *stage.blend.unseen_faults)}
    if faults - FAULTS.keys():
        raise PlanError(f"faults: wanted some of {', '.join(FAULTS)}, got {', '.join(sorted(faults - FAULTS.keys()))}")


def _stage_plan(stage: Stage) -> StagePlan:
    rows = sum(source.num_examples for source in stage.blend.sources)
    steps = rows * stage.training.epochs // stage.training.sequences_per_step
    if not steps:
        raise PlanError(f"{stage.name}: wanted at least {stage.training.sequences_per_step} rows for one step, got {rows}")
    return StagePlan(stage=stage.name, rows=rows, tokens=round(sum(_tokens(stage, source) for source in stage.blend.sources)), steps=steps)


def _tokens(stage: Stage, source: Source) -> float:
    if source.kind == "hub":
        return source.num_examples * stage.rendering.max_length
    characters = GENERATED_CHARACTERS[source.form] if source.kind == "generated" else DIALOG_CHARACTERS
    return source.num_examples * characters * TOKENS_PER_CHARACTER


def _flops_per_second() -> float:
    """Of a bfloat16 matrix product of the model's shape, the best of three short ones."""
    import torch

    a, b = torch.randn(384, 576).bfloat16(), torch.randn(576, 1536).bfloat16()
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(10):
            torch.mm(a, b)
        best = min(best, (time.perf_counter() - began) / 10)
    return 2 * 384 * 576 * 1536 / best
