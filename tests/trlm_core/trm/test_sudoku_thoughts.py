"""4x4 Sudoku as text: ten tokens, one solution, no grid in two splits, the same rows for the same seed."""

from pathlib import Path

import pytest
import torch

from trlm_core.artifacts.store import Store
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.recipes.trm_schema import SplitCounts, Sudoku4Prompts, Sudoku4Thoughts
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.trm.sudoku import count_solutions, split_grids
from trlm_core.trm.sudoku_thoughts import make_sudoku_thoughts, prompt_rows, sudoku_examples, sudoku_tokenizer
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import SPLITS, TOKENIZER, check_examples, read_thoughts

DATA = Sudoku4Thoughts(kind="sudoku4", seed=3, givens=(6, 8), puzzles=SplitCounts(train=40, validation=12, test=12))


def test_the_tokenizer_has_ten_tokens_and_cells_are_their_own_ids():
    tokenizer = sudoku_tokenizer()
    assert len(tokenizer) == 10
    assert tokenizer.encode("<s>01234<think></think></s><pad>") == [5, 0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert tokenizer.decode([5, 0, 4, 6, 3, 7, 3, 8]) == "<s>04<think>3</think>3</s>"


def test_a_text_with_anything_but_cells_is_an_error_and_not_a_pad():
    with pytest.raises(Exception, match=r"Missing \[UNK\]"):  # tokenizers raises no type of its own
        sudoku_tokenizer().encode("12 9")


def test_a_saved_tokenizer_reads_the_same(tmp_path: Path):
    sudoku_tokenizer().save_pretrained(tmp_path)
    assert ThinkTokens.of(load_tokenizer(tmp_path)) == ThinkTokens.of(sudoku_tokenizer())
    assert load_tokenizer(tmp_path).encode("<s>0312<think>") == [5, 0, 3, 1, 2, 6]


@pytest.mark.parametrize("split", SPLITS)
def test_a_row_is_a_puzzle_of_one_solution_thought_and_answered_with_its_solved_grid(split: str):
    tokenizer = sudoku_tokenizer()
    examples = [*sudoku_examples(DATA, split, tokenizer)]  # type: ignore[arg-type]
    check_examples(examples, ThinkTokens.of(tokenizer), context=52, num_latents=16)
    assert len(examples) == getattr(DATA.puzzles, split)
    for each in examples:
        given, solved = torch.tensor(each.row.prompt[1:-1]), torch.tensor(each.row.thought)
        assert int((given > 0).sum()) in (6, 8)
        assert count_solutions(given) == 1
        assert torch.equal(given[given > 0], solved[given > 0])
        assert each.row.answer == (*each.row.thought, 8)
        assert [tokenizer.encode(text) for text in (each.prompt, each.thought, each.answer)] == [
            [*ids] for ids in (each.row.prompt, each.row.thought, each.row.answer)
        ]


def test_prompts_are_new_puzzles_of_the_solved_grids_of_train():
    rows = prompt_rows(Sudoku4Prompts(seed=3, givens=(5,), puzzles=30), sudoku_tokenizer())
    assert len({row.prompt for row in rows}) == 30
    assert {row.thought for row in rows} <= {tuple(grid) for grid in split_grids().train.tolist()}
    assert {sum(cell > 0 for cell in row.prompt[1:-1]) for row in rows} == {5}
    assert all(row.answer == (*row.thought, 8) for row in rows)


def test_no_solved_grid_is_in_two_splits():
    tokenizer = sudoku_tokenizer()
    grids = [{each.row.thought for each in sudoku_examples(DATA, split, tokenizer)} for split in SPLITS]
    assert sum(map(len, grids)) == len(set.union(*grids))


def test_the_artifact_holds_every_split_and_its_tokenizer_and_is_made_once(store: Store):
    recipe = load_trm_recipe("trm-acceptance")
    manifest = make_sudoku_thoughts(store, recipe, DATA)
    folder = store.folder(manifest)
    assert manifest.counts == {"train": 40, "validation": 12, "test": 12}
    assert read_thoughts(folder, "test") == [*sudoku_examples(DATA, "test", sudoku_tokenizer())]
    assert len(load_tokenizer(folder / TOKENIZER)) == 10
    assert make_sudoku_thoughts(store, recipe, DATA) == manifest
    assert make_sudoku_thoughts(store, recipe, DATA.model_copy(update={"seed": 4})).fingerprint != manifest.fingerprint
