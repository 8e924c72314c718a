"""A language model's hidden states compressed into M latents, and expanded back: attention from learned queries.

The bias that draws each latent to its own stretch of the span is ours; half of the heads start without it.
B batch, L positions of the language model, D its width, M latents, d the TRM's width, H heads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from trlm_core.trm.blocks import SwiGLU, join_heads, lecun, rms, split_heads
from trlm_core.trm.config import HiddenStateConfig

ALIGNED, FREE = 2.0, -8.0  # where alpha starts: softplus makes it a slope of 2.1, or of 0.0003
N_ANCHORS = 32  # learned position queries along a span, whatever its length
LONGEST_WAVE = 10_000.0


class AlignedAttention(nn.Module):
    """Queries read keys, then a feed-forward. A score falls by softplus(alpha) for each position that the key is off the query's place."""

    def __init__(self, width: int, key_width: int, n_heads: int, residual_scale: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key_value = lecun(width, width), lecun(key_width, 2 * width)
        self.out = lecun(width, width, scale=residual_scale)
        self.feed_forward = SwiGLU(width, residual_scale)
        self.alpha_H = nn.Parameter(torch.tensor([ALIGNED] * (n_heads // 2) + [FREE] * (n_heads - n_heads // 2)))

    def forward(self, query_BQd: Tensor, key_BKD: Tensor, distance_BQK: Tensor, key_mask_BK: Tensor) -> Tensor:
        """Distances in positions. A row without a single key reads nothing, and is not NaN."""
        # Attention over nothing is zeros or NaN, by kernel: such a row reads everything, and what it read is thrown away.
        has_keys_B11 = key_mask_BK.any(dim=1)[:, None, None]
        read_BQd = torch.where(has_keys_B11, self._read(query_BQd, key_BKD, distance_BQK, key_mask_BK | ~has_keys_B11[:, 0]), 0.0)
        query_BQd = rms(query_BQd + self.out(read_BQd))
        return rms(query_BQd + self.feed_forward(query_BQd))

    def _read(self, query_BQd: Tensor, key_BKD: Tensor, distance_BQK: Tensor, key_mask_BK: Tensor) -> Tensor:
        slope_H11 = functional.softplus(self.alpha_H)[:, None, None]
        q_BHQe = split_heads(self.query(query_BQd), self.n_heads)
        k_BHKe, v_BHKe = (split_heads(each, self.n_heads) for each in self.key_value(rms(key_BKD)).chunk(2, dim=-1))
        bias_BHQK = (-slope_H11 * distance_BQK[:, None]).masked_fill(~key_mask_BK[:, None, None, :], float("-inf"))
        return join_heads(functional.scaled_dot_product_attention(q_BHQe, k_BHKe, v_BHKe, attn_mask=bias_BHQK.to(q_BHQe.dtype)))


class LatentAttentionCompressor(nn.Module):
    """[B, L, D] -> [B, M, d] for any L from 1, shorter than M too. Pads may lie on either side."""

    def __init__(self, config: HiddenStateConfig) -> None:
        super().__init__()
        width, self.hidden_size = config.recursion.width, config.hidden_size
        self.queries_Md = nn.Parameter(torch.randn(config.num_latents, width))
        self.attention = AlignedAttention(width, config.hidden_size, config.recursion.n_heads, config.recursion.residual_scale)

    def forward(self, h_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        """What mask_BL leaves out is not seen. A row that is all masked gives zeros.

        Raises ValueError for hidden states of another width than the configuration's.
        """
        if h_BLD.shape[-1] != self.hidden_size:
            raise ValueError(f"hidden states: wanted a width of {self.hidden_size} (hidden_size), got {h_BLD.shape[-1]}")
        mask_BL, n_latents = mask_BL.bool(), len(self.queries_Md)
        queries_BMd = self.queries_Md.expand(len(h_BLD), -1, -1)
        places_M = torch.linspace(0, 1, n_latents, device=h_BLD.device)
        distance_BML = _distance(places_M.expand(len(h_BLD), -1), relative_places(mask_BL), mask_BL.sum(dim=1).clamp(min=n_latents))
        latents_BMd = self.attention(queries_BMd, h_BLD.to(self.queries_Md.dtype), distance_BML, mask_BL)
        return torch.where(mask_BL.any(dim=1)[:, None, None], latents_BMd, 0.0)


class LatentExpander(nn.Module):
    """[B, M, d] -> [B, L, D], for identity pretraining and to read a thought: each position's query reads the latents."""

    def __init__(self, config: HiddenStateConfig) -> None:
        super().__init__()
        width = config.recursion.width
        self.anchors_Ad = nn.Parameter(torch.randn(N_ANCHORS, width))
        self.waves = lecun(width, width)
        self.attention = AlignedAttention(width, width, config.recursion.n_heads, config.recursion.residual_scale)
        self.out = nn.Linear(width, config.hidden_size)

    def forward(self, latents_BMd: Tensor, mask_BL: Tensor) -> Tensor:
        """States for the positions of the mask; what lies outside it means nothing."""
        mask_BL, n_latents = mask_BL.bool(), latents_BMd.shape[1]
        places_BL = relative_places(mask_BL)
        places_BM = torch.linspace(0, 1, n_latents, device=latents_BMd.device).expand(len(latents_BMd), -1)
        distance_BLM = _distance(places_BL, places_BM, mask_BL.sum(dim=1).clamp(min=n_latents))
        every_BM = torch.ones_like(places_BM, dtype=torch.bool)
        return self.out(self.attention(self._queries(mask_BL, places_BL), latents_BMd, distance_BLM, every_BM))

    def _queries(self, mask_BL: Tensor, places_BL: Tensor) -> Tensor:
        """A learned curve at the relative place, and waves of the position itself, which tell neighbours in a long span apart."""
        at_BL = places_BL * (N_ANCHORS - 1)
        before_BL = at_BL.floor().long().clamp(max=N_ANCHORS - 2)
        curve_BLd = torch.lerp(self.anchors_Ad[before_BL], self.anchors_Ad[before_BL + 1], (at_BL - before_BL).unsqueeze(-1))
        return rms(curve_BLd + self.waves(_waves(positions(mask_BL), self.anchors_Ad.shape[-1])))


def positions(mask_BL: Tensor) -> Tensor:
    """0, 1, 2 ... along each row's valid positions, wherever its pads lie."""
    return (mask_BL.cumsum(dim=1) - 1).clamp(min=0)


def relative_places(mask_BL: Tensor) -> Tensor:
    """Position over the row's own length, from 0 to 1."""
    return positions(mask_BL) / (mask_BL.sum(dim=1, keepdim=True) - 1).clamp(min=1)


def _distance(places_BQ: Tensor, places_BK: Tensor, scale_B: Tensor) -> Tensor:
    """In positions of the longer side: scale is the larger of the row's own length and M."""
    return (places_BQ[:, :, None] - places_BK[:, None, :]).abs() * scale_B[:, None, None]


def _waves(positions_BL: Tensor, width: int) -> Tensor:
    """Sinusoids of the position, [B, L, width], of unit variance."""
    frequencies = LONGEST_WAVE ** (-torch.arange(0, width, 2, device=positions_BL.device) / width)
    angles_BLw = positions_BL.unsqueeze(-1) * frequencies
    return 2**0.5 * torch.cat([angles_BLw.sin(), angles_BLw.cos()], dim=-1)
