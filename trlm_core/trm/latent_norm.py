"""The statistics of latents before and after a thought: most of a latent's energy is a mean that every prompt shares.

N examples, B batch, M latents, d width. Slots keep their own mean and share a deviation for each feature.
"""
# ruff: noqa: N815 - tensor names carry their shape

import torch
from torch import Tensor, nn

FEWEST_EXAMPLES = 1_000
SMALLEST_STD = 1e-6


class LatentNorm(nn.Module):
    """Fitted once, at the end of phase 1; saved with the weights. pre: of the prompt. post: of the thought."""

    mean_pre_Md: Tensor
    std_pre_d: Tensor
    mean_post_Md: Tensor
    std_post_d: Tensor
    fitted: Tensor

    def __init__(self, num_latents: int, width: int) -> None:
        super().__init__()
        for side in ("pre", "post"):
            self.register_buffer(f"mean_{side}_Md", torch.zeros(num_latents, width))
            self.register_buffer(f"std_{side}_d", torch.ones(width))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, pre_NMd: Tensor, post_NMd: Tensor) -> None:
        """Raises ValueError for too few examples."""
        if min(len(pre_NMd), len(post_NMd)) < FEWEST_EXAMPLES:
            wanted = f"wanted the latents of at least {FEWEST_EXAMPLES:,} examples"
            raise ValueError(f"LatentNorm: {wanted}, got {len(pre_NMd):,} prompts and {len(post_NMd):,} thoughts; give it more rows")
        _set_statistics(self.mean_pre_Md, self.std_pre_d, pre_NMd)
        _set_statistics(self.mean_post_Md, self.std_post_d, post_NMd)
        self.fitted.fill_(True)

    def standardise_pre(self, latents_BMd: Tensor) -> Tensor:
        self._require_fit()
        return (latents_BMd.float() - self.mean_pre_Md) / self.std_pre_d

    def standardise_post(self, latents_BMd: Tensor) -> Tensor:
        self._require_fit()
        return (latents_BMd.float() - self.mean_post_Md) / self.std_post_d

    def unstandardise_post(self, latents_BMd: Tensor) -> Tensor:
        self._require_fit()
        return latents_BMd.float() * self.std_post_d + self.mean_post_Md

    def _require_fit(self) -> None:
        if not self.fitted:
            raise ValueError("LatentNorm: wanted fitted statistics, got none; call fit at the end of phase 1, or load a phase-1 checkpoint")


class RawLatents(LatentNorm):
    """Latents as they are. It has the statistics, so that what phase 1 has fitted loads here too, and goes by none of them."""

    def standardise_pre(self, latents_BMd: Tensor) -> Tensor:
        return latents_BMd.float()

    def standardise_post(self, latents_BMd: Tensor) -> Tensor:
        return latents_BMd.float()

    def unstandardise_post(self, latents_BMd: Tensor) -> Tensor:
        return latents_BMd.float()


def centred_r2(predicted_BMd: Tensor, target_BMd: Tensor) -> float:
    """1 - squared error / squared distance from each slot's mean: 0 for the best constant, which scores 0.8 in plain cosine."""
    from_mean = (target_BMd - target_BMd.mean(dim=0)).square().sum()
    return 1.0 - ((predicted_BMd - target_BMd).square().sum() / from_mean).item()


def deviation(latents_NMd: Tensor) -> Tensor:
    """[d]: of a feature from its slot's mean, over examples and slots."""
    centred_NMd = latents_NMd.float() - latents_NMd.float().mean(dim=0)
    return centred_NMd.square().mean(dim=(0, 1)).sqrt().clamp(min=SMALLEST_STD)


def _set_statistics(mean_Md: Tensor, std_d: Tensor, latents_NMd: Tensor) -> None:
    mean_Md.copy_(latents_NMd.float().mean(dim=0))
    std_d.copy_(deviation(latents_NMd))
