"""9x9 Sudoku with one solution, graded by the number of givens, split by the solved grid up to Sudoku's symmetries.

given   5 3 0 0 7 0 0 0 0 6 0 0 1 9 5 0 0 0 ...       81 numbers row by row, 0 for an empty cell
solved  5 3 4 6 7 8 9 1 2 6 7 2 1 9 5 3 4 8 ...

N puzzles, L cells (81).
"""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from trlm_core.trm.puzzles import Puzzles

SIDE, N_CELLS, N_TOKENS = 9, 81, 10  # empty, and the digits 1 to 9
DIGITS = tuple(range(1, SIDE + 1))
HOUSES = tuple((cell // 9, 9 + cell % 9, 18 + cell // 27 * 3 + cell % 9 // 3) for cell in range(N_CELLS))  # row, column, box
ORDERS = 200  # of emptying one grid, in search of a puzzle with few givens
Grid = tuple[int, ...]


class Board:
    """A grid that is being filled, and the digits that each row, column and box has: bit d for digit d."""

    def __init__(self, given: Sequence[int]) -> None:
        self.cells = [0] * N_CELLS
        self.taken = [0] * 27
        self.is_possible = all(self._place(cell, digit) for cell, digit in enumerate(given) if digit)

    def _place(self, cell: int, digit: int) -> bool:
        if self.taken_at(cell) >> digit & 1:
            return False
        self.flip(cell, digit)
        self.cells[cell] = digit
        return True

    def taken_at(self, cell: int) -> int:
        row, column, box = HOUSES[cell]
        return self.taken[row] | self.taken[column] | self.taken[box]

    def flip(self, cell: int, digit: int) -> None:
        for house in HOUSES[cell]:
            self.taken[house] ^= 1 << digit

    def most_constrained(self, empty: Sequence[int]) -> int:
        """The index in `empty` of a cell with the fewest digits left."""
        best, most = 0, -1
        for index, cell in enumerate(empty):
            row, column, box = HOUSES[cell]
            count = (self.taken[row] | self.taken[column] | self.taken[box]).bit_count()
            if count > most:
                best, most = index, count
                if count >= SIDE - 1:
                    break
        return best

    def completions(self, empty: list[int], order: Sequence[int] = DIGITS) -> Iterator[Grid]:
        """Every solved grid, digits tried in this order."""
        if not empty:
            yield tuple(self.cells)
            return
        index = self.most_constrained(empty)
        cell, rest = empty[index], empty[:index] + empty[index + 1 :]
        taken = self.taken_at(cell)
        for digit in order:
            if not taken >> digit & 1:
                self.flip(cell, digit)
                self.cells[cell] = digit
                yield from self.completions(rest, order)
                self.flip(cell, digit)
        self.cells[cell] = 0


def solutions(given: Sequence[int], limit: int = 2) -> list[Grid]:
    """So many of its solved grids, or all; none where the givens contradict each other."""
    board = Board(given)
    if not board.is_possible:
        return []
    return [*islice(board.completions([cell for cell in range(N_CELLS) if not given[cell]]), limit)]


def draw_grid(random: Random) -> Grid:
    """A solved grid. Every one can come out; not all are equally likely."""
    first_row = random.sample(DIGITS, SIDE)
    cells, order = random.sample(range(SIDE, N_CELLS), N_CELLS - SIDE), random.sample(DIGITS, SIDE)
    return next(Board(first_row).completions(cells, order))


def symmetry_key(grid: Sequence[int]) -> tuple[object, ...]:
    """The same for all grids that digits' names, rows within bands, bands, columns likewise, and transposition make of each other.

    Hence grids with different keys are not symmetric to each other. The converse is not claimed.
    """
    rows = [grid[9 * row : 9 * row + 9] for row in range(SIDE)]
    columns = [grid[column::9] for column in range(SIDE)]
    return tuple(sorted([_key_of_lines(rows), _key_of_lines(columns)]))


def _key_of_lines(lines: Sequence[Sequence[int]]) -> tuple[tuple[tuple[int, ...], int], ...]:
    """How often a pair of lines, of one band and of two, is a permutation with these lengths of cycles."""
    types = Counter((a // 3 == b // 3, *_cycle_lengths(lines[a], lines[b])) for a, b in combinations(range(SIDE), 2))
    return tuple(sorted(types.items()))


def _cycle_lengths(line: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Of the permutation that takes each digit of a line to the one beside it: neither names nor the order of cells change them."""
    beside, lengths = dict(zip(line, other, strict=True)), []
    while beside:
        digit, length = next(iter(beside)), 0
        while digit in beside:
            digit, length = beside.pop(digit), length + 1
        lengths.append(length)
    return tuple(sorted(lengths))


@dataclass(frozen=True)
class GridSplit:
    """No grid of one part is symmetric to one of another, or to another of its own."""

    train: tuple[Grid, ...]
    validation: tuple[Grid, ...]
    test: tuple[Grid, ...]


def split_grids(train: int, validation: int, test: int, seed: int) -> GridSplit:
    """So many grids each. Held-out grids come first: they are the same however many train."""
    random, found = Random(seed), {}
    while len(found) < train + validation + test:
        grid = draw_grid(random)
        found.setdefault(symmetry_key(grid), grid)
    grids = [*found.values()]
    return GridSplit(tuple(grids[validation + test :]), tuple(grids[:validation]), tuple(grids[validation : validation + test]))


def graded_puzzles(grids: Sequence[Grid], n_givens: Sequence[int], seed: int) -> dict[int, Puzzles]:
    """Of every grid, in order, one puzzle of every grade; the givens of a harder one are among those of an easier one."""
    random = Random(seed)
    dug = [dig(grid, n_givens, random) for grid in grids]
    solved_NL = torch.tensor(grids)
    return {count: Puzzles(torch.tensor([each[count] for each in dug]), solved_NL) for count in n_givens}


def dig(grid: Grid, n_givens: Sequence[int], random: Random) -> dict[int, Grid]:
    """Cells emptied in random order, each only if one solution is left; what stands at these numbers of givens.

    Raises ValueError where no order leaves as few givens as the fewest.
    """
    for _ in range(ORDERS):
        found, cells, left = {N_CELLS: grid}, [*grid], N_CELLS
        for cell in random.sample(range(N_CELLS), N_CELLS):
            cells[cell] = 0
            if _has_another_digit(cells, cell, grid[cell]):
                cells[cell] = grid[cell]
                continue
            left -= 1
            found[left] = tuple(cells)
            if left == min(n_givens):
                return {count: found[count] for count in n_givens}
    got = f"got none in {ORDERS} random orders of emptying one grid"
    raise ValueError(f"9x9 Sudoku: wanted a puzzle with {min(n_givens)} givens and one solution, {got}; ask for more givens, 26 or more")


def _has_another_digit(cells: Sequence[int], cell: int, digit: int) -> bool:
    """Whether a solution has another digit here: exactly then emptying the cell has cost the puzzle its only one."""
    board = Board(cells)
    taken = board.taken_at(cell)
    empty = [each for each in range(N_CELLS) if not cells[each] and each != cell]
    for other in DIGITS:
        if other != digit and not taken >> other & 1:
            board.flip(cell, other)
            if next(board.completions(empty), None):
                return True
            board.flip(cell, other)
    return False


def varied(puzzles: Puzzles, generator: torch.Generator) -> Puzzles:
    """Each puzzle in a symmetric guise: digits renamed, rows within bands and bands shuffled, columns likewise, transposed or not."""
    count, device = len(puzzles), puzzles.given_NL.device
    names_NV = torch.rand(count, SIDE, generator=generator).argsort(dim=1) + 1
    names_NV = torch.cat([torch.zeros(count, 1, dtype=torch.long), names_NV], dim=1).to(device)
    rows_N9, columns_N9 = (shuffled_lines(count, generator) for _ in range(2))
    cells_N99 = 9 * rows_N9[:, :, None] + columns_N9[:, None, :]
    is_turned_N = torch.rand(count, generator=generator) < 0.5
    cells_NL = torch.where(is_turned_N[:, None, None], cells_N99.mT, cells_N99).flatten(1).to(device)
    given_NL, solved_NL = (names_NV.gather(1, each.gather(1, cells_NL)) for each in (puzzles.given_NL, puzzles.solved_NL))
    return Puzzles(given_NL, solved_NL)


def shuffled_lines(count: int, generator: torch.Generator) -> Tensor:
    """[N, 9]: bands in random order, and the three lines of each."""
    bands_N31 = torch.rand(count, 3, 1, generator=generator).argsort(dim=1)
    lines_N33 = torch.rand(count, 3, 3, generator=generator).argsort(dim=2)
    return (3 * bands_N31 + lines_N33).flatten(1)


def read_puzzles(path: Path, count: int | None, seed: int) -> Puzzles:
    """So many random rows, or all, of a CSV file with columns `question` (81 characters, . or 0 for an empty cell) and `answer`."""
    rows = range(_n_rows(path))
    if count is not None and count > len(rows):
        raise ValueError(f"{path}: wanted {count:,} puzzles, got {len(rows):,}")
    wanted = {*rows} if count is None else {*Random(seed).sample(rows, count)}  # of millions: they are not held all at once
    with path.open(newline="") as file:
        read = [(_cells(line["question"]), _cells(line["answer"])) for row, line in enumerate(csv.DictReader(file)) if row in wanted]
    given, solved = zip(*read, strict=True)
    return Puzzles(torch.tensor(given), torch.tensor(solved))


def _n_rows(path: Path) -> int:
    with path.open(newline="") as file:
        return sum(1 for _ in csv.reader(file)) - 1


def _cells(text: str) -> Grid:
    return tuple(int(cell) for cell in text.replace(".", "0"))
