"""The losses of a thought: of its states, of its tokens, of the answer after it. All in float32, each a mean over what its mask has.

B batch, S positions, L of the prompt, C of the thought, K of them that are read, A of the answer.
D the language model's width, V its vocabulary.
"""

# ruff: noqa: N815 - tensor names carry their shape

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from trlm_core.trm.hidden_states import head, position_ids
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.thought_data import ThoughtBatch

MOST_READ = 128  # positions of a thought whose logits are there at once: of 4,096, a batch's would be 8 GB


def relative_error(read_BSD: Tensor, h_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """Squared error over the states' variance: 1 where nothing but the mean of all their elements is known."""
    read, states = read_BSD[mask_BS].float(), h_BSD[mask_BS].float()
    return functional.mse_loss(read, states) / states.var(unbiased=False).clamp(min=1e-8)


def centred_state_r2(read_BSD: Tensor, h_BSD: Tensor, mask_BS: Tensor) -> Tensor:
    """1 - squared error / squared distance from the mean state: 0 for the best constant state, whatever its cosine."""
    read, states = read_BSD[mask_BS].float(), h_BSD[mask_BS].float()
    return 1.0 - (read - states).square().sum() / (states - states.mean(dim=0)).square().sum().clamp(min=1e-8)


def masked_cross_entropy(logits_BSV: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
    """Of logits that stand beside the tokens that they predict. 0 where the mask is empty."""
    losses = functional.cross_entropy(logits_BSV[mask_BS].float(), ids_BS[mask_BS], reduction="sum")
    return losses / mask_BS.sum().clamp(min=1)


@dataclass(frozen=True)
class ReadThought:
    """Tokens of thoughts but their first, as latents tell them: position j of a thought predicts the token after it."""

    logits_BKV: Tensor
    ids_BK: Tensor
    mask_BK: Tensor

    @classmethod
    def of(cls, model: LatentThoughtModel, latents_BMd: Tensor, batch: ThoughtBatch, most: int = MOST_READ) -> "ReadThought":
        """Of a long thought, so many tokens, drawn as torch is seeded. Latents unstandardised, as the compressor gives them."""
        mask_BC = batch.thought_mask_BC
        columns_BK = drawn_columns(mask_BC[:, 1:], most)
        h_BCD = model.thinker.expander(latents_BMd, mask_BC)
        h_BKD = h_BCD.gather(1, columns_BK.unsqueeze(-1).expand(-1, -1, h_BCD.shape[-1]))
        return cls(head(model.base, h_BKD), batch.thought_ids_BC.gather(1, columns_BK + 1), mask_BC.gather(1, columns_BK + 1))

    def loss(self) -> Tensor:
        """Cross-entropy a token."""
        return masked_cross_entropy(self.logits_BKV, self.ids_BK, self.mask_BK)

    def is_right(self) -> Tensor:
        """[B]: every token that is read."""
        return all_right(self.logits_BKV, self.ids_BK, self.mask_BK)


def drawn_columns(mask_BC: Tensor, most: int) -> Tensor:
    """[B, at most `most`]: columns in order, of a row's valid ones as many as there is room for. With room for all, nothing is drawn."""
    columns_BC = torch.arange(mask_BC.shape[1], device=mask_BC.device).expand(len(mask_BC), -1)
    if mask_BC.shape[1] <= most:
        return columns_BC
    lots_BC = torch.rand(mask_BC.shape, device=mask_BC.device).masked_fill(~mask_BC, -1.0)
    return lots_BC.topk(most, dim=1).indices.sort(dim=1).values


@torch.no_grad()
def read_ids(model: LatentThoughtModel, latents_BMd: Tensor, mask_BC: Tensor, at_once: int = MOST_READ) -> Tensor:
    """[B, C]: the likeliest token after every position, whatever a thought's length: the logits of so many positions at once."""
    h_BCD = model.thinker.expander(latents_BMd, mask_BC)
    return torch.cat([head(model.base, h_BKD).argmax(dim=-1) for h_BKD in h_BCD.split(at_once, dim=1)], dim=1)


def answer_loss(logits_BAV: Tensor, batch: ThoughtBatch) -> Tensor:
    return masked_cross_entropy(logits_BAV, batch.answer_ids_BA, batch.answer_mask_BA)


def answer_is_right(logits_BAV: Tensor, batch: ThoughtBatch) -> Tensor:
    """[B]: every token of the answer, each after the right ones before it: then greedy decoding writes it too."""
    return all_right(logits_BAV, batch.answer_ids_BA, batch.answer_mask_BA)


def all_right(logits_BSV: Tensor, ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
    return ((logits_BSV.argmax(dim=-1) == ids_BS) | ~mask_BS).all(dim=1)


def kl_to_text(logits_BAV: Tensor, text_logits_BAV: Tensor, mask_BA: Tensor) -> Tensor:
    """KL(answer after the thought in text || answer after latents), a token."""
    wanted, got = (functional.log_softmax(each[mask_BA].float(), dim=-1) for each in (text_logits_BAV, logits_BAV))
    return functional.kl_div(got, wanted, reduction="sum", log_target=True) / mask_BA.sum().clamp(min=1)


@torch.no_grad()
def text_answer_logits(model: LatentThoughtModel, batch: ThoughtBatch) -> Tensor:
    """[B, A, V]: [j] predicts answer_ids[j] where the thought is there as text."""
    ids_BS = torch.cat([batch.prompt_ids_BL, batch.thought_ids_BC, batch.answer_ids_BA], dim=1)
    mask_BS = torch.cat([batch.prompt_mask_BL, batch.thought_mask_BC, batch.answer_mask_BA], dim=1)
    before = batch.prompt_ids_BL.shape[1]
    # The first token is predicted at </think>, which is where the row's own thought ends; pads may lie between it and the answer.
    end_think_B1 = before + batch.thought_mask_BC.sum(dim=1, keepdim=True) - 1
    start = before + batch.thought_ids_BC.shape[1]
    rest_A = torch.arange(start, start + batch.answer_ids_BA.shape[1] - 1, device=ids_BS.device)
    columns_BA = torch.cat([end_think_B1, rest_A.expand(len(batch), -1)], dim=1)
    kept_K = columns_BA.unique()  # a prompt's and a thought's logits would be most of them
    logits_BKV = model.base(
        input_ids=ids_BS, attention_mask=mask_BS.long(), position_ids=position_ids(mask_BS), use_cache=False, logits_to_keep=kept_K
    ).logits
    places_BA = torch.searchsorted(kept_K, columns_BA)
    return logits_BKV.gather(1, places_BA.unsqueeze(-1).expand(-1, -1, logits_BKV.shape[-1]))
