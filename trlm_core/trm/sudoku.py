"""4x4 Sudoku with one solution, split by solved grid: given cells -> solved grid, each 16 numbers row by row, 0 for an empty cell.

given   0 0 3 0 3 0 0 0 0 1 0 0 0 0 0 2
solved  1 2 3 4 3 4 2 1 2 1 4 3 4 3 1 2
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from trlm_core.trm.puzzles import Puzzles

N_CELLS, N_TOKENS = 16, 5  # empty, and the digits 1 to 4
N_TRAIN_GRIDS, N_VALIDATION_GRIDS = 200, 28  # of 288; the other 60 are for the test
SPLIT_SEED = 1
MOST_REFUSED = 10_000  # draws in a row; of 4 givens one draw in 20 is a puzzle


@dataclass(frozen=True)
class Split:
    """No solved grid of one part is in another."""

    train: Tensor
    validation: Tensor
    test: Tensor


@cache
def all_grids() -> Tensor:
    """The 288 solved grids, [288, 16]."""
    return torch.tensor([*_completions(())])


def split_grids() -> Split:
    order = torch.randperm(len(all_grids()), generator=torch.Generator().manual_seed(SPLIT_SEED))
    grids = all_grids()[order]
    train, validation, test = grids.split([N_TRAIN_GRIDS, N_VALIDATION_GRIDS, len(grids) - N_TRAIN_GRIDS - N_VALIDATION_GRIDS])
    return Split(train, validation, test)


def draw_puzzles(grids: Tensor, count: int, n_givens: Sequence[int], seed: int) -> Puzzles:
    """Different puzzles: as many random cells of a random grid as one of n_givens says, kept where no other grid fits.

    Raises ValueError where there are not as many.
    """
    generator = torch.Generator().manual_seed(seed)
    given: dict[tuple[int, ...], Tensor] = {}
    refused = 0
    while len(given) < count:
        grid_L = grids[int(torch.randint(len(grids), (1,), generator=generator))]
        wanted = n_givens[int(torch.randint(len(n_givens), (1,), generator=generator))]
        given_L = torch.zeros_like(grid_L)
        cells = torch.randperm(N_CELLS, generator=generator)[:wanted]
        given_L[cells] = grid_L[cells]
        if count_solutions(given_L) == 1 and (key := tuple(given_L.tolist())) not in given:
            given[key], refused = grid_L, 0
        else:
            refused += 1
        if refused > MOST_REFUSED:
            wanted = f"wanted {count:,} puzzles of {', '.join(map(str, n_givens))} givens on {len(grids)} grids"
            raise ValueError(f"puzzles: {wanted}, got {len(given):,}; ask for fewer, or for other givens")
    return Puzzles(torch.tensor([*given]), torch.stack([*given.values()]))


def count_solutions(given_L: Tensor) -> int:
    is_given_L = given_L > 0
    return int((all_grids()[:, is_given_L] == given_L[is_given_L]).all(dim=1).sum())


def _completions(cells: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if len(cells) == N_CELLS:
        yield cells
        return
    taken = {digit for cell, digit in enumerate(cells) if _see_each_other(cell, len(cells))}
    for digit in {1, 2, 3, 4} - taken:
        yield from _completions((*cells, digit))


def _see_each_other(a: int, b: int) -> bool:
    """Whether two cells share a row, a column or a box."""
    (row_a, column_a), (row_b, column_b) = divmod(a, 4), divmod(b, 4)
    return row_a == row_b or column_a == column_b or (row_a // 2, column_a // 2) == (row_b // 2, column_b // 2)
