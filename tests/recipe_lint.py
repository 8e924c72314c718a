"""`python -m tests.recipe_lint`: every recipe, with every variant and budget, loads, resolves and maps to its trainers' arguments.

One line each; ends with 1 and the reasons where one does not.
"""

import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from trlm_core.data.generated.families import FAMILIES
from trlm_core.data.generated.slips import FAULTS
from trlm_core.recipes.load import load_recipe, overlay_names, recipe_names
from trlm_core.recipes.schema import DPOTraining, Recipe, Stage
from trlm_core.recipes.trm_load import load_trm_recipe, trm_recipe_names
from trlm_core.recipes.trm_schema import CheckpointBase, OwnTraces, TRMRecipe
from trlm_core.text.templates import chat_template
from trlm_core.training.hardware import Hardware
from trlm_core.training.trl_config import dpo_config, sft_config

CPU = Hardware(device="cpu", threads=1, tokens_per_micro_batch=384, activation_checkpointing=False, compile=False, laid_attention=None)
Combination = tuple[str, str | None, str | None]  # recipe, variant, budget


def main() -> int:
    reasons = []
    for combination in combinations():
        title = " ".join(part for part in combination if part)
        try:
            print(f"{title:<32} {described(load_recipe(combination[0], variant=combination[1], budget=combination[2]))}")
        except ValueError as error:
            reasons.append(f"{title}: {error}")
    for name in trm_recipe_names():
        try:
            print(f"{name:<32} {described_trm(load_trm_recipe(name))}")
        except ValueError as error:
            reasons.append(f"{name}: {error}")
    print("\n".join(reasons), file=sys.stderr, end="\n" if reasons else "")
    return 1 if reasons else 0


def combinations() -> Iterator[Combination]:
    for recipe in recipe_names():
        yield from itertools.product([recipe], overlay_names(recipe, "variants") or [None], [None, *overlay_names(recipe, "budgets")])


def described(recipe: Recipe) -> str:
    """The stages in words. Raises ValueError where one cannot be trained as it stands."""
    unknown = recipe.used_families() - FAMILIES.keys()
    if unknown:
        raise ValueError(f"families: wanted some of {sorted(FAMILIES)}, got {sorted(unknown)}")
    return f"{recipe.variant}: " + ", ".join(_stage(stage) for stage in recipe.stages)


def described_trm(recipe: TRMRecipe) -> str:
    """The phases in words. Raises ValueError where a base or a family is not to be had."""
    if isinstance(recipe.base, CheckpointBase):
        stages = [stage.name for stage in load_recipe(recipe.base.recipe, variant=recipe.base.variant, budget=recipe.base.budget).stages]
        if recipe.base.stage not in stages:
            raise ValueError(f"base.stage: wanted one of {', '.join(stages)}, got {recipe.base.stage}")
    if isinstance(recipe.data, OwnTraces) and (unknown := recipe.data.families.keys() - FAMILIES.keys()):
        raise ValueError(f"data.families: wanted some of {sorted(FAMILIES)}, got {sorted(unknown)}")
    phases = {name: getattr(recipe, name) for name in ("phase1", "phase2", "phase2b", "phase3")}
    steps = ", ".join(f"{name} {phase.training.steps:,} steps" for name, phase in phases.items() if phase is not None)
    return f"{recipe.data.kind} {recipe.most_examples('train'):,} rows, {steps}"


def _stage(stage: Stage) -> str:
    unknown = {*stage.blend.faults, *stage.blend.unseen_faults} - FAULTS.keys()
    if unknown:
        raise ValueError(f"{stage.name}.blend.faults: wanted some of {sorted(FAULTS)}, got {sorted(unknown)}")
    if not chat_template(stage.rendering):
        raise ValueError(f"{stage.name}.rendering.template: wanted a template, got nothing in it")
    rows = sum(source.num_examples for source in stage.blend.sources)
    steps = rows * stage.training.epochs // stage.training.sequences_per_step
    if not steps:
        raise ValueError(f"{stage.name}: wanted {stage.training.sequences_per_step} rows for one step, got {rows}")
    with tempfile.TemporaryDirectory() as folder:
        _map(stage, steps, Path(folder))
    return f"{stage.name} {rows:,} rows {steps:,} steps"


def _map(stage: Stage, steps: int, folder: Path) -> None:
    if isinstance(stage.training, DPOTraining):
        args = dpo_config(stage.training, CPU, steps=steps, output=folder)
    else:
        args = sft_config(stage.training, CPU, steps=steps, output=folder)
    if args.max_steps != steps:
        raise ValueError(f"{stage.name}: wanted {steps} steps in the trainer's arguments, got {args.max_steps}")


if __name__ == "__main__":
    sys.exit(main())
