"""A blend: its sources joined, shuffled once with the recipe's seed, written as shards, checked with DuckDB, described by a card."""

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.known_hashes import new_sha256
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.shelf import sync
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.card import Made, dataset_card
from trlm_core.data.checks import Check, run_checks
from trlm_core.data.duplicates import Seen
from trlm_core.data.lengths import Lengths
from trlm_core.data.memory import use_tight_pool
from trlm_core.data.rows import Row, schema_of
from trlm_core.data.shards import Format, Shard, closing_rows, count_rows, has_shards, iter_shards, shard_paths, shards_of
from trlm_core.data.shuffle import Shuffle
from trlm_core.data.split import seed_of
from trlm_core.data.taken import Origin, read_origin
from trlm_core.data.texts import Ordered, Texts, lifted_schema
from trlm_core.recipes.schema import Recipe, Source, Stage, TakenSource
from trlm_core.text.tokenizer_files import tokenizer_folder

SPLITS = ("train", "held_out")
CHECKS, ORIGINS = "checks.json", "origins.json"
THREADS = 3  # two shards are written while the sample's tokens are counted
ELSEWHERE = "duplicate_of_another_source"


class BlendError(ValueError):
    """The blend is not what the recipe asks for."""


@dataclass(frozen=True)
class Portion:
    """What one source gives to the blend."""

    name: str
    folder: Path
    train: int  # rows
    kept: np.ndarray | None = None  # of its own rows and the spare ones, where duplicates of other sources are out; None: its own rows

    def batches(self, split: str, texts: Texts) -> Iterator[pa.RecordBatch]:
        """Without their texts."""
        if not has_shards(self.folder, split):
            return  # a taken source has no such rows
        if split == "held_out" or self.kept is None:
            yield from _lifted(texts, self.folder, split)
            return
        start = 0
        for batch in itertools.chain.from_iterable(_lifted(texts, self.folder, file) for file in own_files(self.folder)):
            yield batch.filter(pa.array(self.kept[start : start + batch.num_rows]))
            start += batch.num_rows

    def rows(self, split: str) -> int:
        if split == "train":
            return self.train
        return count_rows(self.folder, split) if has_shards(self.folder, split) else 0

    @property
    def bytes(self) -> int:
        return sum(Path(path).stat().st_size for path in shard_paths(self.folder, "train"))


def _lifted(texts: Texts, folder: Path, split: str) -> Iterator[pa.RecordBatch]:
    for path in shard_paths(folder, split):
        yield from texts.lifted(Path(path))


def own_files(folder: Path) -> list[str]:
    """Of a source: its own rows, and the spare ones of a taken source."""
    return [file for file in ("train", "spare") if has_shards(folder, file)]


def blend_spec(recipe: Recipe, stage: Stage, sources: Sequence[Fingerprinted], base: Fingerprinted) -> Spec:
    """The card names the variant, and the base's tokenizer counts."""
    identity = {"made_by": "blend/4", "blend": stage.blend.model_dump(mode="json"), "variant": recipe.variant}
    inputs = {"tokenizer": base.fingerprint, **{source.name: source.fingerprint for source in sources}}
    return Spec("datasets", recipe.name, stage.name, identity, inputs, recipe.model_dump(mode="json"))


def assemble(store: Store, recipe: Recipe, stage: Stage, sources: Sequence[Manifest], base: Manifest) -> Manifest:
    """Sources -> blend. `base`: whose tokenizer counts. Raises BlendError where a check fails; nothing finished is left then."""
    use_tight_pool()
    spec = blend_spec(recipe, stage, sources, base)

    def build(folder: Path) -> dict[str, Any]:
        portions, twice = _portions(store, stage, sources)
        if not any(portion.train for portion in portions):
            raise BlendError(f"{stage.name}: wanted rows, got none of {', '.join(portion.name for portion in portions)}")
        kind = _format(stage, portions)
        lengths = Lengths(stage, tokenizer_folder(store, base))
        written = {split: _write(folder, split, stage, portions, kind, lengths) for split in SPLITS}
        rows = {portion.name: portion.train for portion in portions}
        checks = _checked(folder, stage, rows) + lengths.checks(rows)
        _require(checks)
        counts = {source.name: _counted(source.counts, rows[source.name], twice[source.name]) for source in sources}
        origins = {portion.name: read_origin(portion.folder) for portion in portions}
        made = Made(spec.fingerprint, counts, origins, checks, _patterns(written, kind))
        (folder / CHECKS).write_text(json.dumps([check.model_dump() for check in checks], indent=1))
        taken = {name: origin.model_dump(mode="json") for name, origin in origins.items() if origin is not None}
        (folder / ORIGINS).write_text(json.dumps(taken, indent=1))
        (folder / "README.md").write_text(dataset_card(recipe, stage, made))
        return {"rows": sum(rows.values()), "sources": counts, "checks_passed": sum(check.wanted is not None for check in checks)}

    return store.make(spec, build)


def read_checks(folder: Path) -> list[Check]:
    return [Check.model_validate(each) for each in json.loads((folder / CHECKS).read_text())]


def read_origins(folder: Path) -> dict[str, Origin]:
    """Of the sources that were taken, by name."""
    return {name: Origin.model_validate(each) for name, each in json.loads((folder / ORIGINS).read_text()).items()}


def _portions(store: Store, stage: Stage, sources: Sequence[Manifest]) -> tuple[list[Portion], Counter[str]]:
    """What each source gives, in the recipe's order, and how many of its rows stand in one before it."""
    with ThreadPoolExecutor(THREADS) as threads:  # every byte is checked
        folders = threads.map(store.folder, sources)
        plain = [Portion(each.name, folder, each.counts["train"]) for each, folder in zip(sources, folders, strict=True)]
    filters = stage.blend.filters
    if filters is None or len(sources) == 1 or not (filters.exact_duplicates or filters.near_duplicates):
        return plain, Counter()
    seen, twice = Seen(filters), Counter[str]()
    unique = [_unique(portion, source, seen, twice) for portion, source in zip(plain, stage.blend.sources, strict=True)]
    if short := [each for each in zip(unique, stage.blend.sources, strict=True) if _is_short(*each)]:
        told = "; ".join(f"{source.name}: wanted {source.num_examples:,}, got {portion.train:,}" for portion, source in short)
        raise BlendError(f"{told} after {dict(twice)} rows that other sources have too; raise filters.spares or set allow_short")
    return unique, twice


def _unique(portion: Portion, source: Source, seen: Seen, twice: Counter[str]) -> Portion:
    kept: list[bool] = []
    count = 0
    for row in _rows(itertools.chain.from_iterable(iter_shards(portion.folder, file) for file in own_files(portion.folder))):
        wanted = count < source.num_examples
        new = wanted and seen.reason(row) is None
        twice[portion.name] += wanted and not new
        count += new
        kept.append(new)
    return Portion(portion.name, portion.folder, count, np.array(kept, bool))


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Row]:
    for batch in batches:
        yield from batch.to_pylist()


def _is_short(portion: Portion, source: Source) -> bool:
    return portion.train < source.num_examples and not (isinstance(source, TakenSource) and source.allow_short)


def _counted(counts: dict[str, Any], train: int, twice: int) -> dict[str, Any]:
    return {**counts, "train": train, "dropped": {**counts["dropped"], **({ELSEWHERE: twice} if twice else {})}}


def _format(stage: Stage, portions: Sequence[Portion]) -> Format:
    return "parquet" if sum(portion.train for portion in portions) >= stage.blend.parquet_from else "json"


def _write(folder: Path, split: str, stage: Stage, portions: Sequence[Portion], kind: Format, lengths: Lengths) -> int:
    """Rows written."""
    schema, rows = schema_of(stage), sum(portion.rows(split) for portion in portions)
    size = sum(portion.bytes for portion in portions)
    shuffle = Shuffle(rows, seed_of(stage.blend.seed, split), size)
    with Texts.opened() as texts:
        lifted = lifted_schema(schema)
        batches = (batch.select(lifted.names) for batch in _batches(portions, split, texts, lengths))
        with shuffle.dealt(batches, lifted, folder) as dealt, ThreadPoolExecutor(THREADS) as threads:
            ordered = Ordered(dealt, texts, schema)
            under_way = [threads.submit(lengths.sample, ordered)] if split == "train" else []
            under_way += [threads.submit(_write_shard, shard, schema, ordered) for shard in shards_of(folder, split, rows, kind, size)]
            for each in under_way:
                each.result()
    return rows


def _batches(portions: Sequence[Portion], split: str, texts: Texts, lengths: Lengths) -> Iterator[pa.RecordBatch]:
    for portion in portions:
        for batch in portion.batches(split, texts):
            if split == "train":
                lengths.note(portion.name, batch)
            yield batch


def _write_shard(shard: Shard, schema: pa.Schema, ordered: Ordered) -> None:
    with closing_rows(shard.writer(schema)) as writer:
        for table in ordered.tables(shard.first, shard.last):
            writer.write(table)


def _checked(folder: Path, stage: Stage, rows: Mapping[str, int]) -> list[Check]:
    """The checks of the shards, which are hashed and brought to the disk meanwhile: whoever finishes the blend finds both done."""
    with ThreadPoolExecutor(1) as beside:
        settled = beside.submit(_settle, [Path(path) for split in SPLITS for path in shard_paths(folder, split)])
        checks = run_checks(folder, stage, rows, near=folder)
        settled.result()
    return checks


def _settle(files: Sequence[Path]) -> None:
    for file in files:
        new_sha256(file)
        sync(file)


def _patterns(written: dict[str, int], kind: Format) -> dict[str, str]:
    """Split -> its files, of those with rows: a loader cannot tell an empty file of JSON lines from none."""
    return {split: f"{split}-*.parquet" if kind == "parquet" else f"{split}.jsonl" for split, rows in written.items() if rows}


def _require(checks: Sequence[Check]) -> None:
    failed = [f"{check.name}: wanted {check.wanted}, got {check.got}" for check in checks if not check.passed]
    if failed:
        raise BlendError("the blend fails its checks: " + "; ".join(failed))
