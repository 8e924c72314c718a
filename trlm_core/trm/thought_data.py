"""Examples with a thought: rows of token ids, the file that keeps them, and seeded batches of them.

{"split": "train", "provenance": "sudoku4/17", "prompt": "<s>0312...<think>", "thought": "4312...", "answer": "4312...</s>",
 "prompt_ids": [5, 0, 3, ...], "thought_ids": [4, 3, ...], "answer_ids": [4, 3, ..., 8]}
B batch, L positions of the prompt, C of the thought with its </think>, A of the answer with its EOS.
"""
# ruff: noqa: N815 - tensor names carry their shape

import dataclasses
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trlm_core.trm.think_tokens import ThinkTokens

THOUGHTS = "thoughts.jsonl"
TOKENIZER = "tokenizer"  # folder of the tokenizer that the ids are of, beside the thoughts
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class ThoughtDataError(ValueError):
    """A row cannot be thought about; the message names it by its provenance."""


@dataclass(frozen=True)
class ThoughtRow:
    """Token ids."""

    prompt: tuple[int, ...]  # ends in <think>
    thought: tuple[int, ...]  # without its tags
    answer: tuple[int, ...]  # ends in EOS

    def sequence(self, tokens: ThinkTokens) -> tuple[int, ...]:
        """The row as text."""
        return (*self.prompt, *self.thought, tokens.end_think, *self.answer)

    def without_thought(self) -> "ThoughtRow":
        """Its thought is empty: the answer comes at once."""
        return ThoughtRow(self.prompt, (), self.answer)

    def length(self, num_latents: int) -> int:
        """Positions with the thought as text or as so many latents, whichever is longer."""
        return len(self.prompt) + max(len(self.thought), num_latents) + 1 + len(self.answer)


@dataclass(frozen=True)
class ThoughtExample:
    """A row with its texts, special tokens written out, and where it comes from."""

    split: Split
    provenance: str
    prompt: str
    thought: str
    answer: str
    row: ThoughtRow


@dataclass(frozen=True)
class ThoughtBatch:
    """Masks are bool. Pads are told by them alone: the pad's id may be that of EOS."""

    prompt_ids_BL: Tensor  # left padded
    prompt_mask_BL: Tensor
    thought_ids_BC: Tensor  # right padded; </think> is the last token of each
    thought_mask_BC: Tensor
    answer_ids_BA: Tensor  # right padded; EOS is the last token of each
    answer_mask_BA: Tensor

    def __len__(self) -> int:
        return len(self.prompt_ids_BL)

    def to(self, device: torch.device | str) -> "ThoughtBatch":
        return ThoughtBatch(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))


def collate(rows: Sequence[ThoughtRow], tokens: ThinkTokens) -> ThoughtBatch:
    prompt_ids_BL, prompt_mask_BL = padded([row.prompt for row in rows], tokens.pad, side="left")
    thought_ids_BC, thought_mask_BC = padded([(*row.thought, tokens.end_think) for row in rows], tokens.pad, side="right")
    answer_ids_BA, answer_mask_BA = padded([row.answer for row in rows], tokens.pad, side="right")
    return ThoughtBatch(prompt_ids_BL, prompt_mask_BL, thought_ids_BC, thought_mask_BC, answer_ids_BA, answer_mask_BA)


def padded(sequences: Sequence[Sequence[int]], pad: int, side: Literal["left", "right"]) -> tuple[Tensor, Tensor]:
    """Ids and mask, [len(sequences), longest]."""
    longest = max(len(sequence) for sequence in sequences)
    ids_BL = torch.full((len(sequences), longest), pad)
    mask_BL = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for number, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), longest) if side == "left" else slice(0, len(sequence))
        ids_BL[number, place] = torch.tensor(sequence, dtype=torch.long)
        mask_BL[number, place] = True
    return ids_BL, mask_BL


@dataclass(frozen=True)
class BatchOrder:
    """Which rows a step's batch has: every row once before any comes again. The step alone says which: a resumed run goes on exactly."""

    rows: int
    batch: int
    seed: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.batch < 1:
            raise ThoughtDataError(f"batches: wanted at least one row and a batch of at least 1, got {self.rows} rows, batch {self.batch}")

    def rows_at(self, step: int) -> list[int]:
        places = range(step * self.batch, (step + 1) * self.batch)
        return [int(_shuffled(self.rows, self.seed, place // self.rows)[place % self.rows]) for place in places]


@dataclass(frozen=True)
class ThoughtBatches:
    rows: Sequence[ThoughtRow]
    tokens: ThinkTokens
    order: BatchOrder

    @classmethod
    def of(cls, rows: Sequence[ThoughtRow], tokens: ThinkTokens, batch: int, seed: int) -> "ThoughtBatches":
        return cls(rows, tokens, BatchOrder(len(rows), batch, seed))

    def batch_at(self, step: int) -> ThoughtBatch:
        return collate([self.rows[number] for number in self.order.rows_at(step)], self.tokens)

    def starting_at(self, step: int) -> Iterator[ThoughtBatch]:
        """Without an end; the position to save is the number of the next step."""
        while True:
            yield self.batch_at(step)
            step += 1


def check_examples(examples: Iterable[ThoughtExample], tokens: ThinkTokens, context: int, num_latents: int) -> None:
    """Raises ThoughtDataError for the first row that the base (of so many positions) cannot think about in so many latents."""
    for example in examples:
        if complaint := _complaint(example.row, tokens, context, num_latents):
            raise ThoughtDataError(f"{example.provenance}: {complaint}")


def write_thoughts(examples: Iterable[ThoughtExample], folder: Path) -> dict[str, int]:
    """Examples of each split."""
    counts: dict[str, int] = dict.fromkeys(SPLITS, 0)
    with (folder / THOUGHTS).open("w") as file:
        for example in examples:
            file.write(json.dumps(_line(example), ensure_ascii=False) + "\n")
            counts[example.split] += 1
    return counts


def read_thoughts(folder: Path, split: Split) -> list[ThoughtExample]:
    """In the order in which they were written. Raises ThoughtDataError where the split is empty."""
    with (folder / THOUGHTS).open() as file:
        examples = [_example(line) for line in map(json.loads, file) if line["split"] == split]
    if not examples:
        raise ThoughtDataError(f"{folder / THOUGHTS}: wanted examples of the split {split}, got none; make the thoughts with some")
    return examples


def _complaint(row: ThoughtRow, tokens: ThinkTokens, context: int, num_latents: int) -> str:
    tags = [each for each in (*row.prompt[:-1], *row.thought, *row.answer) if each in (tokens.think, tokens.end_think)]
    if not row.prompt or row.prompt[-1] != tokens.think:
        return f"wanted a prompt that ends in <think> ({tokens.think}), got one that ends in {row.prompt[-1:]}"
    if tags:
        return f"wanted no tag but the <think> at the prompt's end, got {tags} as well"
    if not set(row.answer) - {tokens.eos}:
        return "wanted an answer, got an empty one"
    if row.answer[-1] != tokens.eos:
        return f"wanted an answer that ends in EOS ({tokens.eos}), got one that ends in {row.answer[-1]}"
    if row.length(num_latents) > context:
        return f"wanted at most the base's {context:,} positions, got {row.length(num_latents):,}; drop the row"
    return ""


def _line(example: ThoughtExample) -> dict[str, object]:
    texts = {name: getattr(example, name) for name in ("split", "provenance", "prompt", "thought", "answer")}
    return texts | {f"{name}_ids": ids for name, ids in dataclasses.asdict(example.row).items()}


def _example(line: dict[str, object]) -> ThoughtExample:
    row = ThoughtRow(*(tuple(line.pop(f"{name}_ids")) for name in ("prompt", "thought", "answer")))  # type: ignore[arg-type]
    return ThoughtExample(**line, row=row)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=4)
def _shuffled(rows: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(rows)
