"""An example as people look at it: by supervision steps, the thought read out of its latents and the answer after it. Nothing heavy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ExampleStep:
    step: int  # supervision step
    p_halt: float
    thought: str  # read out of the latents
    answer: str  # that the language model writes after them
    right: bool


@dataclass(frozen=True)
class LatentExample:
    prompt: str
    wanted: str
    steps: tuple[ExampleStep, ...]
