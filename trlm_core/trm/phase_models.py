"""The model that a phase trains or measures: the base from the store, and a thinker that is new or goes on from an earlier phase's.

M latents, d the TRM's width, D the language model's.
"""

from dataclasses import fields, replace
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.schema import HubBase
from trlm_core.recipes.trm_schema import Adapter, ThinkerSizes, TRMRecipe
from trlm_core.training.checkpoint import load_model
from trlm_core.trm.config import HiddenStateConfig, LatentThoughtConfig, LoraConfig, RecursionConfig
from trlm_core.trm.hidden_states import embedding_table
from trlm_core.trm.latent_thought_model import LatentThoughtModel, embedding_scale
from trlm_core.trm.states import base_precision
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thinker import Thinker

OF_PHASE_1 = ("trm.compressor.", "trm.norm.", "expander.", "projector.")  # what phase 2 takes over; its recursion is new


def recursion_of(sizes: ThinkerSizes) -> RecursionConfig:
    return RecursionConfig(**{each.name: getattr(sizes, each.name) for each in fields(RecursionConfig)})


def states_of(sizes: ThinkerSizes, hidden_size: int) -> HiddenStateConfig:
    return HiddenStateConfig(hidden_size, sizes.num_latents, recursion_of(sizes), sizes.latent_norm, sizes.slot_embeddings)


def base_of(store: Store, recipe: TRMRecipe, base: Manifest, device: str) -> PreTrainedModel:
    """A language model of the run, frozen: its base, or one that was tuned from it."""
    model = load_model(store.folder(base), base_precision(recipe))
    return model.to(device).eval()  # type: ignore[arg-type]


def config_of(recipe: TRMRecipe, model: PreTrainedModel) -> LatentThoughtConfig:
    """A thought is evaluated after as many steps as it is trained with; asking less or more is the caller's choice."""
    on_hub = isinstance(recipe.base, HubBase)
    sizes = recipe.model
    return LatentThoughtConfig(
        base_model_name_or_path=recipe.base.repo if on_hub else model.config.name_or_path,  # type: ignore[union-attr]
        base_revision=recipe.base.revision if on_hub else None,  # type: ignore[union-attr]
        states=states_of(sizes, embedding_table(model).shape[-1]),
        hidden_layer=sizes.hidden_layer,
        insertion=sizes.insertion,
        sink_tokens=sizes.sink_tokens,
        eval_steps=sizes.n_supervision_steps,
        eval_halting=False,
        lora=None,
    )


def without_depth(config: LatentThoughtConfig) -> LatentThoughtConfig:
    """Of phase 1, which has no recursion: with the least that there can be, so that it is the same whatever phase 2 gets."""
    full = config.states.recursion
    least = replace(
        full,
        n_layers=1,
        n_latent_steps=1,
        n_deep_recursions=1,
        n_supervision_steps=1,
        halt_exploration_prob=0.0,
        residual_init_scale=1.0,
        norm="post",
    )
    states = replace(config.states, recursion=least, latent_norm=True, slot_embeddings=True)
    return replace(config, states=states, eval_steps=1)


def new_model(base: PreTrainedModel, config: LatentThoughtConfig, tokens: ThinkTokens, seed: int) -> LatentThoughtModel:
    """With random weights that follow from the seed."""
    return LatentThoughtModel(base, config, tokens, _new_thinker(base, config, seed)).to(base.device).eval()


def with_recursion(phase1: LatentThoughtModel, config: LatentThoughtConfig, seed: int) -> LatentThoughtModel:
    """Phase 1's compressor, expander, projector and statistics; a recursion that is new."""
    base = cast(PreTrainedModel, phase1.base)
    model = new_model(base, config, phase1.tokens, seed)
    model.thinker.load_state_dict({**model.thinker.state_dict(), **_taken_over(phase1.thinker.state_dict())})
    return model


def with_adapter(model: LatentThoughtModel, adapter: Adapter) -> LatentThoughtModel:
    """The same thinker; the language model gets adapters, in place."""
    lora = LoraConfig(r=adapter.r, lora_alpha=adapter.lora_alpha, target_modules=adapter.target_modules)
    return LatentThoughtModel(model.base, replace(model.config, lora=lora), model.tokens, model.thinker).eval()


def _taken_over(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: each for name, each in weights.items() if name.startswith(OF_PHASE_1)}


def _new_thinker(base: PreTrainedModel, config: LatentThoughtConfig, seed: int) -> Thinker:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Thinker(config.states, embedding_scale(base))
