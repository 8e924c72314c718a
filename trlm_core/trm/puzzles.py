"""Puzzles on a grid of tokens: what is given and what is right, a row of cells each.

given   0 0 3 0 3 0 0 0 0 1 0 0 0 0 0 2        4x4 Sudoku: 0 for an empty cell
solved  1 2 3 4 3 4 2 1 2 1 4 3 4 3 1 2

N puzzles, L cells.
"""
# ruff: noqa: N815 - tensor names carry their shape

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Puzzles:
    given_NL: Tensor
    solved_NL: Tensor

    def __len__(self) -> int:
        return len(self.given_NL)

    def pick(self, rows: Tensor | slice) -> "Puzzles":
        return Puzzles(self.given_NL[rows], self.solved_NL[rows])

    def to(self, device: torch.device) -> "Puzzles":
        return Puzzles(self.given_NL.to(device), self.solved_NL.to(device))


# Each of some puzzles in another guise that is as good (a symmetry), drawn from the generator.
Variation = Callable[[Puzzles, torch.Generator], Puzzles]


def as_they_are(puzzles: Puzzles, generator: torch.Generator) -> Puzzles:
    return puzzles


def joined(several: list[Puzzles]) -> Puzzles:
    return Puzzles(torch.cat([each.given_NL for each in several]), torch.cat([each.solved_NL for each in several]))


def where(is_new_N: Tensor, new: Puzzles, old: Puzzles) -> Puzzles:
    """Row by row."""
    is_new_N1 = is_new_N[:, None]
    return Puzzles(torch.where(is_new_N1, new.given_NL, old.given_NL), torch.where(is_new_N1, new.solved_NL, old.solved_NL))
