"""The paper's core on 4x4 Sudoku, beside the same parameters without recursion: `python benchmarks/trm_sudoku.py --split test --json`.

Both train on puzzles of the same 200 solved grids and answer puzzles of others (28 for choices, 60 for the test), at as many layer passes
(a backward counts two), three seeds each. Grades: `fewest`, 4 givens alone, the fewest that any puzzle with one solution has; `mixed`, 4 to
6 givens, most of them 6, where one supervision step is right nearly always. Trained weights stay in --folder: a run that was cut off goes
on with the next model.

accuracy: share of the puzzles with every cell right, after 1, 2, 3 and 8 supervision steps. halts_rightly: share for which the halting head
holds that step's answer right and it is, or wrong and it is. cpu_seconds depend on the machine and its other load.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model

from trlm_core.trm.config import RecursionConfig, training_cost_of_a_step
from trlm_core.trm.grid_training import GridRecipe, GridTrainer
from trlm_core.trm.grid_trm import GridTRM, answer_grids, is_solved, without_recursion
from trlm_core.trm.puzzles import Puzzles
from trlm_core.trm.sudoku import N_CELLS, N_TOKENS, draw_puzzles, split_grids

RECURSIVE = RecursionConfig(
    width=64,
    n_heads=4,
    n_layers=2,
    n_latent_steps=3,
    n_deep_recursions=2,
    n_supervision_steps=4,
    halt_exploration_prob=0.1,
    residual_init_scale=0.25,
)
MODELS = {"recursive": RECURSIVE, "direct": without_recursion(RECURSIVE)}
GRADES = {"fewest": (4,), "mixed": (4, 5, 6)}
STEPS_AT_TEST = {"recursive": (1, 2, 3, 8), "direct": (1,)}
N_TRAIN, N_HELD_OUT = 3_000, 600
DATA_SEEDS = {"train": 0, "validation": 1, "test": 2}
WANTED_OVER_FIRST, WANTED_OVER_DIRECT = 1.0, -0.5  # points


@dataclass(frozen=True)
class Run:
    """One training. What it says goes into the file of its weights: other figures, another training."""

    grade: str
    model: str
    seed: int
    layer_passes: int

    @property
    def recipe(self) -> GridRecipe:
        return GridRecipe(
            optimizer_steps=self.layer_passes // training_cost_of_a_step(MODELS[self.model]),
            batch=32,
            learning_rate=1.5e-3,
            final_rate_share=0.05,
            warmup_steps=50,
            weight_decay=0.1,
            max_gradient_norm=1.0,
            ema_decay=0.99,
            seed=self.seed,
            precision="float32",
        )

    def weights(self, folder: Path) -> Path:
        return folder / f"{self.grade}-{self.model}-{self.seed}.safetensors"

    def identity(self) -> dict[str, str]:
        said = {**asdict(self), "config": asdict(MODELS[self.model]), "recipe": asdict(self.recipe), "puzzles": N_TRAIN}
        return {"run": json.dumps(said, sort_keys=True)}


@dataclass(frozen=True)
class Figures:
    """Of one trained model; per cent, by supervision step."""

    accuracy: dict[int, float]
    halts_rightly: dict[int, float]
    optimizer_steps: int
    cpu_seconds: float


def puzzles_of(grade: str, split: str) -> Puzzles:
    count = N_TRAIN if split == "train" else N_HELD_OUT
    return draw_puzzles(getattr(split_grids(), split), count, GRADES[grade], DATA_SEEDS[split])


def make_model(run: Run) -> GridTRM:
    torch.manual_seed(run.seed)
    return GridTRM(MODELS[run.model], N_TOKENS, N_CELLS)


def is_trained(run: Run, folder: Path) -> bool:
    return run.weights(folder).exists() and said_of(run.weights(folder))["run"] == run.identity()["run"]


def said_of(weights: Path) -> dict[str, str]:
    with safe_open(weights, "pt") as file:
        return file.metadata()


def train(run: Run, puzzles: Puzzles, folder: Path) -> None:
    """Weights and seconds, by rename: a file that exists is whole."""
    began = time.process_time()
    trained = GridTrainer(make_model(run), puzzles, run.recipe).train()
    seconds = str(round(time.process_time() - began, 1))
    unfinished = run.weights(folder).with_suffix(".unfinished")
    save_model(trained, str(unfinished), metadata={**run.identity(), "cpu_seconds": seconds})
    unfinished.rename(run.weights(folder))


def figures_of(run: Run, puzzles: Puzzles, folder: Path) -> Figures:
    model = make_model(run)
    load_model(model, str(run.weights(folder)))
    steps = STEPS_AT_TEST[run.model]
    answers = answer_grids(model.eval(), puzzles.given_NL, max(steps))
    solved_SB = is_solved(answers, puzzles.solved_NL)
    return Figures(
        accuracy=at_steps(solved_SB, steps),
        halts_rightly=at_steps(answers.halts_SB == solved_SB, steps),
        optimizer_steps=run.recipe.optimizer_steps,
        cpu_seconds=float(said_of(run.weights(folder))["cpu_seconds"]),
    )


def at_steps(is_right_SB: torch.Tensor, steps: Sequence[int]) -> dict[int, float]:
    return {step: round(100 * is_right_SB[step - 1].float().mean().item(), 2) for step in steps}


def gates(recursive: Sequence[Figures], direct: Sequence[Figures]) -> dict[str, float | bool]:
    """Points that the last step is over the first and over no recursion: means over the seeds, and whether each is what was wanted."""
    over_first = statistics.mean(each.accuracy[8] - each.accuracy[1] for each in recursive)
    over_direct = statistics.mean(ours.accuracy[8] - theirs.accuracy[1] for ours, theirs in zip(recursive, direct, strict=True))
    return {
        "last_over_first": round(over_first, 2),
        "last_over_direct": round(over_direct, 2),
        "passed": over_first >= WANTED_OVER_FIRST and over_direct >= WANTED_OVER_DIRECT,
    }


def mean_accuracy(figures: Sequence[Figures]) -> dict[int, float]:
    return {step: round(statistics.mean(each.accuracy[step] for each in figures), 2) for step in figures[0].accuracy}


def trained_figures(run: Run, train_puzzles: Puzzles, held_out: Puzzles, folder: Path) -> Figures:
    if not is_trained(run, folder):
        train(run, train_puzzles, folder)
    figures = figures_of(run, held_out, folder)
    print(f"{run.grade} {run.model} seed {run.seed}: {figures}", file=sys.stderr, flush=True)
    return figures


def figures_of_grade(grade: str, arguments: argparse.Namespace) -> dict[str, object]:
    train_puzzles, held_out = puzzles_of(grade, "train"), puzzles_of(grade, arguments.split)
    told: dict[str, list[Figures]] = {model: [] for model in MODELS}
    for seed in range(arguments.seeds):
        for model, figures in told.items():
            figures.append(trained_figures(Run(grade, model, seed, arguments.layer_passes), train_puzzles, held_out, arguments.folder))
    return {
        "mean_accuracy": {model: mean_accuracy(figures) for model, figures in told.items()},
        "gates": gates(told["recursive"], told["direct"]),
        "seeds": {model: [asdict(each) for each in figures] for model, figures in told.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=["validation", "test"], required=True, help="validation for choices; test for the claim, once")
    parser.add_argument("--grades", nargs="+", choices=[*GRADES], default=[*GRADES])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--layer-passes", type=int, default=75_000, help="of one training: about 95 CPU-seconds")
    parser.add_argument("--folder", type=Path, default=Path("build/trm_sudoku"), help="where trained weights stay")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    told = {grade: figures_of_grade(grade, arguments) for grade in arguments.grades}
    print(json.dumps(told) if arguments.json else "\n".join(f"{grade}: {each}" for grade, each in told.items()))


if __name__ == "__main__":
    main()
