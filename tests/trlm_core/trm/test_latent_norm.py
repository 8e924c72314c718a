"""Standardised latents, and a metric that a constant cannot please."""

import pytest
import torch
from torch.nn import functional

from trlm_core.trm.latent_norm import LatentNorm, RawLatents, centred_r2


def latents(seed: int, mean: float = 3.0, count: int = 1_000) -> torch.Tensor:
    """Each slot with a mean of its own, and as in a language model's states, most of the energy in it."""
    generator = torch.Generator().manual_seed(seed)
    return mean * torch.randn(4, 8, generator=torch.Generator().manual_seed(99)) + 1.7 * torch.randn(count, 4, 8, generator=generator)


def fitted() -> LatentNorm:
    norm = LatentNorm(4, 8)
    norm.fit(latents(1), latents(2))
    return norm


def test_standardised_latents_have_mean_0_in_every_slot_and_unit_deviation():
    standard_NMd = fitted().standardise_pre(latents(1))
    assert standard_NMd.mean(dim=0).abs().max() < 1e-5
    assert torch.allclose(standard_NMd.square().mean(dim=(0, 1)), torch.ones(8), atol=1e-4)


def test_unstandardising_is_the_way_back():
    norm, latents_NMd = fitted(), latents(3)
    assert torch.allclose(norm.unstandardise_post(norm.standardise_post(latents_NMd)), latents_NMd, atol=1e-5)


def test_prompts_and_thoughts_have_statistics_of_their_own():
    norm = LatentNorm(4, 8)
    norm.fit(latents(1), 2 * latents(2))
    assert torch.allclose(norm.std_post_d, 2 * norm.std_pre_d, rtol=0.1)


def test_statistics_are_saved_with_the_weights():
    norm, loaded = fitted(), LatentNorm(4, 8)
    loaded.load_state_dict(norm.state_dict())
    assert torch.equal(loaded.standardise_pre(latents(3)), norm.standardise_pre(latents(3)))


def test_raw_latents_load_the_statistics_and_go_by_none_of_them():
    raw, latents_NMd = RawLatents(4, 8), latents(3)
    raw.load_state_dict(fitted().state_dict())
    for way in (raw.standardise_pre, raw.standardise_post, raw.unstandardise_post):
        assert torch.equal(way(latents_NMd), latents_NMd)


def test_a_feature_that_never_varies_gives_no_nan():
    norm = LatentNorm(4, 8)
    norm.fit(torch.ones(1_000, 4, 8), torch.ones(1_000, 4, 8))
    assert not norm.standardise_pre(torch.ones(2, 4, 8)).any()


def test_use_before_the_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match=r"wanted fitted statistics, got none; call fit at the end of phase 1"):
        LatentNorm(4, 8).standardise_pre(torch.zeros(1, 4, 8))


def test_too_few_examples_are_an_error():
    with pytest.raises(ValueError, match=r"wanted the latents of at least 1,000 examples, got 999 prompts and 1,000 thoughts"):
        LatentNorm(4, 8).fit(latents(1, count=999), latents(2))


def test_the_best_constant_scores_0_though_its_plain_cosine_is_high():
    target_BMd = latents(4)
    constant_BMd = target_BMd.mean(dim=0).expand_as(target_BMd)
    assert functional.cosine_similarity(constant_BMd, target_BMd, dim=-1).mean() > 0.74
    assert centred_r2(constant_BMd, target_BMd) == pytest.approx(0.0, abs=1e-5)
    assert centred_r2(latents(2).mean(dim=0).expand_as(target_BMd), target_BMd) == pytest.approx(0.0, abs=0.01)


def test_a_perfect_prediction_scores_1_and_a_half_way_one_three_quarters():
    target_BMd = latents(4)
    half_way_BMd = (target_BMd + target_BMd.mean(dim=0)) / 2
    assert centred_r2(target_BMd, target_BMd) == 1.0
    assert centred_r2(half_way_BMd, target_BMd) == pytest.approx(0.75, abs=1e-5)
