"""Sizes of a TRM: how wide it is, how often it recurs, and what it reads of a language model."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class RecursionConfig:
    """One net of `n_layers` blocks, called again and again. n, T and N are the paper's letters (arXiv 2510.04871)."""

    width: int
    n_heads: int
    n_layers: int
    n_latent_steps: int  # n: updates of z before one of y; 0: no z, and y from x at once (net_alone)
    n_deep_recursions: int  # T: latent recursions of a supervision step, of which the last one has a gradient
    n_supervision_steps: int  # N: at most so many supervision steps an example, in training
    halt_exploration_prob: float  # share of the examples that may not halt before a random number of steps
    residual_init_scale: float | Literal["auto"]  # of the projections that are added to the residual stream, at the start
    norm: Literal["post", "pre"] = "post"  # of a block; pre is there to show that it blows up

    def __post_init__(self) -> None:
        if self.width % (2 * self.n_heads):
            raise ValueError(f"width: wanted a multiple of {2 * self.n_heads} ({self.n_heads} heads of even size), got {self.width}")
        if self.n_latent_steps < 0:
            raise ValueError(f"n_latent_steps: wanted at least 0, got {self.n_latent_steps}")
        for name in ("n_layers", "n_deep_recursions", "n_supervision_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: wanted at least 1, got {getattr(self, name)}")

    @property
    def residual_scale(self) -> float:
        """auto: each of a latent recursion's 2 n_layers (n + 1) additions to the stream gets an equal share of its variance."""
        if self.residual_init_scale == "auto":
            return (2 * self.n_layers * (self.n_latent_steps + 1)) ** -0.5
        return self.residual_init_scale


@dataclass(frozen=True)
class HiddenStateConfig:
    """A TRM on a language model's hidden states."""

    hidden_size: int  # D, the language model's
    num_latents: int  # M, into which a span of any length is compressed
    recursion: RecursionConfig
    latent_norm: bool = True  # False: latents come and go as the compressor makes them
    slot_embeddings: bool = True  # False: nothing but its latent tells a slot from the others


@dataclass(frozen=True)
class LoraConfig:
    """Adapters on the language model's attention, for phase 2b. Names are peft's."""

    r: int
    lora_alpha: int
    target_modules: tuple[str, ...]


@dataclass(frozen=True)
class LatentThoughtConfig:
    """A language model that thinks in latents: what its thinker is, and where the thoughts go."""

    base_model_name_or_path: str
    base_revision: str | None  # of a Hub's repository; None: a folder
    states: HiddenStateConfig
    hidden_layer: int  # whose states are read: -1, after the final norm
    insertion: Literal["append", "slide"]  # slide: where the context is full, a thought replaces the oldest part of its prompt
    sink_tokens: int  # the first positions, that slide never drops
    eval_steps: int  # supervision steps of a thought, where nobody says otherwise
    eval_halting: bool
    lora: LoraConfig | None

    def __post_init__(self) -> None:
        if self.eval_steps < 1:
            raise ValueError(f"eval_steps: wanted at least 1, got {self.eval_steps}")
        if self.insertion not in ("append", "slide"):
            raise ValueError(f"insertion: wanted append or slide, got {self.insertion}")


PAPER = RecursionConfig(
    width=512,
    n_heads=8,
    n_layers=2,
    n_latent_steps=6,
    n_deep_recursions=3,
    n_supervision_steps=16,
    halt_exploration_prob=0.1,
    residual_init_scale="auto",
)


def net_alone(config: RecursionConfig) -> RecursionConfig:
    """The same parameters without any recursion: each layer passed once. It starts from the same scale, which `auto` would make another."""
    return replace(config, n_latent_steps=0, n_deep_recursions=1, n_supervision_steps=1, residual_init_scale=config.residual_scale)


def depth_of_a_step(config: RecursionConfig) -> int:
    """Layers that a supervision step passes through: T (n + 1) n_layers."""
    return config.n_deep_recursions * (config.n_latent_steps + 1) * config.n_layers


def effective_depth(config: RecursionConfig) -> int:
    """Layers that an example passes through at most: 672 with the paper's sizes."""
    return depth_of_a_step(config) * config.n_supervision_steps


def training_cost_of_a_step(config: RecursionConfig) -> int:
    """Layer passes of one optimizer step: a forward counts 1, and its backward, which only the last deep recursion has, 2."""
    with_gradient = (config.n_latent_steps + 1) * config.n_layers
    return depth_of_a_step(config) + 2 * with_gradient
