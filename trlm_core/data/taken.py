"""Taking a source that exists already: its rows normalised, filtered and written in the order they are taken, down to its count.

`train.arrow` holds them, `spare.arrow` those that replace duplicates of other sources, `dropped.jsonl` examples of what was kept out,
`origin.json` what the source is: {"license": "apache-2.0", "languages": ["en"], "columns": {"messages": "list<...>"}, "files": ["..."]}.
"""

import itertools
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from trlm_core.data.errors import SourceError
from trlm_core.data.filters import Judged
from trlm_core.data.hub import SplitFiles, Terms, resolver, terms_of
from trlm_core.data.normalize import Layout, TakenFrom, layout_of, normalized
from trlm_core.data.reading import read_picks
from trlm_core.data.revisions import files_of
from trlm_core.data.rows import Row
from trlm_core.data.sampling import Missing, Pick, head, reservoir, row_groups
from trlm_core.data.shards import ArrowWriter, closing_rows
from trlm_core.data.split_files import Part, parts_of
from trlm_core.recipes.schema import FileSource, HubSource, Stage

logger = logging.getLogger(__name__)

TOKENS = "_tokens"  # of a row, where a filter has counted them; no column of the blend
ASKED_AT_ONCE = 8  # sources, how many rows they have
EXAMPLES = 20  # of what was dropped, for each reason
DROPPED, ORIGIN = "dropped.jsonl", "origin.json"
SECONDS_BETWEEN_LINES = 10

Judge = Callable[[Sequence[Row]], list[Judged]]


@dataclass
class Tally:
    """What has been read and kept so far."""

    wanted: int
    spares: int
    kept: int = 0
    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: list[Row] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def missing(self) -> int:
        """First the source's own rows, then the spare ones."""
        return self.wanted - self.kept if self.kept < self.wanted else self.wanted + self.spares - self.kept

    def tell(self, name: str) -> None:
        """A line of the log now and then, with an estimate."""
        if time.monotonic() - self.told > SECONDS_BETWEEN_LINES and self.kept:
            self.told = time.monotonic()
            left = (self.told - self.began) / self.kept * (self.wanted + self.spares - self.kept)
            logger.info(
                "%s: %s of %s rows (%s read), about %.0f s left", name, f"{self.kept:,}", f"{self.wanted:,}", f"{self.read:,}", left
            )


class Origin(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    license: str | None  # as the source's own card has it
    languages: tuple[str, ...]
    columns: dict[str, str]  # of the source, with their types
    files: tuple[str, ...]


def origin_of(source: TakenFrom, files: SplitFiles, schema: pa.Schema) -> Origin:
    terms = terms_of(source.repo, source.revision) if isinstance(source, HubSource) else Terms(None, ())
    columns = {field.name: str(field.type) for field in schema}
    return Origin(license=terms.license, languages=terms.languages, columns=columns, files=files.paths)


def read_origin(folder: Path) -> Origin | None:
    """None for a source that is made here."""
    path = folder / ORIGIN
    return Origin.model_validate_json(path.read_bytes()) if path.is_file() else None


def supply(source: TakenFrom) -> int:
    """Rows that the split has, counted up to those that are wanted. Reads no row."""
    files = files_of(source)
    have = 0
    for part in parts_of(files.paths, files.format):
        have += part.rows
        if have >= source.num_examples:
            break
    return have


def check_supply(stage: Stage) -> None:
    """Raise SourceError that lists every source with fewer rows than its count, unless it may be short or is made here."""
    strict = [source for source in stage.blend.sources if isinstance(source, HubSource | FileSource) and not source.allow_short]
    if not strict:
        return
    with ThreadPoolExecutor(ASKED_AT_ONCE) as threads:
        if any(isinstance(source, HubSource) for source in strict):
            threads.submit(resolver)  # is long in importing; local files are hashed meanwhile
        counted = [*zip(strict, threads.map(supply, strict), strict=True)]
    if short := [(source, have) for source, have in counted if have < source.num_examples]:
        raise SourceError(
            "; ".join(f"{source.name}: wanted {source.num_examples:,} examples, the source has {have:,}" for source, have in short)
            + "; lower num_examples or set allow_short"
        )


def take(source: TakenFrom, schema: pa.Schema, folder: Path, *, seed: int, spares: int, judge: Judge | None) -> dict[str, Any]:
    """Fill the folder; counts. Raises SourceError where the source is shorter than its count after its filters."""
    files = files_of(source)
    parts = parts_of(files.paths, files.format)
    first = next(parts, None)
    if first is None:
        raise SourceError(f"{source.name}: wanted {source.num_examples:,} examples, the source has 0; it has no file with rows")
    layout = layout_of(source, first.file.schema, schema)
    tally = Tally(source.num_examples, spares)
    passes = _passes(source, itertools.chain([first], parts), layout, seed, tally.missing)
    _write(_kept(source, layout, passes, judge, tally), folder, schema, tally)
    _check_count(source, tally)
    (folder / ORIGIN).write_text(origin_of(source, files, first.file.schema).model_dump_json(indent=1))
    (folder / DROPPED).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in tally.examples))
    train = min(tally.kept, tally.wanted)
    return {"train": train, "held_out": 0, "spare": tally.kept - train, "read": tally.read, "dropped": dict(tally.dropped)}


def _passes(source: TakenFrom, parts: Iterator[Part], layout: Layout, seed: int, missing: Missing) -> Iterator[list[Pick]]:
    if source.sampling == "head":
        return head(parts, missing)
    if source.sampling == "row_groups":
        return row_groups(parts, missing, seed)
    known = list(parts)
    size = sum(part.bytes(layout.columns) for part in known)
    logger.info("%s: a reservoir reads the whole split, %s rows, %.2f GiB", source.name, f"{sum(p.rows for p in known):,}", size / 2**30)
    return reservoir(iter(known), missing, seed)


def _kept(source: TakenFrom, layout: Layout, passes: Iterator[list[Pick]], judge: Judge | None, tally: Tally) -> Iterator[pa.Table]:
    for picks in passes:
        for batch, rows in read_picks(_same_layout(source, layout, picks), layout.columns):
            table, dropped = normalized(source, layout, batch, rows)
            tally.read += batch.num_rows
            tally.dropped.update(dropped)
            kept = _judged(table, judge, tally).slice(0, tally.wanted + tally.spares - tally.kept)
            if kept.num_rows:  # a table of none may lack the column of tokens
                yield kept
            tally.tell(source.name)
            if not tally.missing():
                return


def _same_layout(source: TakenFrom, layout: Layout, picks: Sequence[Pick]) -> Sequence[Pick]:
    """Raise SourceError where a later file of the split has other columns than the first."""
    for pick in picks:
        layout_of(source, pick.part.file.schema, layout.schema)
    return picks


def _judged(table: pa.Table, judge: Judge | None, tally: Tally) -> pa.Table:
    if judge is None or not table.num_rows:
        return table
    rows = table.to_pylist()
    verdicts = judge(rows)
    for row, verdict in zip(rows, verdicts, strict=True):
        if verdict.reason is not None:
            tally.dropped[verdict.reason] += 1
            if tally.dropped[verdict.reason] <= EXAMPLES:
                found = {"question": verdict.question} if verdict.question is not None else {}
                tally.examples.append({"reason": verdict.reason, **found, **row})
    if verdicts[0].tokens is not None:
        table = table.append_column(TOKENS, pa.array([verdict.tokens for verdict in verdicts], pa.int32()))
    return table.filter(pa.array([verdict.reason is None for verdict in verdicts]))


def _write(tables: Iterator[pa.Table], folder: Path, schema: pa.Schema, tally: Tally) -> None:
    """The source's own rows into one file, the spare ones into another."""
    first = next(tables, schema.empty_table())
    with (
        closing_rows(ArrowWriter(folder / "train.arrow", first.schema)) as train,
        closing_rows(ArrowWriter(folder / "spare.arrow", first.schema)) as spare,
    ):
        for table in itertools.chain([first], tables):
            own = max(0, min(table.num_rows, tally.wanted - tally.kept))
            train.write(table.slice(0, own))
            spare.write(table.slice(own))
            tally.kept += table.num_rows


def _check_count(source: TakenFrom, tally: Tally) -> None:
    if tally.kept < tally.wanted and not source.allow_short:
        dropped = f" (dropped: {dict(tally.dropped)})" if tally.dropped else ""
        raise SourceError(
            f"{source.name}: wanted {tally.wanted:,} examples, the source has {tally.kept:,}{dropped}; "
            "lower num_examples or set allow_short"
        )


def spares_of(wanted: int, share: float) -> int:
    return int(np.ceil(wanted * share))
