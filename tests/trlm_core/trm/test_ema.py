"""The moving average: its closed form, and that what it exports is it."""

import pytest
import torch
from torch import nn

from trlm_core.trm.ema import WeightAverage


class Counted(nn.Module):
    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))
        self.register_buffer("count", torch.tensor(0))


def moved(weights: list[float], decay: float) -> tuple[Counted, WeightAverage]:
    model = Counted()
    average = WeightAverage(model, decay)
    for each in weights:
        with torch.no_grad():
            model.weight.fill_(each)
        model.count += 1
        average.update(model)
    return model, average


def test_the_average_is_its_closed_form():
    _, average = moved([2.0, 5.0, -1.0], decay=0.9)
    by_hand = 0.9**3 * 1.0 + 0.1 * (0.9**2 * 2.0 + 0.9 * 5.0 + -1.0)
    assert average.weights["weight"].item() == pytest.approx(by_hand, abs=1e-6)


def test_the_exported_model_has_the_average_and_the_trained_one_keeps_its_weights():
    model, average = moved([3.0], decay=0.5)
    exported = average.averaged(model)
    assert (exported.weight.item(), model.weight.item()) == (2.0, 3.0)
    assert not exported.training


def test_counts_are_copied_not_averaged():
    _, average = moved([1.0, 1.0], decay=0.9)
    assert average.weights["count"] == 2


def test_a_decay_of_1_which_would_never_move_is_an_error():
    with pytest.raises(ValueError, match=r"decay: wanted at least 0 and less than 1, got 1\.0"):
        WeightAverage(Counted(), 1.0)
