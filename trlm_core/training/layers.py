"""The decoder layers of a model: what is compiled, and what is sharded, one at a time."""

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    names = model._no_split_modules or ()
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_layers(model: PreTrainedModel) -> None:
    """Each layer's forward by torch.compile, in its place: names and weights stay, and what one has compiled serves all.

    Dynamic: nearly every micro-batch has a shape of its own, and a graph for each would be compiled without end.
    """
    for layer in decoder_layers(model):
        layer.compile(dynamic=True)
