"""NEFTune noise: of the published scale for each row's own length, and the same however a step is cut."""

import math

import pytest
import torch

from trlm_core.training.neftune import RowNoise, places_of

HIDDEN = 64
ALPHA = 5.0


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
