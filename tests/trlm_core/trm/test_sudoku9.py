"""9x9 Sudoku: every puzzle has one solution, and no held-out grid is a symmetry of one that is trained on."""

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch

from trlm_core.trm import sudoku9
from trlm_core.trm.puzzles import Puzzles
from trlm_core.trm.sudoku9 import (
    HOUSES,
    dig,
    draw_grid,
    graded_puzzles,
    read_puzzles,
    solutions,
    split_grids,
    symmetry_key,
    varied,
)

PUZZLE = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def cells_of(text: str) -> tuple[int, ...]:
    return tuple(map(int, text))


def is_right(grid: tuple[int, ...]) -> bool:
    houses: list[set[int]] = [set() for _ in range(27)]
    for cell, digit in enumerate(grid):
        for house in HOUSES[cell]:
            houses[house].add(digit)
    return all(house == {*range(1, 10)} for house in houses)


def test_a_cell_lies_in_its_row_column_and_box():
    assert (HOUSES[0], HOUSES[13], HOUSES[80]) == ((0, 9, 18), (1, 13, 19), (8, 17, 26))


def test_a_puzzle_with_one_solution_is_solved():
    assert solutions(cells_of(PUZZLE)) == [cells_of(SOLVED)]


def test_four_cells_that_can_swap_two_digits_make_two_solutions():
    given, swapped = [*cells_of(SOLVED)], [*cells_of(SOLVED)]
    for cell, digit in ((32, 3), (35, 1), (41, 1), (44, 3)):  # 1 and 3 in rows 4 and 5, columns 6 and 9
        assert given[cell] == 4 - digit
        given[cell], swapped[cell] = 0, digit
    assert {*solutions(given, limit=3)} == {cells_of(SOLVED), tuple(swapped)}
    given[32] = 1
    assert solutions(given) == [cells_of(SOLVED)]


def test_givens_that_contradict_each_other_have_no_solution():
    assert solutions([5, 5, *[0] * 79]) == []
    assert solutions(cells_of("12345678" + "0" * 9 + "9" + "0" * 63)) == []  # the ninth cell sees all nine digits


def test_drawn_grids_are_right_and_different():
    random = Random(0)
    grids = {draw_grid(random) for _ in range(50)}
    assert len(grids) == 50
    assert all(is_right(grid) for grid in grids)


def test_a_grid_and_its_symmetries_have_one_key_and_other_grids_have_others():
    random = Random(0)
    grids = [draw_grid(random) for _ in range(30)]
    keys = [symmetry_key(grid) for grid in grids]
    assert len(set(keys)) == 30
    solved_NL = torch.tensor(grids)
    for seed in range(5):
        guises = varied(Puzzles(solved_NL, solved_NL), torch.Generator().manual_seed(seed)).solved_NL.tolist()
        assert [symmetry_key(guise) for guise in guises] == keys
        assert all(tuple(guise) != grid for guise, grid in zip(guises, grids, strict=True))


def test_no_grid_is_a_symmetry_of_another_and_held_out_ones_stay_whatever_is_trained_on():
    few, many = split_grids(10, 5, 5, seed=0), split_grids(40, 5, 5, seed=0)
    assert (many.validation, many.test, many.train[:10]) == (few.validation, few.test, few.train)
    assert len({symmetry_key(grid) for grid in (*many.train, *many.validation, *many.test)}) == 50


def test_a_puzzle_of_every_grade_has_one_solution_its_grid_and_the_givens_of_a_harder_one():
    grids = [draw_grid(random) for random in [Random(1)] for _ in range(6)]
    grades = (60, 38, 28)
    puzzles = graded_puzzles(grids, grades, seed=0)
    for givens in grades:
        assert (puzzles[givens].given_NL > 0).sum(dim=1).tolist() == [givens] * 6
        for given, grid in zip(puzzles[givens].given_NL.tolist(), grids, strict=True):
            assert solutions(given) == [grid]
    for easier, harder in pairwise(grades):
        is_given = puzzles[harder].given_NL > 0
        assert torch.equal(puzzles[easier].given_NL[is_given], puzzles[harder].given_NL[is_given])


def test_the_same_seed_digs_the_same_puzzle_and_another_digs_another():
    dug = [dig(cells_of(SOLVED), (30,), Random(seed)) for seed in (1, 1, 2)]
    assert dug[0] == dug[1] != dug[2]


def test_givens_that_no_order_reaches_end_in_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sudoku9, "ORDERS", 2)
    with pytest.raises(ValueError, match="wanted a puzzle with 16 givens and one solution, got none"):  # none has: arXiv 1201.0749
        dig(cells_of(SOLVED), (40, 16), Random(0))


def test_another_guise_of_a_puzzle_has_one_solution_the_guise_of_its_grid():
    puzzles = Puzzles(torch.tensor([cells_of(PUZZLE)] * 40), torch.tensor([cells_of(SOLVED)] * 40))
    other = varied(puzzles, torch.Generator().manual_seed(0))
    assert len(other.given_NL.unique(dim=0)) == 40
    for given, solved in zip(other.given_NL.tolist(), other.solved_NL.tolist(), strict=True):
        assert sum(cell > 0 for cell in given) == 30
        assert is_right(tuple(solved))
        assert solutions(given) == [tuple(solved)]


def test_guises_come_from_the_generator_alone():
    puzzles = Puzzles(torch.tensor([cells_of(PUZZLE)]), torch.tensor([cells_of(SOLVED)]))
    drawn = [varied(puzzles, torch.Generator().manual_seed(seed)).given_NL for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_file_of_puzzles_is_read_and_some_of_it_drawn(tmp_path: Path):
    path = tmp_path / "train.csv"
    lines = [f"puzzles0,{PUZZLE.replace('0', '.')},{SOLVED},{rating}" for rating in range(3)]
    path.write_text("\n".join(["source,question,answer,rating", *lines]) + "\n")
    puzzles = read_puzzles(path, None, seed=0)
    assert puzzles.given_NL.tolist() == [[*cells_of(PUZZLE)]] * 3
    assert puzzles.solved_NL.tolist() == [[*cells_of(SOLVED)]] * 3
    assert len(read_puzzles(path, 2, seed=0)) == 2
    with pytest.raises(ValueError, match=r"train\.csv: wanted 4 puzzles, got 3"):
        read_puzzles(path, 4, seed=0)
