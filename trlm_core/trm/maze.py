"""Mazes with one shortest path: walls, start and goal -> the same with the path marked.

given   # # # # # # #      solved  # # # # # # #
        # S . . # G #              # S o o # G #
        # . # . # . #              # . # o # o #
        # . # . . . #              # . # o o o #
        # # # # # # #              # # # # # # #        0 #, 1 ., 2 S, 3 G, 4 o, row by row

N puzzles, L cells.
"""

from collections.abc import Sequence
from random import Random

import torch

from trlm_core.trm.puzzles import Puzzles

WALL, FREE, START, GOAL, PATH = range(5)
N_TOKENS = 5
N_SYMMETRIES = 8  # of a square
MOST_REFUSED = 10_000  # draws in a row
Cells = tuple[int, ...]


def draw_mazes(count: int, side: int, n_openings: int, fewest_moves: int, seed: int) -> Puzzles:
    """Square mazes, no two of them turned or mirrored images of each other, with exactly one shortest path of at least so many moves.

    Rooms lie at odd rows and columns; a random tree joins them, and so many more walls between rooms are opened, which makes ways round.
    ValueError where there are not as many such mazes.
    """
    if side < 5 or side % 2 == 0:
        raise ValueError(f"side: wanted an odd number from 5 on, got {side}")
    random, found, refused = Random(seed), {}, 0
    while len(found) < count:
        given = _draw_maze(side, n_openings, random)
        path = shortest_path(given, side)
        key = min(symmetric_guises(given, side))
        if path is None or len(path) + 1 < fewest_moves or key in found:
            refused += 1
        else:
            found[key], refused = (given, tuple(PATH if cell in path else token for cell, token in enumerate(given))), 0
        if refused > MOST_REFUSED:
            advice = "ask for fewer, for a larger side, or for fewer moves"
            raise ValueError(f"wanted {count:,} mazes of side {side} and {fewest_moves} moves, got {len(found):,}; {advice}")
    given, solved = zip(*found.values(), strict=True)
    return Puzzles(torch.tensor(given), torch.tensor(solved))


def _draw_maze(side: int, n_openings: int, random: Random) -> Cells:
    cells = carve(side, random)
    walls = [cell for cell in range(side * side) if cells[cell] == WALL and _is_between_rooms(cell, side)]
    for cell in random.sample(walls, min(n_openings, len(walls))):
        cells[cell] = FREE
    start, goal = random.sample([row * side + column for row in range(1, side, 2) for column in range(1, side, 2)], 2)
    cells[start], cells[goal] = START, GOAL
    return tuple(cells)


def carve(side: int, random: Random) -> list[int]:
    """Rooms joined by a random tree: depth first, a room's neighbours in random order."""
    cells, way = [WALL] * (side * side), [side + 1]
    cells[way[0]] = FREE
    while way:
        room = way[-1]
        steps = [step for step in (1, -1, side, -side) if _is_inside(room + 2 * step, step, side) and cells[room + 2 * step] == WALL]
        if not steps:
            way.pop()
            continue
        step = random.choice(steps)
        cells[room + step] = cells[room + 2 * step] = FREE
        way.append(room + 2 * step)
    return cells


def _is_inside(room: int, step: int, side: int) -> bool:
    """Whether this room, reached in this direction, is not beyond an edge. A step along a row may not leave it."""
    row, column = divmod(room, side)
    return 0 < row < side - 1 and 0 < column < side - 1 and (abs(step) == side or row % 2 == 1)


def _is_between_rooms(cell: int, side: int) -> bool:
    row, column = divmod(cell, side)
    return 0 < row < side - 1 and 0 < column < side - 1 and row % 2 != column % 2


def shortest_path(given: Sequence[int], side: int) -> frozenset[int] | None:
    """The cells between start and goal; None where no path or more than one is the shortest."""
    start, goal = given.index(START), given.index(GOAL)
    moves, ways = _reach(given, side, start)
    if ways.get(goal) != 1:
        return None
    path, cell = set(), goal
    while moves[cell] > 1:
        cell = next(near for near in _beside(cell, side) if moves.get(near) == moves[cell] - 1)
        path.add(cell)
    return frozenset(path)


def _reach(given: Sequence[int], side: int, start: int) -> tuple[dict[int, int], dict[int, int]]:
    """Breadth first: fewest moves to every cell that can be reached, and in how many ways it is reached in so many."""
    moves, ways, edge = {start: 0}, {start: 1}, [start]
    while edge:
        beyond = []
        for cell in edge:
            for near in _beside(cell, side):
                if given[near] == WALL:
                    continue
                if near not in moves:
                    moves[near], ways[near] = moves[cell] + 1, 0
                    beyond.append(near)
                if moves[near] == moves[cell] + 1:
                    ways[near] += ways[cell]
        edge = beyond
    return moves, ways


def _beside(cell: int, side: int) -> tuple[int, int, int, int]:
    """Of a cell that is not on the rim, where all is wall."""
    return cell + 1, cell - 1, cell + side, cell - side


def symmetric_guises(cells: Sequence[int], side: int) -> list[Cells]:
    return [tuple(cells[cell] for cell in order) for order in symmetries(side).tolist()]


def symmetries(side: int) -> torch.Tensor:
    """[8, L]: from which cell each cell of a turned or mirrored square comes."""
    square = torch.arange(side * side).reshape(side, side)
    turned = [torch.rot90(each, turns) for each in (square, square.mT) for turns in range(4)]
    return torch.stack(turned).flatten(1)


def varied(puzzles: Puzzles, generator: torch.Generator) -> Puzzles:
    """Each maze turned or mirrored at random."""
    side = round(puzzles.given_NL.shape[1] ** 0.5)
    drawn_N = torch.randint(N_SYMMETRIES, (len(puzzles),), generator=generator)
    cells_NL = symmetries(side)[drawn_N].to(puzzles.given_NL.device)
    return Puzzles(puzzles.given_NL.gather(1, cells_NL), puzzles.solved_NL.gather(1, cells_NL))
