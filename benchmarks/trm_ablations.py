"""What each part of a TRM on hidden states is worth: phase 2 again with one setting changed, beside the recipe as it is.

    python benchmarks/trm_ablations.py                                        every row, 4 CPU-minutes and more each
    python benchmarks/trm_ablations.py --only pre-norm --only n=3 --phase2-steps 1000 --json

In --store (that of trm_latent.py, which also has the Builder) base, states and phase 1 are made once, or found; a row of another size of
the thinker makes its own phase 1. What is finished is taken as it is, so that a run that was cut off goes on.
Exact accuracy on validation, one seed, after 1 to 32 supervision steps, whatever the row is trained with. All rows have the same number of
optimizer steps, not of layer passes: these stand beside. A training or a thought whose numbers are not finite is a row that says so.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from trm_latent import Builder, add_shared_arguments, tell

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.training.checkpoint import HISTORY, read_history, read_lines
from trlm_core.training.errors import BadStepError
from trlm_core.trm.answers import Writing, exact, write_answers
from trlm_core.trm.config import training_cost_of_a_step
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.material import Material, usable_device
from trlm_core.trm.phase_models import recursion_of
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.specs import phase_spec
from trlm_core.trm.thought_reading import thought_steps

STEPS = (1, 2, 4, 8, 16, 32)  # at which each row is asked
CURVE = "curve.json"
AS_IT_IS = "as-it-is"
ABLATIONS: dict[str, tuple[str, ...]] = {
    AS_IT_IS: (),
    "n=3": ("model.n_latent_steps=3",),
    "n=6": ("model.n_latent_steps=6",),
    "T=2": ("model.n_deep_recursions=2",),
    "T=3": ("model.n_deep_recursions=3",),
    "N=1": ("model.n_supervision_steps=1",),
    "N=8": ("model.n_supervision_steps=8",),
    "N=16": ("model.n_supervision_steps=16",),
    "no-ema": ("phase2.ema_decay=0",),
    "residual-scale-1": ("model.residual_init_scale=1",),
    "pre-norm": ("model.norm=pre",),
    "pre-norm-n=6-N=16": ("model.norm=pre", "model.n_latent_steps=6", "model.n_supervision_steps=16"),  # nearly the paper's depth
    "halting": ("phase2.min_steps=1",),  # as it is, every example takes its four steps, and none explores
    "halting-no-exploration": ("phase2.min_steps=1", "model.halt_exploration_prob=0"),
    "no-latent-norm": ("model.latent_norm=false",),
    "no-slots": ("model.slot_embeddings=false",),
    "no-latent-norm-no-slots": ("model.latent_norm=false", "model.slot_embeddings=false"),
    "loss-of-states": ("phase2.losses.token=0", "phase2.losses.answer=0"),
    "loss-of-tokens": ("phase2.losses.state=0", "phase2.losses.answer=0"),
    "loss-of-answers": ("phase2.losses.state=0", "phase2.losses.token=0", "phase2.answer_share=1"),
    "answers-at-every-step": ("phase2.answer_share=1",),
    # With a phase 1 of their own:
    "M=4": ("model.num_latents=4",),
    "M=8": ("model.num_latents=8",),
    "M=32": ("model.num_latents=32",),
    "answers-alone": ("phase1.losses.token=0", "phase2.losses.token=0", "phase2.answer_share=1"),  # beside the next
    "layer-2": ("model.hidden_layer=-2", "phase1.losses.token=0", "phase2.losses.token=0", "phase2.answer_share=1"),
    # None of slide: a base's context holds a thought in text (18 + 17 + 17 positions), and the 13 latents that a prompt of 18 can make
    # room for (sink_tokens 4, and <think>) fit into it beside the whole prompt.
}
ALONE = (  # phase 2 and nothing beside it
    *("controls.nonrecursive=null", "controls.pause=null", "controls.direct_tuned=null", "phase2b=null", "phase3=null"),
    "evaluation.rows=[trm]",
)


@dataclass(frozen=True)
class Row:
    name: str
    settings: tuple[str, ...]
    exact: dict[int, float | None]  # None: a state is not finite by then; empty where the training ended so
    diverged_at: int | None  # the optimizer step
    state_rms: float | None  # after the training's last step
    layer_passes: int  # of the training
    examples: int

    @property
    def best(self) -> float:
        return max((each for each in self.exact.values() if each is not None), default=math.nan)


@dataclass(frozen=True)
class Phase2Builder(Builder):
    """Of one recipe, all that its phase 2 needs, and the accuracy after each number of supervision steps."""

    def before_phase2(self) -> dict[str, Manifest]:
        made: dict[str, Manifest] = {}
        for role in [*self.specs][:4]:  # material and phase 1
            made[role] = self._made(role, made)
        return made

    def phase2(self, made: dict[str, Manifest]) -> Manifest:
        """Raises BadStepError where the training blows up."""
        return self._made("phase2", made)

    def curve(self, made: dict[str, Manifest]) -> Manifest:
        recipe, asked = self.recipe, {"steps": list(STEPS), "examples": self.recipe.evaluation.examples, "split": "validation"}
        identity = {
            "made_by": "trm_ablations/1",
            **asked,
            "max_new_tokens": recipe.evaluation.max_new_tokens,
            "precision": recipe.precision,
        }
        inputs = {role: made[role].fingerprint for role in ("base", "thoughts", "phase2")}

        def build(folder: Path) -> dict[str, Any]:
            material = Material(self.store, recipe, made, usable_device(self.execution))
            table = material.table("validation", recipe.evaluation.examples)
            shares = exact_by_step(material.model("phase2"), table, Writing(recipe.evaluation.max_new_tokens, temperature=None))
            tree = {"exact": {str(step): share for step, share in shares.items()}, "examples": len(table)}
            (folder / CURVE).write_text(json.dumps(tree) + "\n")
            return tree

        return self.store.make(Spec("evals", recipe.name, "phase2-by-step", identity, inputs, recipe.model_dump(mode="json")), build)


@torch.no_grad()
def exact_by_step(model: LatentThoughtModel, table: RowTable, writing: Writing) -> dict[int, float | None]:
    """Share of the rows that are answered rightly after so many supervision steps."""
    right: dict[int, list[bool | None]] = {step: [] for step in STEPS}
    for numbers, batch in table.batches():
        prompt, rows = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL), [table.rows[number] for number in numbers]
        for step, thought in enumerate(thought_steps(model, prompt, max(STEPS)), start=1):
            if step not in right:
                continue
            if thought.v_BMd.isfinite().all():
                right[step] += exact(write_answers(model, prompt, model.thinker.embed_thought(thought.v_BMd), writing), rows)
            else:
                right[step] += [None]
    return {step: _share(each) for step, each in right.items()}


def _share(right: Sequence[bool | None]) -> float | None:
    known = [each for each in right if each is not None]
    return sum(known) / len(known) if len(known) == len(right) else None


def measured(name: str, builder: Phase2Builder) -> Row:
    recipe, store, settings = builder.recipe, builder.store, ABLATIONS[name]
    passes = recipe.phase2.training.steps * training_cost_of_a_step(recursion_of(recipe.model))
    made = builder.before_phase2()
    try:
        made["phase2"] = builder.phase2(made)
    except BadStepError as error:
        tell(f"{name}: {error}")
        history = read_lines(store.workspace(phase_spec(recipe, "phase2", made)) / HISTORY)
        return Row(name, settings, {}, len(history) + 1, None, passes, recipe.evaluation.examples)
    curve, last = builder.curve(made).counts, read_history(store.folder(made["phase2"]))[-1]
    shares = {int(step): share for step, share in curve["exact"].items()}
    return Row(name, settings, shares, None, last["state_rms"], passes, curve["examples"])


def main() -> int:
    asked = arguments()
    asked.store.mkdir(parents=True, exist_ok=True)
    execution, rows = Execution(device=asked.device, threads=asked.threads), []
    for name in dict.fromkeys([AS_IT_IS, *(asked.only or ABLATIONS)]):
        recipe = recipe_of(asked.recipe, (f"seed={asked.seed}", *asked.settings, *ABLATIONS[name]), asked.phase2_steps)
        rows.append(measured(name, Phase2Builder(Store(asked.store), recipe, execution)))
        print(HEADER if len(rows) == 1 else "", end="")
        print(as_text(rows[-1], rows[0]), flush=True)
    if asked.json:
        tree = {"recipe": asked.recipe, "seed": asked.seed, "phase2_steps": recipe.phase2.training.steps, "settings": asked.settings}
        print(json.dumps({**tree, "rows": [asdict(row) for row in rows]}))
    return 0


def recipe_of(name: str, settings: Sequence[str], phase2_steps: int | None) -> TRMRecipe:
    """With a budget of so many optimizer steps, of which a tenth at most warm up."""
    recipe = load_trm_recipe(name, settings=[*settings, *ALONE])
    if phase2_steps is None:
        return recipe
    warmup = min(recipe.phase2.training.warmup_steps, phase2_steps // 10)
    budget = (f"phase2.training.warmup_steps={warmup}", f"phase2.training.steps={phase2_steps}")
    return load_trm_recipe(name, settings=[*settings, *ALONE, *budget])


HEADER = f"{'per cent right':<24}{''.join(f'{step:>7}' for step in STEPS)}   best, beside as it is   state_rms   layer passes\n"


def as_text(row: Row, whole: Row) -> str:
    if row.diverged_at is not None:
        return f"{row.name:<24}diverged at step {row.diverged_at:,}"
    shares = "".join(f"{'NaN' if (share := row.exact[step]) is None else f'{100 * share:.1f}':>7}" for step in STEPS)
    beside = f"{100 * row.best:8.1f} {100 * (row.best - whole.best):+12.1f}"
    return f"{row.name:<24}{shares}{beside}   {row.state_rms:9.3g}   {row.layer_passes:12,}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", choices=[*ABLATIONS], metavar="NAME", help=f"one of {', '.join(ABLATIONS)}; repeatable")
    parser.add_argument("--phase2-steps", type=int, metavar="N", help="optimizer steps of every row's phase 2; the recipe's by default")
    parser.add_argument("--seed", type=int, default=0)
    add_shared_arguments(parser)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
