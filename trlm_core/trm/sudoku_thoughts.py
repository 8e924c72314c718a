"""4x4 Sudoku as text for a tiny language model: the puzzle asked, the solved grid thought, the solved grid answered.

<s>0030300000010002<think>1234342121434312</think>1234342121434312</s>
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.split import seed_of
from trlm_core.recipes.trm_schema import Sudoku4Prompts, Sudoku4Thoughts, TRMRecipe
from trlm_core.text.thoughts import CLOSE, OPEN
from trlm_core.trm.puzzles import Puzzles
from trlm_core.trm.sudoku import N_TOKENS, draw_puzzles, split_grids
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import SPLITS, TOKENIZER, Split, ThoughtExample, ThoughtRow, write_thoughts

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
UNKNOWN = "<unk>"  # not in the vocabulary: a text with anything but cells and tags is an error


def sudoku_thoughts_spec(recipe: TRMRecipe, data: Sudoku4Thoughts) -> Spec:
    identity = {"made_by": "sudoku_thoughts/1", "data": data.model_dump(mode="json")}
    return Spec("datasets", recipe.name, "thoughts", identity, {}, recipe.model_dump(mode="json"))


def make_sudoku_thoughts(store: Store, recipe: TRMRecipe, data: Sudoku4Thoughts) -> Manifest:
    """The thoughts of every split, and the tokenizer they are written with."""

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = sudoku_tokenizer()
        tokenizer.save_pretrained(folder / TOKENIZER)
        return write_thoughts((each for split in SPLITS for each in sudoku_examples(data, split, tokenizer)), folder)

    return store.make(sudoku_thoughts_spec(recipe, data), build)


def sudoku_tokenizer() -> PreTrainedTokenizerFast:
    """Ten tokens: the cells 0 (empty) to 4 as the ids 0 to 4, then <s>, <think>, </think>, </s>, <pad>."""
    digits = [str(digit) for digit in range(N_TOKENS)]
    specials = [BOS, OPEN, CLOSE, EOS, PAD]
    backend = Tokenizer(models.WordLevel({token: number for number, token in enumerate([*digits, *specials])}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD, extra_special_tokens=[OPEN, CLOSE]
    )


def sudoku_examples(data: Sudoku4Thoughts, split: Split, tokenizer: PreTrainedTokenizerBase) -> Iterator[ThoughtExample]:
    puzzles = draw_puzzles(getattr(split_grids(), split), getattr(data.puzzles, split), data.givens, seed_of(data.seed, f"sudoku4/{split}"))
    for number, row in enumerate(sudoku_rows(puzzles, tokenizer)):
        asked, grid = "".join(map(str, row.prompt[1:-1])), "".join(map(str, row.thought))
        yield ThoughtExample(split, f"sudoku4/{split}/{number}", f"{BOS}{asked}{OPEN}", grid, f"{grid}{EOS}", row)


def prompt_rows(prompts: Sudoku4Prompts, tokenizer: PreTrainedTokenizerBase) -> list[ThoughtRow]:
    return [*sudoku_rows(drawn_prompts(prompts), tokenizer)]


def drawn_prompts(prompts: Sudoku4Prompts) -> Puzzles:
    """Puzzles of the solved grids of train that are asked for their answers alone; ValueError where there are not as many."""
    return draw_puzzles(split_grids().train, prompts.puzzles, prompts.givens, seed_of(prompts.seed, "sudoku4/prompts"))


def sudoku_rows(puzzles: Puzzles, tokenizer: PreTrainedTokenizerBase) -> Iterator[ThoughtRow]:
    """A cell is its own id."""
    tokens, bos = ThinkTokens.of(tokenizer), tokenizer.get_vocab()[BOS]
    for given, solved in zip(puzzles.given_NL.tolist(), puzzles.solved_NL.tolist(), strict=True):
        yield ThoughtRow((bos, *given, tokens.think), tuple(solved), (*solved, tokens.eos))
