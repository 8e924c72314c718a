"""A small finished run: three stages, six subjects, two trained families and one unseen, made through the real store."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.evals.harness import HELD_OUT, REPLIES, HeldOut
from trlm_core.evals.held_out import HeldOutLoss, Preferences
from trlm_core.evals.reasoning import Estimate, ScoredReply
from trlm_core.recipes.load import parse_recipe
from trlm_core.recipes.schema import Recipe
from trlm_core.reports.results import RunResults, StageResult
from trlm_core.training.checkpoint import HISTORY

# subject -> right on (chain_sum, chain_sum, gcd, gcd, lcm, lcm)
RIGHT = {
    "base": (0, 0, 0, 0, 0, 0),
    "base-few-shot": (0, 0, 1, 0, 0, 0),
    "stage1_sft": (0, 1, 0, 0, 0, 0),
    "stage2_sft_think-start": (0, 0, 0, 0, 0, 0),
    "stage2_sft_think": (1, 1, 1, 0, 1, 0),
    "stage3_dpo": (1, 1, 1, 1, 0, 0),
}
ASKED = ("chain_sum", "chain_sum", "gcd", "gcd", "lcm", "lcm")
THINKING = {"stage2_sft_think", "stage3_dpo"}
FORMS = {"stage1_sft": "answer", "stage2_sft_think": "trace", "stage3_dpo": "pair"}


def optimization(trainer: str) -> dict[str, Any]:
    shared = {
        "epochs": 1, "sequences_per_step": 8, "learning_rate": 0.001, "weight_decay": 0.0, "warmup_ratio": 0.1, "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine", "min_lr_rate": None, "precision": "float32", "seed": 1, "bad_steps": "stop", "max_grad_norm_ratio": None, "trainer": trainer,
    }  # fmt: skip
    return shared | ({"loss_type": "apo_zero", "beta": 0.1} if trainer == "dpo" else {"loss_type": "nll", "neftune_noise_alpha": None})


def stage_tree(name: str, parent: str) -> dict[str, Any]:
    pairs = name == "stage3_dpo"
    sources = [
        {"kind": "generated", "family": family, "form": FORMS[name], "num_examples": 8, "num_held_out": 2}
        for family in ("chain_sum", "gcd")
    ]
    blend = {
        "seed": 1,
        "faults": ["wrong_result"] if pairs else [],
        "unseen_faults": ["misread"] if pairs else [],
        "max_tokens": 96,
        "filters": None,
        "parquet_from": 20_000,
        "sources": sources,
    }
    rendering = {
        "template": "clean", "system_prompt": None, "loss_on": "assistant", "max_length": 128,
        "max_prompt_length": 64 if pairs else None, "new_tokens": None,
    }  # fmt: skip
    training = optimization("dpo" if pairs else "sft")
    return {"name": name, "parent": parent, "blend": blend, "rendering": rendering, "training": training, "reported_execution": None}


def recipe_tree() -> dict[str, Any]:
    names = ("stage1_sft", "stage2_sft_think", "stage3_dpo")
    return {
        "name": "tiny", "variant": "improved", "description": "A recipe for tests.",
        "base": {"kind": "hub", "repo": "someone/tiny", "revision": "0123abc", "label": "dequantised Q4_1"},
        "families": {"chain_sum": {"max_terms": 2}, "gcd": {"max_value": 20}, "lcm": {"max_value": 20}},
        "generator": "0.1.25", "dialogs": None,
        "stages": [stage_tree(name, parent) for name, parent in zip(names, ("base", *names), strict=False)],
        "evaluation": {
            "seed": 9, "families": ["chain_sum", "gcd"], "unseen_families": ["lcm"], "questions_per_family": 2, "few_shot": 1,
            "max_new_tokens": 32, "precision": "float32", "goals": {"well_formed": 0.9, "preference_accuracy": 0.7, "z": 1.0},
        },
    }  # fmt: skip


def scored_reply(subject: str, position: int) -> ScoredReply:
    right, thinking = bool(RIGHT[subject][position]), subject in THINKING
    said = "5" if right else "<script>alert(1)</script>"
    return ScoredReply(
        family=ASKED[position],
        trained_on=ASKED[position] != "lcm",
        question=f"What is question {position} & 2?",
        answer="5",
        reply=f"<think>\n2 + 3 = 5.\n</think>\n{said}" if thinking else said,
        right=right,
        well_formed=thinking and not (subject == "stage2_sft_think" and position == 5),
        ended=True,
        reply_tokens=12,
        thought_words=5 if thinking else None,
    )


def proportion(mean: float, n: int) -> Estimate:
    return Estimate(mean=mean, standard_error=(mean * (1 - mean) / (n - 1)) ** 0.5, n=n)


def preferences(fault: str, accuracy: float, start: float) -> Preferences:
    margin = Estimate(mean=0.42, standard_error=0.1, n=8)
    return Preferences(
        fault=fault,
        accuracy=proportion(accuracy, 8),
        margin=margin,
        start_log_prob_accuracy=proportion(start, 8),
        length_accuracy=proportion(0.5, 8),
    )


def history(trainer: str) -> list[dict[str, Any]]:
    sft = {"mean_token_accuracy": 0.5, "entropy": 1.1}
    dpo = {"rewards/accuracies": 0.6, "rewards/margins": 0.2}
    return [{"step": step, "loss": 2.0 / step, **(dpo if trainer == "dpo" else sft)} for step in range(1, 31)]


class Run:
    """Writes the artifacts of one run into a store."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self.store, self.recipe = store, recipe

    def artifact(self, kind: Any, name: str, files: dict[str, str], counts: dict[str, Any] | None = None) -> Manifest:
        def build(folder: Path) -> dict[str, Any]:
            for file, text in files.items():
                (folder / file).write_text(text)
            return counts or {}

        return self.store.make(Spec(kind, self.recipe.name, name, {"files": files}, {}), build)

    def blend(self, name: str) -> Manifest:
        counts = {source.name: {"train": 8, "held_out": 2, "dropped": {"too_long": 3}} for source in self.recipe.stage(name).blend.sources}
        checks = [{"name": f"rows of {source}", "wanted": "8", "got": "8"} for source in counts]
        return self.artifact("datasets", name, {"checks.json": json.dumps(checks)}, {"rows": 16, "sources": counts})

    def held_out(self, name: str) -> Manifest:
        pairs = name == "stage3_dpo"
        loss, start = (0.7, 1.0) if pairs else (1.9, 1.6) if name == "stage1_sft" else (0.4, 1.2)  # stage 1 grows worse
        whole = HeldOutLoss(loss=loss, loss_at_start=start, loss_outside_new_tokens=None, loss_at_start_outside_new_tokens=None, rows=4)
        scores = [preferences("unseen", 0.75, 0.875), preferences("seen", 1.0, 0.5), preferences("misread", 0.75, 0.875)] if pairs else []
        text = HeldOut(stage=name, loss=whole, preferences=scores).model_dump_json()
        return self.artifact("evals", f"{name}-held-out", {HELD_OUT: text})

    def checkpoint(self, name: str) -> Manifest:
        lines = history(self.recipe.stage(name).training.trainer)
        return self.artifact("checkpoints", name, {HISTORY: "\n".join(json.dumps(line) for line in lines)})

    def replies(self, subject: str) -> Manifest:
        lines = [scored_reply(subject, position).model_dump_json() for position in range(len(ASKED))]
        return self.artifact("evals", subject, {REPLIES: "\n".join(lines) + "\n"})

    def stage(self, name: str, start: Manifest) -> StageResult:
        dataset = self.artifact("datasets", f"{name}-tokens", {"rows": name})
        return StageResult(self.recipe.stage(name), self.blend(name), dataset, start, self.checkpoint(name), self.held_out(name))

    def results(self) -> RunResults:
        base = self.artifact("checkpoints", "base", {"model": "base"})
        stages = tuple(self.stage(stage.name, base) for stage in self.recipe.stages)
        replies = {subject: self.replies(subject) for subject in RIGHT}
        return RunResults(self.recipe, base, self.artifact("datasets", "questions", {"asked": "6"}), stages, replies)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def results(store: Store) -> RunResults:
    return Run(store, parse_recipe(recipe_tree(), where="tiny")).results()


@pytest.fixture
def without_stage3(results: RunResults) -> RunResults:
    kept = {subject: manifest for subject, manifest in results.replies.items() if subject != "stage3_dpo"}
    return dataclasses.replace(results, stages=results.stages[:2], replies=kept)


@pytest.fixture
def with_reply(store: Store, results: RunResults) -> Callable[[str], RunResults]:
    """The run where the base answers the first question with this text."""

    def changed(text: str) -> RunResults:
        run = Run(store, results.recipe)
        lines = [scored_reply("base", position) for position in range(len(ASKED))]
        lines[0] = lines[0].model_copy(update={"reply": text})
        manifest = run.artifact("evals", "base", {REPLIES: "\n".join(line.model_dump_json() for line in lines) + "\n"})
        return dataclasses.replace(results, replies={**results.replies, "base": manifest})

    return changed
