"""A frozen language model with latent thoughts, beside what it is without them: `python benchmarks/trm_latent.py --split test --json`.

Builds the recipe trm-acceptance once a seed in --store, without flows: base, phases, controls, evaluation. What is finished there is taken
as it is, so that a run that was cut off goes on, and an ablation (`--set model.n_latent_steps=3`) shares base and phase 1 with the others.
Choices are made with --split validation; test puzzles are of other solved grids, and are looked at for the claim alone. A choice that is
made after that look asks new puzzles of these grids: --draw 1.

Claims, means over the seeds, in points of exact-match accuracy, of the TRM as phase 2 leaves it: after its N supervision steps over the
same language model's direct answers, over the same parameters without recursion, and over the language model itself, fine-tuned (in
trm-acceptance for as long); and after its best number of them over the first. Which number is best, validation says, whatever the split.
Of phase 3, where the recipe has it: mean reward and accuracy on validation puzzles over phase 2's, and the same rows `trm/N` beside
`phase2/N`. cpu_seconds of what this run built; they depend on the machine.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.trm import material
from trlm_core.trm.evaluate import Claim, Evaluation, EvaluationRow, best_step, claims
from trlm_core.trm.phase_checkpoints import PhaseTraining
from trlm_core.trm.phase_measures import make_measure
from trlm_core.trm.phase_trainer import PhaseProgress
from trlm_core.trm.results import make_evaluation, read_evaluation
from trlm_core.trm.specs import controls_of, measured_role
from trlm_core.trm.states import make_states
from trlm_core.trm_lineage import TRMLineage

CHOICE = measured_role("phase2")  # on validation: the best number of supervision steps
GRPO = measured_role("phase3")  # on validation: what phase 3 has gained
NOT_READ = (measured_role("phase1"), measured_role("phase2b"))


@dataclass(frozen=True)
class SeedResult:
    seed: int
    evaluation: Evaluation
    claims: tuple[Claim, ...]
    cpu_seconds: dict[str, float]  # of every artifact that was built now


@dataclass(frozen=True)
class Builder:
    """One recipe's artifacts in the store, in order."""

    store: Store
    recipe: TRMRecipe
    execution: Execution
    draw: int | None = None  # data.seed of the thoughts that the evaluation asks; None: those of the recipe

    @cached_property
    def specs(self) -> dict[str, Spec]:
        return TRMLineage(self.recipe).specs

    def result(self) -> SeedResult:
        made: dict[str, Manifest] = {}
        seconds: dict[str, float] = {}
        for role in [role for role in self.specs if role not in NOT_READ]:
            began = time.process_time()
            made[role] = self._made(role, made)
            if (took := time.process_time() - began) > 1.0:
                seconds[role] = round(took, 1)
        evaluation = read_evaluation(self.store.folder(made["evaluation"]))
        best = best_step(read_evaluation(self.store.folder(made[CHOICE])))
        gate = claims(evaluation, self.recipe.phase2.gate, self.recipe.model.n_supervision_steps, best)
        gained = [Claim(each["name"], each["wanted"], each["got"]) for each in made[GRPO].counts["claims"]] if GRPO in made else []
        return SeedResult(self.recipe.seed, evaluation, (*gate, *gained), seconds)

    def _made(self, role: str, made: dict[str, Manifest]) -> Manifest:
        store, recipe, execution = self.store, self.recipe, self.execution
        if role == "thoughts":
            return material.make_thoughts(store, recipe, made, execution, self._shown(role))
        if role == "base":
            return material.make_base(store, recipe, self.specs["base"], made, execution, self._shown(role))
        if role == "states":
            return make_states(store, recipe, made["base"], made["thoughts"], "train", material.usable_device(execution), self._shown(role))
        if role in (CHOICE, GRPO):
            return make_measure(store, recipe, "phase2" if role == CHOICE else "phase3", made, execution, tell_row)
        if role == "evaluation":
            return make_evaluation(store, recipe, {**made, "thoughts": self._asked(made)}, execution, tell_row)
        training = PhaseTraining.of(store, recipe, made, execution, None, lambda progress: self._tell_progress(role, progress))
        return training.control(role) if role in controls_of(recipe) else training.phase(role)  # type: ignore[arg-type]

    def _asked(self, made: dict[str, Manifest]) -> Manifest:
        if self.draw is None:
            return made["thoughts"]
        other = self.recipe.model_copy(update={"data": self.recipe.data.model_copy(update={"seed": self.draw})})
        return material.make_thoughts(self.store, other, made, self.execution, self._shown("drawn thoughts"))

    def _shown(self, role: str) -> Callable[[int, int], None]:
        def show(done: int, total: int) -> None:
            if done == total:
                tell(f"seed {self.recipe.seed}: {role}, {total:,} done")

        return show

    def _tell_progress(self, role: str, progress: PhaseProgress) -> None:
        if progress.done % 500 == 0 or progress.done == progress.steps:
            loss = f", loss {progress.metrics['loss']:.3f}" if "loss" in progress.metrics else ""
            tell(f"seed {self.recipe.seed}: {role}, {progress.done:,} of {progress.steps:,} steps{loss}")


def main() -> int:
    asked = arguments()
    asked.store.mkdir(parents=True, exist_ok=True)
    results = []
    for seed in asked.seeds:
        settings = [f"seed={seed}", f"evaluation.split={asked.split}", *asked.settings]
        recipe = load_trm_recipe(asked.recipe, settings=settings)
        check_draw(recipe, asked.draw)
        results.append(Builder(Store(asked.store), recipe, Execution(device=asked.device, threads=asked.threads), asked.draw).result())
        print(as_text(results[-1]), flush=True)
    reached = mean_claims(results)
    for claim in reached:
        verdict = "reached" if claim.holds else "NOT reached"
        print(f"{claim.name}: {100 * claim.got:+.1f} points, wanted {100 * claim.wanted:+.1f}: {verdict}")
    if asked.json:
        what = {name: getattr(asked, name) for name in ("recipe", "split", "draw", "settings")}
        print(json.dumps({**what, **as_tree(results, reached)}))
    return 0 if all(claim.holds for claim in reached) else 1


def check_draw(recipe: TRMRecipe, draw: int | None) -> None:
    """Other puzzles of a split's grids are in no other split; other questions of a checkpoint may be in validation."""
    if draw is not None and (recipe.data.kind != "sudoku4" or draw == recipe.data.seed):
        got = f"got {draw} for {recipe.data.kind} of data.seed {recipe.data.seed}"
        raise SystemExit(f"--draw: wanted sudoku4, and a seed that is not the recipe's own, {got}; leave it out, or take another")


def mean_claims(results: list[SeedResult]) -> list[Claim]:
    return [
        Claim(first.name, first.wanted, statistics.mean(each.claims[i].got for each in results))
        for i, first in enumerate(results[0].claims)
    ]


def as_tree(results: list[SeedResult], reached: list[Claim]) -> dict[str, Any]:
    names = [row.name for row in results[0].evaluation.rows]
    return {
        "exact": {name: statistics.mean(each.evaluation.exact(name) for each in results) for name in names},
        "points": {claim.name: round(100 * claim.got, 2) for claim in reached},
        "seeds": [
            {"seed": each.seed, "exact": {name: each.evaluation.exact(name) for name in names}, "cpu_seconds": each.cpu_seconds}
            for each in results
        ],
    }


def as_text(result: SeedResult) -> str:
    lines = [f"seed {result.seed}: {result.evaluation.examples} puzzles; CPU seconds now: {result.cpu_seconds or 'none'}"]
    for row in result.evaluation.rows:
        cost = f"{row.flops / 1e6:.0f} MFLOP, {row.generated_token_equivalents:.0f} generated tokens' worth"
        lines.append(f"  {row.name:<16} {100 * row.exact:5.1f} % +- {100 * row.standard_error:.1f}   {cost}")
    return "\n".join(lines)


def tell_row(row: EvaluationRow, left: int) -> None:
    tell(f"{row.name} {100 * row.exact:.1f} %, {left} rows left")


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--draw", type=int, help="ask puzzles drawn with this data.seed instead of the recipe's")
    add_shared_arguments(parser)
    return parser.parse_args()


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every benchmark that builds in a store."""
    parser.add_argument("--recipe", default="trm-acceptance", help="a recipe of this name, or a YAML file")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="an overriding key, as of `trlm trm run`")
    parser.add_argument("--store", type=Path, default=Path("build/trm_latent"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")


if __name__ == "__main__":
    sys.exit(main())
