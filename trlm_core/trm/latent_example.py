"""An example as people look at it: the thought read out of its latents, and the answer after it, step by step. Imports nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExampleStep:
    step: int
    p_halt: float
    thought: str  # read out of the latents
    answer: str  # that the language model writes after them
    right: bool


@dataclass(frozen=True)
class LatentExample:
    prompt: str
    wanted: str
    steps: tuple[ExampleStep, ...]
