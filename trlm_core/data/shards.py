"""Shards: the files of one split, `train-00000-of-00002.parquet`; `train.jsonl` for a small blend; `train.arrow` for rows on their way."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq

Format = Literal["parquet", "json", "arrow"]

ROWS_PER_SHARD = 50_000
ROWS_PER_GROUP, GROUP_BYTES = 1_000, 16 << 20  # of parquet, at most: what a reader holds at once
REPEATING = ("source", "_source_dataset", "_source_subset", "_source_split")  # columns worth a dictionary; text is not
# Content-defined chunking cuts pages where the content says so: after an insertion the Hub finds the rest unchanged.
PARQUET: dict[str, Any] = {"compression": "zstd", "use_content_defined_chunking": True, "write_page_checksum": True}


JSON_BLOCKS = pyarrow.json.ReadOptions(block_size=16 << 20)  # a line may be as long; Arrow's default is 1 MiB


class RowWriter(Protocol):
    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class ArrowWriter:
    """One Arrow file, written as the rows come; raw, since packing and unpacking cost more than the disk."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, schema)

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()
        self._file.close()


class ParquetWriter:
    """One parquet file, opened with its first group of rows; one without rows has its schema."""

    def __init__(self, path: Path, schema: pa.Schema, group_rows: int) -> None:
        self._path, self._schema, self._group_rows = path, schema, group_rows
        self._waiting: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        held = sum(part.num_rows for part in self._waiting)
        if held >= self._group_rows:
            self._write_groups(held // self._group_rows * self._group_rows)

    def close(self) -> None:
        rest = pa.concat_tables([self._schema.empty_table(), *self._waiting])
        if rest.num_rows or self._writer is None:
            self._opened().write_table(rest, row_group_size=self._group_rows)
        self._opened().close()

    def _write_groups(self, rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        for start in range(0, rows, self._group_rows):
            self._opened().write_table(table.slice(start, self._group_rows), row_group_size=self._group_rows)
        self._waiting = [table.slice(rows)]

    def _opened(self) -> pq.ParquetWriter:
        if self._writer is None:
            options = {**PARQUET, "use_dictionary": [name for name in REPEATING if name in self._schema.names]}
            self._writer = pq.ParquetWriter(self._path, self._schema, **options)
        return self._writer


class JsonWriter:
    """One object a line, no blanks."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def write(self, table: pa.Table) -> None:
        for row in table.to_pylist():
            self._file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")

    def close(self) -> None:
        self._file.close()


class closing_rows:  # noqa: N801
    """`with closing_rows(writer) as writer`: finished where all went well; a file that is left half written is nobody's artifact."""

    def __init__(self, writer: RowWriter) -> None:
        self._writer = writer

    def __enter__(self) -> RowWriter:
        return self._writer

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._writer.close()


@dataclass(frozen=True)
class Shard:
    """The file of a split's rows from `first` up to `last`."""

    path: Path
    first: int
    last: int
    group_rows: int

    def writer(self, schema: pa.Schema) -> RowWriter:
        if self.path.suffix == ".jsonl":
            return JsonWriter(self.path)
        return ParquetWriter(self.path, schema, self.group_rows) if self.path.suffix == ".parquet" else ArrowWriter(self.path, schema)


class SplitWriter:
    """All shards of a split, filled one after the other; where fewer rows come than they hold, the last have none."""

    def __init__(self, shards: Sequence[Shard], schema: pa.Schema) -> None:
        self._writers = [(shard, shard.writer(schema)) for shard in shards]
        self._written = 0

    def write(self, table: pa.Table) -> None:
        for shard, writer in self._writers:
            start, end = (min(max(0, edge - self._written), table.num_rows) for edge in (shard.first, shard.last))
            if end > start:
                writer.write(table.slice(start, end - start))
        self._written += table.num_rows

    def close(self) -> None:
        for _, writer in self._writers:
            writer.close()


def shards_of(folder: Path, split: str, rows: int, kind: Format, size: int = 0) -> list[Shard]:
    """Which files a split of so many rows has; of parquet as many as it needs, of one size, and one where there are no rows.

    size: bytes of all rows, where they are known: long rows make groups of fewer.
    """
    group_rows = min(ROWS_PER_GROUP, max(1, rows * GROUP_BYTES // size)) if size else ROWS_PER_GROUP
    if kind != "parquet":
        return [Shard(folder / f"{split}.{'jsonl' if kind == 'json' else kind}", 0, rows, group_rows)]
    count = max(1, -(-rows // ROWS_PER_SHARD))
    edges = [rows * number // count for number in range(count + 1)]
    return [
        Shard(folder / f"{split}-{number:05d}-of-{count:05d}.parquet", first, last, group_rows)
        for number, (first, last) in enumerate(itertools.pairwise(edges))
    ]


def write_shards(folder: Path, split: str, table: pa.Table, kind: Format = "parquet") -> list[Path]:
    """Write the split in order."""
    shards = shards_of(folder, split, table.num_rows, kind)
    with closing_rows(SplitWriter(shards, table.schema)) as writer:
        writer.write(table)
    return [shard.path for shard in shards]


def read_shards(folder: Path, split: str, schema: pa.Schema | None = None) -> pa.Table:
    """The whole split. `schema`: of JSON lines, which carry none."""
    batches = list(iter_shards(folder, split, schema))
    return pa.Table.from_batches(batches) if batches else _schema_of(folder, split, schema).empty_table()


def iter_shards(folder: Path, split: str, schema: pa.Schema | None = None) -> Iterator[pa.RecordBatch]:
    """The split in order, a thousand rows or so at a time."""
    for path in shard_paths(folder, split):
        yield from _batches(path, schema)


def shard_paths(folder: Path, split: str) -> list[str]:
    paths = _found(folder, split)
    if not paths:
        raise FileNotFoundError(f"{folder}: wanted shards of {split}, got none")
    return paths


def has_shards(folder: Path, split: str) -> bool:
    return bool(_found(folder, split))


def _found(folder: Path, split: str) -> list[str]:
    patterns = (f"{split}-*.parquet", f"{split}.jsonl", f"{split}.arrow")
    return sorted(str(path) for pattern in patterns for path in folder.glob(pattern))


def count_rows(folder: Path, split: str) -> int:
    return sum(_rows(path) for path in shard_paths(folder, split))


def format_of(folder: Path, split: str) -> Format:
    suffixes: dict[str, Format] = {".parquet": "parquet", ".jsonl": "json", ".arrow": "arrow"}
    return suffixes[Path(shard_paths(folder, split)[0]).suffix]


def _batches(path: str, schema: pa.Schema | None) -> Iterable[pa.RecordBatch]:
    if path.endswith(".parquet"):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from file.iter_batches(batch_size=ROWS_PER_GROUP)
    elif path.endswith(".arrow"):
        with pa.OSFile(path) as source, pyarrow.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
    else:
        yield from _json_batches(path, schema)


def _json_batches(path: str, schema: pa.Schema | None) -> Iterator[pa.RecordBatch]:
    if schema is None:
        raise ValueError(f"{path}: wanted the schema of its rows, got none; JSON lines carry none")
    if Path(path).stat().st_size:
        options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
        for batch in pyarrow.json.open_json(path, read_options=JSON_BLOCKS, parse_options=options):
            yield batch.select(schema.names).cast(schema)


def _schema_of(folder: Path, split: str, schema: pa.Schema | None) -> pa.Schema:
    path = shard_paths(folder, split)[0]
    if path.endswith(".parquet"):
        return pq.read_schema(path)
    if path.endswith(".arrow"):
        with pa.OSFile(path) as source, pyarrow.ipc.open_file(source) as reader:
            return reader.schema
    if schema is None:
        raise ValueError(f"{path}: wanted the schema of its rows, got none; JSON lines carry none")
    return schema


def _rows(path: str) -> int:
    if path.endswith(".parquet"):
        return pq.read_metadata(path).num_rows
    if path.endswith(".arrow"):
        with pa.OSFile(path) as source, pyarrow.ipc.open_file(source) as reader:
            return sum(reader.get_batch(number).num_rows for number in range(reader.num_record_batches))
    with Path(path).open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
