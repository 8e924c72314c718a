"""A language model's hidden states for tokens: frozen, without a gradient, with adapters off.

B batch, L positions, D the language model's width.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

LanguageModel = PreTrainedModel | PeftModel
SAMPLED = 1_024  # elements of each tensor that go into a digest


def position_ids(mask_BL: Tensor) -> Tensor:
    """0, 1, 2 ... along each row's valid positions: left pads and gaps take none."""
    return (mask_BL.long().cumsum(dim=1) - 1).clamp(min=0)


@torch.no_grad()
def hidden_states(base: LanguageModel, embeds_BLD: Tensor, mask_BL: Tensor, layer: int, cache: Cache | None = None) -> Tensor:
    """[B, L, D] at `layer`: -1 is after the final norm, what the head reads; -2 is before the last layer, and so on. A cache is filled."""
    with adapters_off(base):
        output = backbone(base)(
            inputs_embeds=embeds_BLD,
            attention_mask=mask_BL.long(),
            position_ids=position_ids(mask_BL),
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=layer != -1,
        )
    return output.last_hidden_state if layer == -1 else output.hidden_states[layer]


def backbone(base: LanguageModel) -> nn.Module:
    """The language model without its head."""
    return plain(base).get_decoder()


def plain(base: LanguageModel) -> PreTrainedModel:
    """The language model that adapters lie on, if any do."""
    return cast(PreTrainedModel, base.get_base_model()) if isinstance(base, PeftModel) else base


@contextlib.contextmanager
def adapters_off(base: LanguageModel) -> Iterator[None]:
    """The statistics of latents were fitted on the base's own states: an adapter would move them."""
    with base.disable_adapter() if isinstance(base, PeftModel) else contextlib.nullcontext():
        yield


def embed(base: LanguageModel, ids_BL: Tensor) -> Tensor:
    """[B, L, D]. Adapters change some tokens' embeddings, where they are on."""
    return cast(nn.Module, plain(base).get_input_embeddings())(ids_BL)


def embedding_table(base: LanguageModel) -> Tensor:
    """[V, D], without adapters."""
    table = plain(base).get_input_embeddings()
    return cast(Tensor, getattr(table, "original_module", table).weight)


def head(base: LanguageModel, h_BLD: Tensor) -> Tensor:
    """[B, L, V]: the head alone, on states after the final norm."""
    return cast(nn.Module, plain(base).get_output_embeddings())(h_BLD.to(base.dtype))


def base_digest(base: LanguageModel) -> str:
    """Of a base's sizes and of some elements of every tensor, rounded to bfloat16: the same in whatever dtype it is loaded."""
    assert not isinstance(base, PeftModel), "adapters rename tensors: take the digest before"
    digest = hashlib.sha256()
    for name, each in sorted(base.state_dict().items()):
        flat = each.detach().flatten()
        sampled = flat[:: max(1, len(flat) // SAMPLED)].to("cpu", torch.bfloat16).contiguous()
        digest.update(f"{name} {tuple(each.shape)} ".encode())
        digest.update(sampled.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
