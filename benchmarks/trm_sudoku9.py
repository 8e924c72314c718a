"""The paper's core on 9x9 Sudoku by givens, beside the same parameters without recursion: no gate, what a core learns in half an hour.

    python benchmarks/trm_sudoku9.py --split validation                                       # two trainings, about 15 CPU-minutes each
    python benchmarks/trm_sudoku9.py --recipe paper --data FOLDER --device cuda --split test  # about 36 hours of a GPU; run by nobody here

`cpu_hour`: generated puzzles of 50 to 28 givens, each grade of the same grids; no held-out grid is a symmetry of one that is trained on.
Training shows a puzzle in another of its symmetric guises each time. The direct twin has the same parameters and passes each layer twice;
both get as many layer passes (a backward counts two). `paper`: Sudoku-Extreme with the paper's figures, on 1,000 puzzles; FOLDER has
train.csv and test.csv of the dataset sapientinc/sudoku-extreme. A training that was cut off goes on from its last save in --folder.

grids: share of the puzzles with every cell right. cells: share of the empty cells that are right. halts_rightly: share for which the
halting head holds that step's answer right and it is, or wrong and it is. By supervision step.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model

from trlm_core.trm.config import PAPER, RecursionConfig, training_cost_of_a_step
from trlm_core.trm.grid_training import GridRecipe, GridTrainer
from trlm_core.trm.grid_trm import GridTRM, answer_grids, is_solved, without_recursion
from trlm_core.trm.puzzles import Puzzles, joined
from trlm_core.trm.sudoku9 import N_CELLS, N_TOKENS, graded_puzzles, read_puzzles, split_grids, varied

GRADES = (50, 44, 38, 32, 28)
N_HELD_OUT = 200  # grids of validation, and of the test
GRID_SEED, DIG_SEEDS = 0, {"train": 0, "validation": 1, "test": 2}
STEPS_AT_TEST = {"recursive": (1, 2, 4, 8, 16), "direct": (1,)}
SAVE_SECONDS, TELL_STEPS = 60.0, 100
AT_ONCE = 200  # puzzles that are answered together


@dataclass(frozen=True)
class Recipe:
    recursion: RecursionConfig
    batch: int
    learning_rate: float
    final_rate_share: float
    warmup_steps: int
    weight_decay: float
    max_gradient_norm: float
    ema_decay: float
    precision: Literal["float32", "bf16_mixed"]
    n_train: int  # solved grids, each with a puzzle of every grade; or puzzles of Sudoku-Extreme
    layer_passes: int  # of each of the two trainings


CPU_HOUR = Recipe(
    recursion=RecursionConfig(
        width=128,
        n_heads=4,
        n_layers=2,
        n_latent_steps=2,
        n_deep_recursions=2,
        n_supervision_steps=8,
        halt_exploration_prob=0.1,
        residual_init_scale=0.25,
    ),
    batch=16,
    learning_rate=1.5e-3,
    final_rate_share=0.05,
    warmup_steps=100,
    weight_decay=0.1,
    max_gradient_norm=1.0,
    ema_decay=0.995,
    precision="bf16_mixed",
    n_train=2_000,
    layer_passes=240_000,
)
# arXiv 2510.04871 and its code's README: 50,000 epochs of 1,000 puzzles. It clips no gradient. Departures: docs/trm.md.
PAPERS_OWN = Recipe(
    recursion=PAPER,
    batch=768,
    learning_rate=1e-4,
    final_rate_share=1.0,
    warmup_steps=2_000,
    weight_decay=1.0,
    max_gradient_norm=math.inf,
    ema_decay=0.999,
    precision="bf16_mixed",
    n_train=1_000,
    layer_passes=50_000 * 1_000 // 768 * training_cost_of_a_step(PAPER),
)
RECIPES = {"cpu_hour": CPU_HOUR, "paper": PAPERS_OWN}


@dataclass(frozen=True)
class Run:
    """One training. What it says goes into the files of its weights and saves: other figures, another training."""

    recipe: Recipe
    model: Literal["recursive", "direct"]
    seed: int
    layer_passes: int
    data: str | None  # the folder of Sudoku-Extreme; None: generated

    @property
    def config(self) -> RecursionConfig:
        return self.recipe.recursion if self.model == "recursive" else without_recursion(self.recipe.recursion)

    @property
    def training(self) -> GridRecipe:
        return GridRecipe(
            optimizer_steps=self.layer_passes // training_cost_of_a_step(self.config),
            batch=self.recipe.batch,
            learning_rate=self.recipe.learning_rate,
            final_rate_share=self.recipe.final_rate_share,
            warmup_steps=self.recipe.warmup_steps,
            weight_decay=self.recipe.weight_decay,
            max_gradient_norm=self.recipe.max_gradient_norm,
            ema_decay=self.recipe.ema_decay,
            seed=self.seed,
            precision=self.recipe.precision,
        )

    @property
    def identity(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Data:
    train: Puzzles
    held_out: dict[str, Puzzles]  # by grade


def generated(recipe: Recipe, split: str) -> Data:
    grids = split_grids(recipe.n_train, N_HELD_OUT, N_HELD_OUT, GRID_SEED)
    train = joined([*graded_puzzles(grids.train, GRADES, DIG_SEEDS["train"]).values()])
    held_out = graded_puzzles(getattr(grids, split), GRADES, DIG_SEEDS[split])
    return Data(train, {f"{givens} givens": puzzles for givens, puzzles in held_out.items()})


def extreme(recipe: Recipe, split: str, folder: Path, seed: int) -> Data:
    """Validation is of the training file, as the dataset has no other: the rows that are trained on are not in it."""
    drawn = read_puzzles(folder / "train.csv", recipe.n_train + N_HELD_OUT, seed)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed))
    train, validation = drawn.pick(order[: recipe.n_train]), drawn.pick(order[recipe.n_train :])
    return Data(train, {"extreme": validation if split == "validation" else read_puzzles(folder / "test.csv", None, seed)})


def make_model(run: Run, device: str) -> GridTRM:
    torch.manual_seed(run.seed)
    return GridTRM(run.config, N_TOKENS, N_CELLS).to(device)


class Training:
    """A run's files in a folder: a save while it trains, its averaged weights when it has."""

    def __init__(self, run: Run, folder: Path, device: str) -> None:
        self.run, self.device = run, device
        self.weights, self.save = folder / f"{run.model}-{run.seed}.safetensors", folder / f"{run.model}-{run.seed}.save"

    def is_done(self) -> bool:
        return self.weights.exists() and self.said()["run"] == self.run.identity

    def said(self) -> dict[str, str]:
        with safe_open(self.weights, "pt") as file:
            return file.metadata()

    def finish(self, puzzles: Puzzles) -> None:
        trainer = GridTrainer(make_model(self.run, self.device), puzzles, self.run.training, varied)
        seconds = self._go_on(trainer, self._restored(trainer))
        unfinished = self.weights.with_suffix(".unfinished")
        save_model(
            trainer.average.averaged(trainer.model), str(unfinished), metadata={"run": self.run.identity, "cpu_seconds": f"{seconds:.0f}"}
        )
        unfinished.rename(self.weights)
        self.save.unlink(missing_ok=True)

    def _go_on(self, trainer: GridTrainer, seconds_before: float) -> float:
        """CPU seconds in all."""
        began, saved, losses = time.process_time() - seconds_before, time.monotonic(), []
        while trainer.steps_done < self.run.training.optimizer_steps:
            losses.append(trainer.step())
            if trainer.steps_done % TELL_STEPS == 0:
                loss, seconds = statistics.mean(losses), time.process_time() - began
                tell(f"{self.run.model} step {trainer.steps_done:,}: loss {loss:.4f}, {seconds:.0f} s")
                losses.clear()
            if time.monotonic() - saved > SAVE_SECONDS:
                self._keep(trainer, time.process_time() - began)
                saved = time.monotonic()
        return time.process_time() - began

    def _keep(self, trainer: GridTrainer, seconds: float) -> None:
        unfinished = self.save.with_suffix(".unfinished-save")
        torch.save({"run": self.run.identity, "cpu_seconds": seconds, "trainer": trainer.state()}, unfinished)
        unfinished.rename(self.save)

    def _restored(self, trainer: GridTrainer) -> float:
        """CPU seconds that its last save took; 0 where there is none of this very training."""
        if not self.save.exists():
            return 0.0
        kept: dict[str, Any] = torch.load(self.save, map_location="cpu", weights_only=True)
        if kept["run"] != self.run.identity:
            return 0.0
        trainer.restore(kept["trainer"])
        return kept["cpu_seconds"]

    def model(self) -> GridTRM:
        model = make_model(self.run, "cpu")
        load_model(model, str(self.weights))
        return model.to(self.device).eval()


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def figures_of(model: GridTRM, puzzles: Puzzles, steps: Sequence[int], recipe: Recipe) -> dict[str, dict[int, float]]:
    """Per cent, by supervision step, in the precision of the training."""
    puzzles = puzzles.to(model.device)
    is_empty_NL = puzzles.given_NL == 0
    is_right, is_solved_rows, halts = [], [], []
    for start in range(0, len(puzzles), AT_ONCE):
        few = puzzles.pick(slice(start, start + AT_ONCE))
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.precision == "bf16_mixed"):
            answers = answer_grids(model, few.given_NL, max(steps))
        is_right.append(answers.tokens_SBL == few.solved_NL)
        is_solved_rows.append(is_solved(answers, few.solved_NL))
        halts.append(answers.halts_SB)
    is_right_SNL, is_solved_SN, halts_SN = (torch.cat(each, dim=1) for each in (is_right, is_solved_rows, halts))
    return {
        "grids": at_steps(is_solved_SN, steps),
        "cells": at_steps(is_right_SNL[:, is_empty_NL], steps),
        "halts_rightly": at_steps(halts_SN == is_solved_SN, steps),
    }


def at_steps(is_right_S: torch.Tensor, steps: Sequence[int]) -> dict[int, float]:
    return {step: round(100 * is_right_S[step - 1].float().mean().item(), 2) for step in steps}


def trained_figures(run: Run, data: Data, folder: Path, device: str) -> dict[str, Any]:
    training = Training(run, folder, device)
    if not training.is_done():
        training.finish(data.train)
    model = training.model()
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "optimizer_steps": run.training.optimizer_steps,
        "layer_passes": run.layer_passes,
        "cpu_seconds": float(training.said()["cpu_seconds"]),
        "grades": {grade: figures_of(model, puzzles, STEPS_AT_TEST[run.model], run.recipe) for grade, puzzles in data.held_out.items()},
    }


def table(told: dict[str, dict[str, Any]]) -> str:
    """A line a grade: solved grids, then right cells, of each model by supervision step."""
    lines = []
    for model, figures in told.items():
        spent = f"{figures['optimizer_steps']:,} optimizer steps, {figures['cpu_seconds']:,.0f} CPU seconds"
        lines.append(f"{model}: {figures['parameters']:,} parameters, {spent}; after steps {STEPS_AT_TEST[model]}")
        for grade, each in figures["grades"].items():
            told_of_grade = (f"{name} {' / '.join(f'{value:.1f}' for value in by_step.values())}" for name, by_step in each.items())
            lines.append(f"  {grade}: {'; '.join(told_of_grade)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=["validation", "test"], required=True, help="validation for choices; test once")
    parser.add_argument("--recipe", choices=[*RECIPES], default="cpu_hour")
    parser.add_argument("--models", nargs="+", choices=[*STEPS_AT_TEST], default=[*STEPS_AT_TEST])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layer-passes", type=int, help="of each training, instead of the recipe's")
    parser.add_argument("--data", type=Path, help="of the paper's recipe: folder with train.csv and test.csv")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, default=Path("build/trm_sudoku9"), help="where saves and trained weights stay")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if (arguments.recipe == "paper") != (arguments.data is not None):
        raise SystemExit(f"--data: wanted exactly with --recipe paper, got {arguments.data} with {arguments.recipe}")
    torch.set_num_threads(1)
    recipe, folder = RECIPES[arguments.recipe], arguments.folder / arguments.recipe
    folder.mkdir(parents=True, exist_ok=True)
    data = extreme(recipe, arguments.split, arguments.data, arguments.seed) if arguments.data else generated(recipe, arguments.split)
    passes = arguments.layer_passes or recipe.layer_passes
    runs = [Run(recipe, model, arguments.seed, passes, arguments.data and str(arguments.data.resolve())) for model in arguments.models]
    told = {run.model: trained_figures(run, data, folder, arguments.device) for run in runs}
    print(json.dumps(told) if arguments.json else table(told))


if __name__ == "__main__":
    main()
