"""What the arithmetic says each stage of a recipe takes on an MI300X.

    python benchmarks/stage_time.py trlm-135m --variant report --checkpoint FOLDER

An estimate: no GPU has run it. Operations as trlm_core/training/flops.py counts them, every token scored, no pads; FOLDER holds the model's
config. Without `--tokens` every sequence is taken as long as the recipe lets it be: an upper limit. Recomputed activations and whatever
is no training are not in it.
"""

import argparse
from dataclasses import dataclass

from transformers import AutoConfig

from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import Stage
from trlm_core.training.flops import Shape, training_flops

# 304 compute units x 2,048 bfloat16 operations a clock x 2.1 GHz: AMD's figures for the MI300X, without sparsity.
PEAK = 304 * 2_048 * 2.1e9
# A published figure of 2024: about 85,000 tokens a second and MI300X at 124 M parameters, in plain PyTorch.
PUBLISHED = 6 * 124e6 * 85_000 / PEAK
HOPED = 0.3  # of the peak: what small models reach elsewhere when nothing is padded and kernels are fused; nobody has seen it here
REFERENCE_PASS = 4 / 3  # of DPO: the reference log-probs are one more forward, a third of forward and backward


@dataclass(frozen=True)
class Estimate:
    sequences: int
    tokens: int
    flops: float

    def minutes(self, share: float) -> float:
        return self.flops / (PEAK * share) / 60


def estimate(stage: Stage, shape: Shape, length: int) -> Estimate:
    """Every sequence of this length."""
    training = stage.training
    rows = sum(source.num_examples for source in stage.blend.sources) * training.epochs
    whole = rows // training.sequences_per_step * training.sequences_per_step
    sequences = whole * (2 if training.trainer == "dpo" else 1)
    flops = sequences * training_flops(shape, [length], scored=length)
    return Estimate(sequences, sequences * length, flops * (REFERENCE_PASS if training.trainer == "dpo" else 1))


def length_of(text: str) -> tuple[str, int]:
    stage, _, tokens = text.partition("=")
    return stage, int(tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--checkpoint", required=True, help="folder with the model's config.json, such as a base in a store")
    parser.add_argument("--tokens", action="append", default=[], type=length_of, metavar="STAGE=MEAN", help="mean length of a sequence")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe, variant=arguments.variant)
    shape, lengths = Shape.of(AutoConfig.from_pretrained(arguments.checkpoint)), dict(arguments.tokens)
    if unknown := lengths.keys() - {stage.name for stage in recipe.stages}:
        raise SystemExit(f"--tokens: wanted stages of {recipe.name}, got {', '.join(sorted(unknown))}")
    print(f"| stage | sequences x tokens | PFLOP | minutes at {PUBLISHED:.0%} of the peak | at {HOPED:.0%} |\n|---|---:|---:|---:|---:|")
    for stage in recipe.stages:
        length = lengths.get(stage.name, stage.rendering.max_length)
        found = estimate(stage, shape, length)
        times = " | ".join(f"{found.minutes(share):,.0f}" for share in (PUBLISHED, HOPED))
        print(f"| {stage.name} | {found.sequences:,} x {length:,} | {found.flops / 1e15:,.0f} | {times} |")


if __name__ == "__main__":
    main()
