"""A stage dataset: a blend rendered to token ids for one trainer.

SFT row:  {"input_ids": [1, 4093, ...], "labels": [-100, ..., 2], "source": "chain_sum-trace", "fault": null}
DPO row:  {"prompt_ids": [...], "chosen_ids": [...], "rejected_ids": [...], "source": "chain_sum-pair", "fault": "wrong_result"}
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.rows import Row, schema_of
from trlm_core.data.shards import SplitWriter, closing_rows, count_rows, iter_shards, shards_of
from trlm_core.recipes.schema import Recipe, Rendering, Stage
from trlm_core.text.tokenizer import IGNORED, Message, conversation_ids, load_tokenizer, prompt_ids, render, stage_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IDS = pa.list_(pa.int32())
SFT_SCHEMA = pa.schema([("input_ids", IDS), ("labels", IDS), ("source", pa.string()), ("fault", pa.string())])
DPO_SCHEMA = pa.schema([("prompt_ids", IDS), ("chosen_ids", IDS), ("rejected_ids", IDS), ("source", pa.string()), ("fault", pa.string())])


RenderRow = Callable[[Row], Row | None]  # None: the row is dropped


class RenderingError(ValueError):
    """A row cannot be rendered as the recipe asks."""


def stage_dataset_spec(recipe: Recipe, stage: Stage, blend: Fingerprinted, base: Fingerprinted) -> Spec:
    identity = {
        "made_by": "stage_dataset/1",
        "rendering": stage.rendering.model_dump(mode="json"),
        "added_tokens": list(recipe.added_tokens(stage)),
        "trainer": stage.training.trainer,
    }
    inputs = {"blend": blend.fingerprint, "tokenizer": base.fingerprint}
    return Spec("datasets", recipe.name, f"{stage.name}-tokens", identity, inputs, recipe.model_dump(mode="json"))


def render_stage_dataset(store: Store, recipe: Recipe, stage: Stage, blend: Manifest, base: Manifest) -> Manifest:
    """Blend -> stage dataset, with its tokenizer beside it. Raises RenderingError where no row is left."""
    pairs = stage.training.trainer == "dpo"

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = stage_tokenizer(load_tokenizer(store.folder(base)), recipe.added_tokens(stage), stage.rendering)
        tokenizer.save_pretrained(folder / "tokenizer")
        counts: Counter[str] = Counter()
        render_row = _pair_renderer(tokenizer, stage.rendering, counts) if pairs else _row_renderer(tokenizer, stage.rendering, counts)
        for split in ("train", "held_out"):
            counts += _rendered(store.folder(blend), folder, split, schema_of(stage), DPO_SCHEMA if pairs else SFT_SCHEMA, render_row)
        if not counts["train_rows"]:
            raise RenderingError(f"{stage.name}: wanted rows to train on, got none; {dict(counts)}; raise max_length")
        return dict(counts)

    return store.make(stage_dataset_spec(recipe, stage, blend, base), build)


def _rendered(blend: Path, folder: Path, split: str, read: pa.Schema, written: pa.Schema, render_row: RenderRow) -> Counter[str]:
    """Write one split, a batch of the blend at a time; its counts."""
    counts = _counted([], split)
    shards = shards_of(folder, split, count_rows(blend, split), "parquet")
    with closing_rows(SplitWriter(shards, written)) as writer:
        for batch in iter_shards(blend, split, read):
            rows = [row for raw in batch.to_pylist() if (row := render_row(raw)) is not None]
            writer.write(pa.Table.from_pylist(rows, schema=written))
            counts.update(_counted(rows, split))
    return counts


def token_counts(folder: Path) -> dict[str, int]:
    """Rows, tokens and label tokens of a stage dataset, from its shards."""
    counts: Counter[str] = Counter()
    for split in ("train", "held_out"):
        counts.update(_counted([], split))
        for batch in iter_shards(folder, split):
            counts.update(_counted(batch.to_pylist(), split))
    return dict(counts)


def _row_renderer(tokenizer: "PreTrainedTokenizerBase", rendering: Rendering, counts: Counter[str]) -> RenderRow:
    def rendered(row: Row) -> Row | None:
        _check_prompt(tokenizer, row["messages"], rendering, counts, row)
        conversation = render(tokenizer, row["messages"], rendering)
        if all(label == IGNORED for label in conversation.labels):
            counts["dropped_without_label"] += 1
            return None
        return {"input_ids": conversation.input_ids, "labels": conversation.labels, "source": row["source"], "fault": None}

    return rendered


def _pair_renderer(tokenizer: "PreTrainedTokenizerBase", rendering: Rendering, counts: Counter[str]) -> RenderRow:
    """Prompts are cut from the left to max_prompt_length; a pair whose reply would lose its end is dropped and counted."""
    limit = rendering.max_prompt_length
    assert limit is not None

    def rendered(row: Row) -> Row | None:
        prompt = _check_prompt(tokenizer, row["chosen"], rendering, counts, row)
        chosen, rejected = (_completion(tokenizer, row[side], len(prompt)) for side in ("chosen", "rejected"))
        prompt = prompt[-limit:]
        if len(prompt) + max(len(chosen), len(rejected)) > rendering.max_length:
            counts["dropped_too_long"] += 1
            return None
        return {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "source": row["source"], "fault": row.get("fault")}

    return rendered


def _completion(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], start: int) -> list[int]:
    """The reply's ids up to and with its end-of-turn token; the template's line break after it is no part of a reply."""
    ids = conversation_ids(tokenizer, messages)[start:]
    last = max((index for index, token in enumerate(ids) if token == tokenizer.eos_token_id), default=len(ids) - 1)
    return ids[: last + 1]


def _check_prompt(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], rendering: Rendering, counts: Counter[str], row: Row
) -> list[int]:
    """The prompt as inference sees it must be how the training text begins. The reference template fails this, and is counted."""
    prompt = prompt_ids(tokenizer, messages[:-1])
    text = conversation_ids(tokenizer, messages)
    if text[: len(prompt)] == prompt:
        return prompt
    if rendering.template != "reference":
        place = f"{row['_source_dataset']} {row['_source_subset']} {row['_source_split']} row {row['_source_row']}"
        raise RenderingError(f"{place}: wanted the generation prompt to begin the training text, token by token; the template breaks it")
    counts["prompts_unlike_training_text"] += 1
    return text[: _common_prefix(prompt, text)]


def _common_prefix(left: list[int], right: list[int]) -> int:
    return next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def _counted(rows: list[Row], split: str) -> Counter[str]:
    if rows and "labels" in rows[0]:
        tokens = sum(len(row["input_ids"]) for row in rows)
        labels = sum(label != IGNORED for row in rows for label in row["labels"])
    else:
        labels = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
        tokens = labels + 2 * sum(len(row["prompt_ids"]) for row in rows)
    return Counter({f"{split}_rows": len(rows), f"{split}_tokens": tokens, f"{split}_label_tokens": labels})
