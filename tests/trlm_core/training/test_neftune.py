"""NEFTune noise: of the published scale for each row's own length, and the same however a step is cut."""

import itertools
import math

import pytest
import torch

from trlm_core.training.neftune import AT_ONCE, RowNoise, as_uniform, hashed, noise_for, places_of, row_key

HIDDEN = 64
ALPHA = 5.0
FIVE_SIGMA = 5.0
WORD = 1 << 32
LITERAL = [
    [0.34905195236206055, 0.251253604888916, 0.04854166507720947, -0.7908127307891846],
    [0.24398326873779297, -0.8460414409637451, -0.7082686424255371, -0.6819891929626465],
]


class Embedding:
    """An embedding of zeros under noise, so that what comes out is the noise."""

    def __init__(self, alpha: float = ALPHA, seed: int = 1) -> None:
        self.table = torch.nn.Embedding(10, HIDDEN)
        torch.nn.init.zeros_(self.table.weight)
        self.noise = RowNoise(self.table, alpha, seed)

    def __call__(self, lengths: list[int], rows: list[int], *, step: int = 0, padded: int | None = None) -> torch.Tensor:
        longest = padded or max(lengths)
        mask_BL = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
        with self.noise.on(places_of({"attention_mask": mask_BL}), step, rows), torch.no_grad():
            return self.table(torch.zeros_like(mask_BL))


@pytest.mark.parametrize("length", [4, 40, 400])
def test_noise_is_uniform_of_scale_alpha_over_the_root_of_length_times_hidden_size(length: int):
    noise_LD = Embedding()([length], [0])[0]
    scale = ALPHA / math.sqrt(length * HIDDEN)
    assert float(noise_LD.abs().max()) <= scale
    assert float(noise_LD.abs().max()) > 0.95 * scale
    assert float(noise_LD.mean()) == pytest.approx(0.0, abs=0.15 * scale)
    assert float(noise_LD.std()) == pytest.approx(scale / math.sqrt(3), rel=0.1), "a uniform spread"


def test_noise_does_not_depend_on_padding_or_on_the_rows_beside():
    embedding = Embedding()
    alone = embedding([6], [17])[0]
    padded = embedding([6], [17], padded=30)[0]
    beside = embedding([20, 6, 9], [3, 17, 5])[1]
    assert torch.equal(alone, padded[:6])
    assert torch.equal(alone, beside[:6])


def test_pads_get_no_noise():
    noise_BLD = Embedding()([3, 8], [0, 1])
    assert not noise_BLD[0, 3:].any()
    assert noise_BLD[1].all()


def test_the_same_row_of_the_same_step_always_gets_the_same_noise_and_another_row_step_or_seed_another():
    first = Embedding()([6], [17])
    assert torch.equal(first, Embedding()([6], [17]))
    for other in (Embedding()([6], [18]), Embedding()([6], [17], step=1), Embedding(seed=2)([6], [17])):
        assert not torch.equal(first, other)


def test_outside_its_block_nothing_is_added():
    embedding = Embedding()
    embedding([4], [0])
    assert not embedding.table(torch.zeros(1, 4, dtype=torch.long)).any()


def test_noise_ends_with_its_block_also_after_an_error():
    embedding = Embedding()
    with pytest.raises(RuntimeError), embedding.noise.on([(0, 0, 4)], 0, [0]):
        raise RuntimeError
    assert not embedding.table(torch.zeros(1, 4, dtype=torch.long)).any()


def test_sequences_end_to_end_get_the_noise_that_they_get_alone():
    embedding = Embedding()
    places = places_of({"cu_seq_lens_q": torch.tensor([0, 6, 15])})
    with embedding.noise.on(places, 0, [17, 5]), torch.no_grad():
        noise_LD = embedding.table(torch.zeros(1, 15, dtype=torch.long))[0]
    assert torch.equal(noise_LD[:6], embedding([6], [17])[0])
    assert torch.equal(noise_LD[6:], embedding([9], [5])[0])


def test_rows_longer_than_what_is_hashed_at_once_get_the_same_beside_others():
    tokens = AT_ONCE // HIDDEN + 900
    embedding = Embedding()
    beside = embedding([tokens, tokens - 7], [5, 17])
    assert torch.equal(beside[1, : tokens - 7], embedding([tokens - 7], [17])[0])


def test_noise_has_the_type_of_the_embeddings_and_is_rounded_only_there():
    places, keys = [(0, 0, 6)], [row_key(1, 0, 17)]
    exact = noise_for(torch.zeros(1, 6, HIDDEN), places, keys, ALPHA)
    assert torch.equal(noise_for(torch.zeros(1, 6, HIDDEN, dtype=torch.bfloat16), places, keys, ALPHA), exact.bfloat16())


@pytest.mark.parametrize(
    ("counter", "first", "second"), [(0, 0, 0), (575, 1, 2), (4_095, -1, -WORD // 2), (7, WORD // 2 - 1, 123_456_789), (3, -5, 2**30)]
)
def test_the_hash_is_triple32_with_its_key_in_unbounded_integers_too(counter: int, first: int, second: int):
    """So that a device whose products of int32 did not wrap round, or whose shift kept the sign, would be seen."""
    bits = (counter + first) % WORD
    bits = ((bits ^ bits >> 17) * 0xED5AD4BB + second) % WORD
    bits = (bits ^ bits >> 11) * 0xAC4C1B51 % WORD
    bits = (bits ^ bits >> 15) * 0x31848BAB % WORD
    bits ^= bits >> 14
    counters = torch.full((100,), counter, dtype=torch.int32)  # long enough for vector instructions
    assert {word % WORD for word in hashed(counters, torch.tensor([first]).int(), torch.tensor([second]).int()).tolist()} == {bits}


def test_the_noise_of_a_row_is_this_one():
    """Another hash, key or order of its words would be another training."""
    noise_LD = noise_for(torch.zeros(1, 2, 4), [(0, 0, 2)], [row_key(1, 2, 3)], math.sqrt(8))[0]
    assert noise_LD.tolist() == LITERAL


def test_the_least_and_the_largest_bits_are_minus_1_and_just_below_1():
    assert as_uniform(torch.tensor([-(2**31), 0, 2**31 - 1], dtype=torch.int32)).tolist() == [-1.0, 0.0, 1.0 - 2.0**-23]


@pytest.fixture(scope="module")
def uniform() -> torch.Tensor:
    """(R, L, D) of 4 steps with 32 rows of 100 tokens each, without their scale: 4.1 million numbers that should be uniform in [-1, 1)."""
    places = [(row, 0, 100) for row in range(32)]
    steps = [noise_for(torch.zeros(32, 100, 320), places, [row_key(7, step, row) for row in range(32)], 1.0) for step in range(4)]
    return (torch.cat(steps) * math.sqrt(100 * 320)).double()


def test_mean_and_variance_are_those_of_the_uniform_distribution(uniform: torch.Tensor):
    count = uniform.numel()
    assert abs(uniform.mean()) < FIVE_SIGMA * math.sqrt(1 / 3 / count)
    assert abs(uniform.square().mean() - 1 / 3) < FIVE_SIGMA * math.sqrt(4 / 45 / count)


def test_the_distribution_is_the_uniform_one_by_kolmogorov_and_smirnov(uniform: torch.Tensor):
    """Of all numbers, and of those of each row, position and feature by itself: at a level of 1 in 10,000 for each of them."""
    groups = [uniform.reshape(1, -1), *(uniform.movedim(axis, 0).flatten(1) for axis in range(3))]
    distances = torch.cat([_scaled_distance(group) for group in groups])
    assert len(distances) == 1 + 128 + 100 + 320
    assert distances.max() < 2.23  # exceeded by 1 in 10,000: 2 exp(-2 x 2.23^2)
    assert distances.mean() == pytest.approx(0.869, abs=0.05), "of Kolmogorov's distribution"


@pytest.mark.parametrize("apart", [1, 2, 64])
@pytest.mark.parametrize(("axis", "of"), [(0, "rows"), (1, "positions"), (2, "features")])
def test_neighbours_are_not_correlated(axis: int, of: str, apart: int, uniform: torch.Tensor):
    ahead = uniform.narrow(axis, apart, uniform.shape[axis] - apart)
    behind = uniform.narrow(axis, 0, uniform.shape[axis] - apart)
    for power in (1, 2):  # of themselves, and of their sizes
        assert abs(_correlation(ahead**power, behind**power)) < FIVE_SIGMA / math.sqrt(ahead.numel()), of


def test_steps_are_not_correlated(uniform: torch.Tensor):
    for one, other in itertools.combinations(uniform.chunk(4), 2):
        assert abs(_correlation(one, other)) < FIVE_SIGMA / math.sqrt(one.numel())


def test_every_bit_of_a_key_or_a_counter_turns_half_of_the_bits():
    """Avalanche, of every bit of the 96 that come in on every bit of the 24 that are used."""
    generator = torch.Generator().manual_seed(3)
    words = torch.randint(-(2**31), 2**31, (3, 20_000), generator=generator, dtype=torch.int64).int()
    for word, bit in itertools.product(range(3), range(32)):
        turned = words.clone()
        turned[word] ^= torch.tensor([1 << bit]).int()
        changed = hashed(*words) ^ hashed(*turned)
        shares = torch.stack([(changed >> place & 1).double().mean() for place in range(8, 32)])
        assert (shares - 0.5).abs().max() < 0.03, f"word {word}, bit {bit}"


def _scaled_distance(groups_GN: torch.Tensor) -> torch.Tensor:
    """Kolmogorov's distance from the uniform distribution in [-1, 1), times the root of the count: 2.23 at 1 in 10,000."""
    count = groups_GN.shape[1]
    expected_GN = (groups_GN.sort(dim=1).values + 1) / 2
    steps_N = torch.arange(count + 1, dtype=torch.float64) / count
    return torch.maximum((steps_N[1:] - expected_GN).amax(1), (expected_GN - steps_N[:-1]).amax(1)) * math.sqrt(count)


def _correlation(left: torch.Tensor, right: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([left.flatten(), right.flatten()]))[0, 1])
