"""A moving average of a model's weights: what is evaluated and exported is the average, never the raw weights."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class WeightAverage:
    """average <- decay * average + (1 - decay) * weights, after every optimizer step. At 0.999 it lags by about 1,000 steps."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: wanted at least 0 and less than 1, got {decay}")
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: each.detach().clone() for name, each in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, each in model.state_dict().items():
            if each.is_floating_point():
                self.weights[name].lerp_(each, 1.0 - self.decay)
            else:
                self.weights[name].copy_(each)

    def averaged(self, model: Model) -> Model:
        """A copy of the model with the averaged weights, in evaluation mode."""
        twin = copy.deepcopy(model)
        twin.load_state_dict(self.weights)
        return twin.eval()
