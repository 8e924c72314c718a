"""Mazes: the marked path is the only shortest one, no maze is an image of another, and the plain TRM learns them."""

from statistics import median

import pytest
import torch

from trlm_core.trm.config import RecursionConfig
from trlm_core.trm.grid_training import GridRecipe, GridTrainer
from trlm_core.trm.grid_trm import GridTRM, answer_grids, is_solved
from trlm_core.trm.maze import (
    FREE,
    GOAL,
    N_TOKENS,
    PATH,
    START,
    WALL,
    draw_mazes,
    shortest_path,
    symmetric_guises,
    varied,
)

LETTERS = "#.SGo"


def cells_of(*rows: str) -> list[int]:
    return [LETTERS.index(letter) for row in rows for letter in row]


def fewest_moves(walkable: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """By relaxation of the whole square: another way than the one under test."""
    moves = torch.where(start, 0, 10_000)
    for _ in range(walkable.numel()):
        padded = torch.nn.functional.pad(moves, (1, 1, 1, 1), value=10_000)
        beside = torch.stack([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]).amin(dim=0)
        moves = torch.where(walkable, torch.minimum(moves, beside + 1), 10_000)
    return moves


def test_the_path_of_a_maze_that_was_drawn_by_hand():
    maze = cells_of("#######", "#S..#G#", "#.#.#.#", "#.#...#", "#.###.#", "#.....#", "#######")
    marked = [PATH if cell in (shortest_path(maze, 7) or ()) else token for cell, token in enumerate(maze)]
    assert marked == cells_of("#######", "#Soo#G#", "#.#o#o#", "#.#ooo#", "#.###.#", "#.....#", "#######")


def test_two_ways_round_of_the_same_length_and_none_at_all_are_no_puzzle():
    assert shortest_path(cells_of("#####", "#S..#", "#.#.#", "#..G#", "#####"), 5) is None
    assert shortest_path(cells_of("#####", "#S#.#", "###.#", "#..G#", "#####"), 5) is None


@pytest.mark.parametrize("n_openings", [0, 6])
def test_the_marked_path_is_a_shortest_one_and_joins_start_to_goal(n_openings: int):
    mazes = draw_mazes(40, side=11, n_openings=n_openings, fewest_moves=8, seed=0)
    for given, solved in zip(mazes.given_NL.reshape(-1, 11, 11), mazes.solved_NL.reshape(-1, 11, 11), strict=True):
        moves = fewest_moves(given != WALL, given == START)
        marked = int((solved == PATH).sum())
        assert moves[given == GOAL].item() == marked + 1 >= 8
        assert fewest_moves(solved > FREE, given == START)[given == GOAL].item() == marked + 1  # along marked cells alone
        assert torch.equal(given[solved != PATH], solved[solved != PATH])
        assert bool((given[solved == PATH] == FREE).all())


def test_openings_make_ways_round():
    tree, opened = (draw_mazes(10, side=9, n_openings=n, fewest_moves=1, seed=0).given_NL for n in (0, 4))
    n_rooms = 16
    assert set((tree != WALL).sum(dim=1).tolist()) == {2 * n_rooms - 1}  # a tree: a door less than rooms
    assert set((opened != WALL).sum(dim=1).tolist()) == {2 * n_rooms - 1 + 4}


def test_no_maze_is_a_turned_or_mirrored_image_of_another():
    mazes = draw_mazes(200, side=7, n_openings=1, fewest_moves=2, seed=0)
    keys = {min(symmetric_guises(given, 7)) for given in mazes.given_NL.tolist()}
    assert len(keys) == 200


def test_a_turned_maze_is_solved_by_the_turned_path():
    mazes = draw_mazes(50, side=7, n_openings=2, fewest_moves=2, seed=0)
    other = varied(mazes, torch.Generator().manual_seed(0))
    assert (other.given_NL != mazes.given_NL).any(dim=1).float().mean() > 0.5
    for given, solved in zip(other.given_NL.tolist(), other.solved_NL.tolist(), strict=True):
        assert {cell for cell, token in enumerate(solved) if token == PATH} == shortest_path(given, 7)


def test_the_same_seed_draws_the_same_mazes_and_another_draws_others():
    drawn = [draw_mazes(5, side=9, n_openings=2, fewest_moves=4, seed=seed).given_NL for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_more_mazes_than_there_are_or_an_even_side_is_an_error():
    with pytest.raises(ValueError, match=r"wanted 500 mazes of side 5 and 1 moves, got \d+; ask for fewer"):
        draw_mazes(500, side=5, n_openings=0, fewest_moves=1, seed=0)
    with pytest.raises(ValueError, match="side: wanted an odd number from 5 on, got 8"):
        draw_mazes(1, side=8, n_openings=0, fewest_moves=1, seed=0)


def test_a_trm_learns_the_paths_of_a_few_mazes():
    mazes = draw_mazes(5, side=7, n_openings=1, fewest_moves=4, seed=0)
    recipe = GridRecipe(250, 8, 3e-3, 0.02, 5, 0.1, 1.0, 0.9, seed=0, precision="float32")
    torch.manual_seed(0)
    trainer = GridTrainer(GridTRM(RecursionConfig(32, 4, 2, 2, 2, 3, 0.1, 0.25), N_TOKENS, n_cells=49), mazes, recipe)
    losses = [trainer.step() for _ in range(50)]
    assert median(losses[20:]) < 0.15 * losses[0]
    trained = trainer.train()
    assert is_solved(answer_grids(trained, mazes.given_NL, steps=3), mazes.solved_NL)[-1].all()
