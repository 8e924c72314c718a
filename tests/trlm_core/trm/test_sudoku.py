"""4x4 Sudoku: every puzzle has one solution, and no part of the split knows another's grids."""

import pytest
import torch

from trlm_core.trm.sudoku import all_grids, count_solutions, draw_puzzles, split_grids


def test_there_are_288_solved_grids_each_with_four_digits_in_every_row_column_and_box():
    grids = all_grids().reshape(-1, 4, 4)
    assert len(grids) == len(grids.unique(dim=0)) == 288
    boxes = grids.reshape(-1, 2, 2, 2, 2).transpose(2, 3).reshape(-1, 4, 4)
    for groups in (grids, grids.mT, boxes):
        assert torch.equal(groups.sort(dim=-1).values, torch.tensor([1, 2, 3, 4]).expand(288, 4, 4))


def test_no_solved_grid_is_in_two_parts_of_the_split():
    split = split_grids()
    assert [len(split.train), len(split.validation), len(split.test)] == [200, 28, 60]
    assert len(torch.cat([split.train, split.validation, split.test]).unique(dim=0)) == 288


def test_the_split_is_this_one_for_ever():
    assert split_grids().test[0].tolist() == [3, 2, 1, 4, 1, 4, 3, 2, 4, 3, 2, 1, 2, 1, 4, 3]


def test_every_puzzle_is_new_has_a_wanted_number_of_givens_of_its_grid_and_one_solution():
    puzzles = draw_puzzles(split_grids().validation, 200, [4, 6], seed=3)
    is_given_NL = puzzles.given_NL > 0
    assert len(puzzles.given_NL.unique(dim=0)) == 200
    assert set(is_given_NL.sum(dim=1).tolist()) == {4, 6}
    assert torch.equal(puzzles.given_NL[is_given_NL], puzzles.solved_NL[is_given_NL])
    assert all(count_solutions(given_L) == 1 for given_L in puzzles.given_NL)


def test_an_empty_grid_has_all_solutions_and_contradicting_givens_have_none():
    assert count_solutions(torch.zeros(16, dtype=torch.long)) == 288
    assert count_solutions(torch.tensor([1, 1] + [0] * 14)) == 0


def test_the_same_seed_draws_the_same_puzzles_and_another_draws_others():
    grids = split_grids().train
    assert torch.equal(draw_puzzles(grids, 20, [6], seed=1).given_NL, draw_puzzles(grids, 20, [6], seed=1).given_NL)
    assert not torch.equal(draw_puzzles(grids, 20, [6], seed=1).given_NL, draw_puzzles(grids, 20, [6], seed=2).given_NL)


def test_more_puzzles_than_there_are_is_an_error_and_not_for_ever():
    one_grid = split_grids().train[:1]
    assert len(draw_puzzles(one_grid, 16, [15], seed=1)) == 16
    with pytest.raises(ValueError, match="wanted 17 puzzles of 15 givens on 1 grids, got 16; ask for fewer, or for other givens"):
        draw_puzzles(one_grid, 17, [15], seed=1)
