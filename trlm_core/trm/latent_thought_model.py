"""A language model that thinks in latents: it reads its prompt, a TRM works on what it has read, and it answers after those latents.

    pass 1    x ... <think>                       hidden states of the prompt, and nothing after it
    thinker   states -> M latents -> steps -> u   in the size of embeddings
    pass 2    x ... <think> | u u u u | </think> a

B batch, L positions of a prompt, A of an answer, M latents, d the TRM's width, D the language model's, V its vocabulary.
"""
# ruff: noqa: N815 - tensor names carry their shape

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, DynamicCache

from trlm_core.trm.config import LatentThoughtConfig
from trlm_core.trm.hidden_states import LanguageModel, adapters_off, base_digest, embed, embedding_table, head, hidden_states, position_ids
from trlm_core.trm.latent_generation import Decoding, GeneratedRow, Thinking, generate
from trlm_core.trm.lora import with_lora
from trlm_core.trm.spans import prompt_mask, thought_mask
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thinker import Thinker
from trlm_core.trm.window import check_fits, slide

IGNORED = -100  # the label that no loss counts


@dataclass(frozen=True)
class EncodedPrompt:
    """What the language model has read. Its cache is copied for each use: transformers writes into the one that it is given."""

    embeds_BLD: Tensor
    mask_BL: Tensor
    h_BLD: Tensor
    cache: Cache | None  # None where pass 2 reads the prompt otherwise than pass 1 did: with adapters, or without its oldest part


@dataclass(frozen=True)
class Thought:
    u_BMD: Tensor  # as embeddings
    v_BMd: Tensor  # as the TRM gives them, standardised
    steps_B: Tensor
    q_logits_BS: Tensor


@dataclass(frozen=True)
class LatentThoughtOutput:
    loss: Tensor | None
    logits_BLV: Tensor  # zeros where a thought's text stood: latents took its place
    q_logits_BS: Tensor
    steps_B: Tensor


class LatentThoughtModel(nn.Module):
    """Wraps any causal language model of transformers. The thinker's weights are float32; the language model keeps its own dtype."""

    def __init__(
        self,
        base: LanguageModel,
        config: LatentThoughtConfig,
        tokens: ThinkTokens,
        thinker: Thinker | None = None,
        digest: str | None = None,
    ) -> None:
        """digest: of the base, where it has adapters already. Raises ValueError for a configuration of another width than the base's."""
        super().__init__()
        width = embedding_table(base).shape[-1]
        if config.states.hidden_size != width:
            raise ValueError(f"hidden_size: wanted {width} (the base's), got {config.states.hidden_size}; set it to the base's")
        self.config, self.tokens = config, tokens
        self.base_digest = digest or base_digest(base)
        self.base = base if config.lora is None else with_lora(base, config.lora, tokens)
        self.thinker = thinker or Thinker(config.states, embedding_scale(base))
        self.trm_calls = 0  # how often it has thought: a model that never calls its TRM would answer all the same

    def with_thinker(self, thinker: Thinker) -> "LatentThoughtModel":
        """The same language model, adapters and all, with another thinker: the averaged weights."""
        return LatentThoughtModel(self.base, self.config, self.tokens, thinker, self.base_digest).eval()

    @property
    def max_context(self) -> int:
        return self.base.config.max_position_embeddings

    def encode(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """Hidden states [B, L, D] of any tokens, frozen."""
        with adapters_off(self.base):
            return hidden_states(self.base, embed(self.base, ids_BL), mask_BL, self.config.hidden_layer)

    def encode_prompt(self, ids_BL: Tensor, mask_BL: Tensor) -> EncodedPrompt:
        """Pass 1 over what lies up to each row's first `<think>`; what comes after it is not seen."""
        embeds_BLD = embed(self.base, ids_BL)
        with adapters_off(self.base):
            own_BLD = embed(self.base, ids_BL)
        return self.encode_embeds(own_BLD, embeds_BLD, prompt_mask(ids_BL, mask_BL, self.tokens.think))

    def encode_embeds(self, own_BLD: Tensor, embeds_BLD: Tensor, mask_BL: Tensor) -> EncodedPrompt:
        """Pass 1 over embeddings, of which some may be an earlier thought's: own_BLD without adapters; pass 2 gets the others."""
        cache = DynamicCache(config=self.base.config) if self.config.lora is None else None
        h_BLD = hidden_states(self.base, own_BLD, mask_BL, self.config.hidden_layer, cache)
        return EncodedPrompt(embeds_BLD, mask_BL.bool(), h_BLD, cache)

    def think(self, prompt: EncodedPrompt, steps: int | None = None, halting: bool | None = None) -> Thought:
        """A row that has no prompt (no `<think>`) gets a thought of zeros."""
        self.trm_calls += 1
        steps = self.config.eval_steps if steps is None else steps
        halting = self.config.eval_halting if halting is None else halting
        output = self.thinker.trm(prompt.h_BLD, prompt.mask_BL, steps, halting)
        thinks_B11 = prompt.mask_BL.any(dim=1)[:, None, None]
        u_BMD = torch.where(thinks_B11, self.thinker.embed_thought(output.v_BMd), 0.0)
        return Thought(u_BMD, output.v_BMd, output.steps_B, output.q_logits_BS)

    def read(self, latents_BMd: Tensor, mask_BC: Tensor) -> Tensor:
        """[B, C, V]: what a thought would say in text, as the compressor's latents tell it; [j] is the token after position j."""
        return head(self.base, self.thinker.expander(latents_BMd, mask_BC))

    def answer_logits(self, prompt: EncodedPrompt, u_BMD: Tensor, answer_ids_BA: Tensor) -> Tensor:
        """[B, A, V]: [j] predicts answer_ids[j], each from the answer before it. M may be 0: no thought at all. A gradient reaches u."""
        window_BL = self.window(prompt, u_BMD.shape[1], room=answer_ids_BA.shape[1])  # </think> comes in, the last token does not
        return self._pass_2(prompt, window_BL, self.continue_after(u_BMD, answer_ids_BA[:, :-1]), answer_ids_BA.shape[1])

    def continue_after(self, u_BMD: Tensor, ids_BA: Tensor) -> Tensor:
        """Embeddings of u | </think> | ids."""
        end_B1 = torch.full((len(u_BMD), 1), self.tokens.end_think, device=u_BMD.device)
        text_BTD = embed(self.base, torch.cat([end_B1, ids_BA], dim=1))
        return torch.cat([u_BMD.to(text_BTD.dtype), text_BTD], dim=1)

    def window(self, prompt: EncodedPrompt, n_latents: int, room: int) -> Tensor:
        """The mask of what pass 2 reads of the prompt, where `room` positions follow the latents. Raises ValueError for too many."""
        mask_BL = prompt.mask_BL
        if self.config.insertion == "slide":
            mask_BL = slide(mask_BL, n_latents, self.config.sink_tokens, room, self.max_context)
        check_fits(mask_BL, n_latents, room, self.max_context)
        return mask_BL

    def _pass_2(self, prompt: EncodedPrompt, window_BL: Tensor, tail_BTD: Tensor, n_logits: int) -> Tensor:
        tail_mask_BT = torch.ones(tail_BTD.shape[:2], dtype=torch.bool, device=tail_BTD.device)
        mask_BS = torch.cat([window_BL, tail_mask_BT], dim=1)
        positions_BS = position_ids(mask_BS)
        kept: dict[str, Any] = {"attention_mask": mask_BS.long(), "logits_to_keep": n_logits}
        if prompt.cache is not None and torch.equal(window_BL, prompt.mask_BL):
            cache, positions_BT = copy_of(prompt.cache), positions_BS[:, window_BL.shape[1] :]
            return self.base(inputs_embeds=tail_BTD, position_ids=positions_BT, past_key_values=cache, use_cache=True, **kept).logits
        embeds_BSD = torch.cat([prompt.embeds_BLD, tail_BTD], dim=1)
        return self.base(inputs_embeds=embeds_BSD, position_ids=positions_BS, use_cache=False, **kept).logits

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, steps: int | None = None
    ) -> LatentThoughtOutput:
        """Each row's text thought, if it has one, gives way to latents; a row without `<think>` is the language model's alone.

        input_ids, attention_mask, labels [B, L]; pads on either side. Labels of prompt, thought and `</think>` count for nothing.
        """
        mask_BL = attention_mask.bool()
        prompt = self.encode_prompt(input_ids, mask_BL)
        thought = self.think(prompt, steps)
        in_thought_BL = thought_mask(input_ids, mask_BL, self.tokens.think, self.tokens.end_think)
        ends_BL = in_thought_BL & (input_ids == self.tokens.end_think)
        rest_BL = mask_BL & ~prompt.mask_BL & (~in_thought_BL | ends_BL)
        logits_BLV = self._spliced_logits(prompt, thought, embed(self.base, input_ids), rest_BL)
        loss = None if labels is None else shifted_loss(logits_BLV, labels.masked_fill(~rest_BL | ends_BL, IGNORED))
        return LatentThoughtOutput(loss, logits_BLV, thought.q_logits_BS, thought.steps_B)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoding: Decoding,
        thinking: Thinking,
        thought_steps: int | None = None,
        halting: bool | None = None,
    ) -> list[GeneratedRow]:
        """See latent_generation.py. What is not said of steps and halting is the configuration's."""
        return generate(self, input_ids, attention_mask, decoding, thinking, thought_steps, halting)

    def _spliced_logits(self, prompt: EncodedPrompt, thought: Thought, embeds_BLD: Tensor, rest_BL: Tensor) -> Tensor:
        """prompt | latents | rest, each where the row's mask has it; logits go back to the columns that their tokens had."""
        length, n_latents = embeds_BLD.shape[1], self.config.states.num_latents
        window_BL = self.window(prompt, n_latents, room=int(rest_BL.sum(dim=1).max()))
        latent_mask_BM = prompt.mask_BL.any(dim=1, keepdim=True).expand(-1, n_latents)
        mask_BS = torch.cat([window_BL, latent_mask_BM, rest_BL], dim=1)
        embeds_BSD = torch.cat([embeds_BLD, thought.u_BMD.to(embeds_BLD.dtype), embeds_BLD], dim=1)
        logits_BSV = self.base(
            inputs_embeds=embeds_BSD, attention_mask=mask_BS.long(), position_ids=position_ids(mask_BS), use_cache=False
        ).logits
        before_BLV, after_BLV = logits_BSV[:, :length], logits_BSV[:, length + n_latents :]
        return torch.where(rest_BL[..., None], after_BLV, torch.where(prompt.mask_BL[..., None], before_BLV, 0.0))


def shifted_loss(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Mean cross-entropy of each label under the logits one position before it; 0 where no label counts."""
    targets = labels_BL[:, 1:].flatten()
    total = functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).float(), targets, ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


def embedding_scale(base: LanguageModel) -> float:
    """The root mean square of the embedding table."""
    return embedding_table(base).detach().float().square().mean().sqrt().item()


def copy_of(cache: Cache) -> Cache:
    """One that can be written to; keys and values are shared, since a longer cache is made of new ones."""
    twin = copy.copy(cache)
    twin.layers = [copy.copy(layer) for layer in cache.layers]
    return twin
