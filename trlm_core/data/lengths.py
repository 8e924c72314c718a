"""Token counts of a blend's train rows: of all where a filter has counted them, else of a sample; as measured checks.

{"name": "tokens of a row, of a seeded sample of 2,000", "wanted": null, "got": "p5 212, ..., max 9,104"}
{"name": "tokens of openthoughts3_1.2m", "wanted": null, "got": "about 118,000,000, from 513 of its rows"}
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from trlm_core.data.checks import Check
from trlm_core.data.filters import token_counts
from trlm_core.data.normalize import place_of
from trlm_core.data.rows import schema_of
from trlm_core.data.shuffle import InOrder
from trlm_core.data.taken import TOKENS
from trlm_core.recipes.schema import Stage, TakenSource
from trlm_core.text.token_counts import token_counter

SAMPLED_ROWS = 2_000  # the first of a shuffled blend are a uniform sample
COUNTED_AT_ONCE = 500
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
DIGITS = 3  # of an estimate


class Lengths:
    """Fed while a blend is written. `tokenizer`: folder of the one that counts a sample."""

    def __init__(self, stage: Stage, tokenizer: Path) -> None:
        self._stage, self._tokenizer = stage, tokenizer
        self._counts: dict[str, list[int]] = defaultdict(list)  # source -> tokens of its rows
        self._sampled = False

    def note(self, source: str, batch: pa.RecordBatch) -> None:
        if TOKENS in batch.schema.names:
            self._counts[source] += batch[TOKENS].to_pylist()
        else:
            self._sampled = True

    def sample(self, rows: InOrder) -> None:
        """Count the first rows of the new order, where the rows have not been counted."""
        if self._sampled:
            self._counts = defaultdict(list)
            for source, tokens in self._counted(rows):
                self._counts[source].append(tokens)

    def checks(self, rows: Mapping[str, int]) -> list[Check]:
        """rows: source -> its rows in the blend."""
        every = [tokens for counts in self._counts.values() for tokens in counts]
        if not every:
            return []
        of = f"of a seeded sample of {len(every):,}" if self._sampled else "of all rows"
        side = ", the longer side of each pair" if "chosen" in schema_of(self._stage).names else ""
        told = {f"tokens of a row, {of}": _quantiles(every), **{f"tokens of {name}{side}": self._total(name, rows[name]) for name in rows}}
        return [Check(name=name, wanted=None, got=got) for name, got in told.items()]

    def _counted(self, rows: InOrder) -> Iterator[tuple[str, int]]:
        names = {place_of(source): source.name for source in self._stage.blend.sources if isinstance(source, TakenSource)}
        count = token_counter(self._tokenizer)
        for batch in itertools.chain.from_iterable(table.to_batches(COUNTED_AT_ONCE) for table in rows.tables(0, SAMPLED_ROWS)):
            read = batch.to_pylist()
            for row, tokens in zip(read, token_counts(read, count), strict=True):
                place = row["_source_dataset"], row["_source_subset"], row["_source_split"]
                yield names.get(place) or row["source"], tokens

    def _total(self, name: str, rows: int) -> str:
        counts = self._counts[name]
        if not self._sampled:
            return f"{sum(counts):,}"
        if not counts:
            return "unknown: the sample has none of its rows"
        return f"about {_rounded(sum(counts) / len(counts) * rows):,}, from {len(counts):,} of its rows"


def _quantiles(lengths: list[int]) -> str:
    with duckdb.connect() as db:
        counted = pa.table({"tokens": pa.array(lengths, pa.int64())})
        (found,) = db.from_arrow(counted).aggregate(f"quantile_disc(tokens, {list(QUANTILES)}), max(tokens)").fetchall()
    return ", ".join(
        [*(f"p{quantile * 100:g} {value:,}" for quantile, value in zip(QUANTILES, found[0], strict=True)), f"max {found[1]:,}"]
    )


def _rounded(number: float) -> int:
    return int(float(f"{number:.{DIGITS}g}"))
