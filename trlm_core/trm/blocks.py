"""The transformer block of a TRM: post-norm, without biases, SwiGLU, rotary positions.

Post-norm because pre-norm blocks whose output is added to their next input blow up: 488-fold a supervision step at the paper's depth.
B batch, L positions, D width, H heads, K width of a head, I inner width of the feed-forward.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

EPSILON = 1e-5
ROTARY_BASE = 10_000.0


def rms(x_D: Tensor) -> Tensor:
    """Scaled to a root mean square of 1 along the last axis; torch sums in float32, whatever comes in."""
    return functional.rms_norm(x_D, (x_D.shape[-1],), eps=EPSILON)


def lecun(fan_in: int, fan_out: int, *, scale: float = 1.0) -> nn.Linear:
    """A projection without bias; truncated normal of variance 1 / fan_in, then times scale."""
    linear, std = nn.Linear(fan_in, fan_out, bias=False), fan_in**-0.5
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    with torch.no_grad():
        linear.weight.mul_(scale)
    return linear


def split_heads(x_BLD: Tensor, n_heads: int) -> Tensor:
    return x_BLD.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def join_heads(x_BHLK: Tensor) -> Tensor:
    return x_BHLK.transpose(1, 2).flatten(-2)


@lru_cache(maxsize=16)
def rotary_table(length: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, each [L, K]."""
    # A tensor made in inference mode stays one and may not be saved for a backward: the cache would hand it to the next training.
    with torch.inference_mode(False):
        frequencies = ROTARY_BASE ** (-torch.arange(0, head_width, 2, device=device) / head_width)
        angles_LK = torch.outer(torch.arange(length, device=device), frequencies).repeat(1, 2)
        return angles_LK.cos(), angles_LK.sin()


def rotate(x_BHLK: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864): scores of two positions depend on their distance alone."""
    cosine_LK, sine_LK = rotary_table(x_BHLK.shape[-2], x_BHLK.shape[-1], x_BHLK.device)
    first, second = x_BHLK.chunk(2, dim=-1)
    turned_BHLK = torch.cat([-second, first], dim=-1)
    return (x_BHLK * cosine_LK + turned_BHLK * sine_LK).to(x_BHLK.dtype)


def attend(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor) -> Tensor:
    """Softmax attention of every position to every other."""
    if q_BHLK.device.type == "cpu" and q_BHLK.dtype == torch.bfloat16:
        # torch's backward on a CPU takes about ten times as long in bfloat16 as in float32 (81 positions, 4 heads of 32).
        with torch.autocast("cpu", enabled=False):
            return functional.scaled_dot_product_attention(q_BHLK.float(), k_BHLK.float(), v_BHLK.float()).to(v_BHLK.dtype)
    return functional.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); the inner width is 8/3 of the outer, to a multiple of 32."""

    def __init__(self, width: int, residual_scale: float) -> None:
        super().__init__()
        inner = max(32, round(8 * width / 3 / 32) * 32)
        self.gate_up = lecun(width, 2 * inner)
        self.down = lecun(inner, width, scale=residual_scale)

    def forward(self, x_BLD: Tensor) -> Tensor:
        gate_BLI, up_BLI = self.gate_up(x_BLD).chunk(2, dim=-1)
        return self.down(functional.silu(gate_BLI) * up_BLI)


class TransformerBlock(nn.Module):
    """x <- rms(x + attention(x)); x <- rms(x + feed_forward(x)). Attention sees every position, before and after."""

    def __init__(self, width: int, n_heads: int, residual_scale: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = lecun(width, 3 * width)
        self.out = lecun(width, width, scale=residual_scale)
        self.feed_forward = SwiGLU(width, residual_scale)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = rms(x_BLD + self._attention(x_BLD))
        return rms(x_BLD + self.feed_forward(x_BLD))

    def _attention(self, x_BLD: Tensor) -> Tensor:
        q_BHLK, k_BHLK, v_BHLK = (split_heads(each, self.n_heads) for each in self.qkv(x_BLD).chunk(3, dim=-1))
        return self.out(join_heads(attend(rotate(q_BHLK), rotate(k_BHLK), v_BHLK)))


class PreNormBlock(TransformerBlock):
    """x <- x + attention(rms(x)); x <- x + feed_forward(rms(x)). The same weights, and nothing that holds the stream's scale."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self._attention(rms(x_BLD))
        return x_BLD + self.feed_forward(rms(x_BLD))
