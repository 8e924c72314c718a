"""A stage dataset: a blend rendered to token ids for one trainer.

SFT row:  {"input_ids": [1, 4093, ...], "labels": [-100, ..., 2], "source": "chain_sum-trace", "fault": null, "origin": ORIGIN}
DPO row:  {"prompt_ids": [...], "chosen_ids": [...], "rejected_ids": [...], "source": "gcd-pair", "fault": "miscount", "origin": ORIGIN}
ORIGIN:   "HuggingFaceTB/smoltalk2 SFT s1k_1.1_think row 17"
"""

import functools
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.rows import Row, schema_of
from trlm_core.data.shards import SplitWriter, closing_rows, count_rows, iter_shards, shards_of
from trlm_core.recipes.schema import Recipe, Rendering, Stage
from trlm_core.text.renderer import Rendered, Renderer
from trlm_core.text.tokenizer import IGNORED, load_tokenizer, stage_tokenizer
from trlm_core.text.tokenizer_files import tokenizer_folder

IDS = pa.list_(pa.int32())
ABOUT_THE_ROW = [("source", pa.string()), ("fault", pa.string()), ("origin", pa.string())]
SFT_SCHEMA = pa.schema([("input_ids", IDS), ("labels", IDS), *ABOUT_THE_ROW])
DPO_SCHEMA = pa.schema([("prompt_ids", IDS), ("chosen_ids", IDS), ("rejected_ids", IDS), *ABOUT_THE_ROW])
ROWS_AT_ONCE = 32  # that a thread renders: 42 MiB where each has 10,000 tokens

RenderRows = Callable[[Sequence[Row]], tuple[pa.Table, Counter[str]]]  # with what was dropped or found


class RenderingError(ValueError):
    """A row cannot be rendered as the recipe asks."""


def stage_dataset_spec(recipe: Recipe, stage: Stage, blend: Fingerprinted, base: Fingerprinted) -> Spec:
    identity = {
        "made_by": "stage_dataset/2",
        "rendering": stage.rendering.model_dump(mode="json"),
        "added_tokens": list(recipe.added_tokens(stage)),
        "trainer": stage.training.trainer,
    }
    inputs = {"blend": blend.fingerprint, "tokenizer": base.fingerprint}
    return Spec("datasets", recipe.name, f"{stage.name}-tokens", identity, inputs, recipe.model_dump(mode="json"))


def render_stage_dataset(
    store: Store,
    recipe: Recipe,
    stage: Stage,
    blend: Manifest,
    base: Manifest,
    *,
    threads: int | None = None,
    on_rows: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Blend -> stage dataset, with its tokenizer beside it. Raises RenderingError where no row is left.

    threads: that render at once, None: one for every core that the process may use; no byte hangs on it.
    on_rows: called with the rows that are done and all.
    """

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = stage_tokenizer(load_tokenizer(tokenizer_folder(store, base)), recipe.added_tokens(stage), stage.rendering)
        tokenizer.save_pretrained(folder / "tokenizer")
        work = _Work(store.folder(blend), folder, stage, threads or _cores(), on_rows)
        counts = sum((work.rendered(split) for split in work.splits), Counter[str]())
        if not counts["train_rows"]:
            raise RenderingError(f"{stage.name}: wanted rows to train on, got none; {dict(counts)}; raise max_length")
        return dict(counts)

    return store.make(stage_dataset_spec(recipe, stage, blend, base), build)


def token_counts(folder: Path) -> dict[str, int]:
    """Rows, tokens and label tokens of a stage dataset, from its shards."""
    counts: Counter[str] = Counter()
    for split in ("train", "held_out"):
        counts.update(dict.fromkeys(_names(split), 0))
        for batch in iter_shards(folder, split):
            counts.update(_counted(batch, split))
    return dict(counts)


class _Work:
    """The rendering of one blend. Threads: the tokenizer and Arrow's writer let each other run."""

    splits = ("train", "held_out")

    def __init__(self, blend: Path, folder: Path, stage: Stage, threads: int, on_rows: Callable[[int, int], None]) -> None:
        self._blend, self._folder, self._stage, self._threads, self._on_rows = blend, folder, stage, threads, on_rows
        self._rows = {split: count_rows(blend, split) for split in self.splits}
        self._done = 0
        renderer = Renderer(folder / "tokenizer", stage.rendering)
        pairs = stage.training.trainer == "dpo"
        self._schema = DPO_SCHEMA if pairs else SFT_SCHEMA
        self._render: RenderRows = functools.partial(_pairs if pairs else _conversations, renderer, stage.rendering)

    def rendered(self, split: str) -> Counter[str]:
        """Write one split in the blend's order, a few rows at a time; its counts."""
        counts = Counter(dict.fromkeys(_names(split), 0))
        shards = shards_of(self._folder, split, self._rows[split], "parquet")
        with closing_rows(SplitWriter(shards, self._schema)) as writer:
            for rows, (table, found) in self._tables(split):
                writer.write(table)
                counts.update(found)
                counts.update(_counted(table, split))
                self._done += rows
                self._on_rows(self._done, sum(self._rows.values()))
        return counts

    def _tables(self, split: str) -> Iterator[tuple[int, tuple[pa.Table, Counter[str]]]]:
        """In the blend's order, with how many of its rows each came from; no more are waiting than threads can work on."""
        parts = _parts(iter_shards(self._blend, split, schema_of(self._stage)))
        waiting: deque[tuple[int, Future[tuple[pa.Table, Counter[str]]]]] = deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="render") as pool:
            try:
                for part in itertools.chain(parts, [None] * (self._threads + 1)):
                    if part is not None:
                        waiting.append((part.num_rows, pool.submit(self._part, part)))
                    if waiting and (part is None or len(waiting) > self._threads):
                        rows, future = waiting.popleft()
                        yield rows, future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _part(self, part: pa.RecordBatch) -> tuple[pa.Table, Counter[str]]:
        return self._render(part.to_pylist())


def _parts(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for start in range(0, batch.num_rows, ROWS_AT_ONCE):
            yield batch.slice(start, ROWS_AT_ONCE)


def _conversations(renderer: Renderer, rendering: Rendering, rows: Sequence[Row]) -> tuple[pa.Table, Counter[str]]:
    """Cut from the right to max_length; a row without a label is dropped and counted."""
    found: Counter[str] = Counter()
    whole = renderer.conversations([row["messages"] for row in rows])
    _prompts(renderer, rendering, whole, rows, "messages", found)
    ids = [each.ids[: rendering.max_length] for each in whole]
    labels = [each.reply_labels[: rendering.max_length] for each in whole] if rendering.loss_on == "assistant" else ids
    kept = [index for index, each in enumerate(labels) if (each != IGNORED).any()]
    found["dropped_without_label"] += len(rows) - len(kept)
    columns = {"input_ids": [ids[index] for index in kept], "labels": [labels[index] for index in kept]}
    return _table(columns, [rows[index] for index in kept], SFT_SCHEMA), +found


def _pairs(renderer: Renderer, rendering: Rendering, rows: Sequence[Row]) -> tuple[pa.Table, Counter[str]]:
    """Prompts are cut from the left to max_prompt_length.

    A pair whose replies answer different prompts, or would lose an end, is dropped and counted.
    """
    limit = rendering.max_prompt_length
    assert limit is not None
    found: Counter[str] = Counter()
    whole = renderer.conversations([row["chosen"] for row in rows])
    prompts = _prompts(renderer, rendering, whole, rows, "chosen", found)
    others = renderer.beside(whole, [renderer.text(row["rejected"]).whole for row in rows])
    chosen = [_completion(each.ids[len(prompt) :], renderer.end_of_turn) for each, prompt in zip(whole, prompts, strict=True)]
    rejected = [_completion(ids[len(prompt) :], renderer.end_of_turn) for ids, prompt in zip(others, prompts, strict=True)]
    cut = [prompt[-limit:] for prompt in prompts]
    lengths = [len(prompt) + max(len(a), len(b)) for prompt, a, b in zip(cut, chosen, rejected, strict=True)]
    alike = [index for index, row in enumerate(rows) if row["chosen"][:-1] == row["rejected"][:-1]]
    kept = [index for index in alike if lengths[index] <= rendering.max_length]
    found["dropped_prompts_differ"] += len(rows) - len(alike)
    found["dropped_too_long"] += len(alike) - len(kept)
    columns = {"prompt_ids": cut, "chosen_ids": chosen, "rejected_ids": rejected}
    columns = {name: [ids[index] for index in kept] for name, ids in columns.items()}
    return _table(columns, [rows[index] for index in kept], DPO_SCHEMA), +found


def _table(ids: dict[str, list[np.ndarray]], rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    about = {
        "source": [row["source"] for row in rows],
        "fault": [row.get("fault") for row in rows],
        "origin": [origin_of(row) for row in rows],
    }
    return pa.table({**ids, **about}, schema=schema)


def origin_of(row: Row) -> str:
    """The row's provenance in words."""
    place = (row[f"_source_{part}"] for part in ("dataset", "subset", "split"))
    return f"{' '.join(each for each in place if each)} row {row['_source_row']}"


def _completion(ids: np.ndarray, end_of_turn: int) -> np.ndarray:
    """A reply's ids up to and with its end-of-turn token; the template's line break after it is no part of a reply."""
    ends = np.flatnonzero(ids == end_of_turn)
    return ids[: ends[-1] + 1] if len(ends) else ids


def _prompts(
    renderer: Renderer, rendering: Rendering, whole: Sequence[Rendered], rows: Sequence[Row], side: str, found: Counter[str]
) -> list[np.ndarray]:
    """The prompts as inference sees them, which must be how the training text begins; where one is not, what both share, and it is counted.

    So it is for the reference template, and where a reply begins with line breaks, which join the prompt's own to one token.
    """
    texts = [renderer.text(row[side][:-1], prompt=True).whole for row in rows]
    prompts = []
    for row, text, each, ids in zip(rows, texts, whole, renderer.beside(whole, texts), strict=True):
        shared = _common_prefix(ids, each.ids)
        found["prompts_unlike_training_text"] += shared < len(ids)
        if rendering.template != "reference" and not each.text.whole.startswith(text):
            raise RenderingError(
                f"{origin_of(row)}: wanted the generation prompt to begin the training text; the template breaks it, or the row ends "
                f"in no reply: {', '.join(turn['role'] for turn in row[side])}"
            )
        prompts.append(ids[:shared])
    return prompts


def _common_prefix(left: np.ndarray, right: np.ndarray) -> int:
    shorter = min(len(left), len(right))
    unlike = np.flatnonzero(left[:shorter] != right[:shorter])
    return int(unlike[0]) if len(unlike) else shorter


def _names(split: str) -> list[str]:
    return [f"{split}_{name}" for name in ("rows", "tokens", "label_tokens")]


def _counted(rows: pa.Table | pa.RecordBatch, split: str) -> Counter[str]:
    if "labels" in rows.schema.names:
        tokens, labels = _tokens(rows, "input_ids"), _labels(rows)
    else:
        labels = _tokens(rows, "chosen_ids") + _tokens(rows, "rejected_ids")
        tokens = labels + 2 * _tokens(rows, "prompt_ids")
    return Counter(dict(zip(_names(split), (rows.num_rows, tokens, labels), strict=True)))


def _tokens(rows: pa.Table | pa.RecordBatch, column: str) -> int:
    return len(pc.call_function("list_flatten", [rows[column]]))


def _labels(rows: pa.Table | pa.RecordBatch) -> int:
    labels = pc.call_function("list_flatten", [rows["labels"]])
    return pc.call_function("sum", [pc.call_function("not_equal", [labels, pa.scalar(IGNORED, pa.int32())])]).as_py() or 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
