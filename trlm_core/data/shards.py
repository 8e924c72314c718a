"""Shards: the files of one split, `train-00000-of-00002.parquet`; `train.jsonl` for a small blend; `train.arrow` for rows on their way."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import pyarrow as pa
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq

Format = Literal["parquet", "json", "arrow"]

ROWS_PER_SHARD = 50_000
ROWS_PER_GROUP = 1_000  # of parquet: what a reader holds at once
REPEATING = ("source", "_source_dataset", "_source_subset", "_source_split")  # columns worth a dictionary; text is not
# Content-defined chunking cuts pages where the content says so: after an insertion the Hub finds the rest unchanged.
PARQUET: dict[str, Any] = {"compression": "zstd", "use_content_defined_chunking": True, "write_page_checksum": True}


class RowWriter(Protocol):
    def write(self, table: pa.Table) -> None: ...

    def close(self) -> None: ...


class ArrowWriter:
    """One Arrow file, written as the rows come."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, schema, options=pyarrow.ipc.IpcWriteOptions(compression="lz4"))

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()
        self._file.close()


class ParquetWriter:
    """Shards of so many rows in all; an empty split has one empty shard, so that its schema can be read."""

    def __init__(self, folder: Path, split: str, schema: pa.Schema, rows: int) -> None:
        count = max(1, -(-rows // ROWS_PER_SHARD))
        self._paths = [folder / f"{split}-{index:05d}-of-{count:05d}.parquet" for index in range(count)]
        self._group_rows = min(ROWS_PER_GROUP, ROWS_PER_SHARD)
        self._schema, self._waiting, self._written = schema, [], 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        held = sum(part.num_rows for part in self._waiting)
        if held >= self._group_rows:
            self._write_groups(pa.concat_tables(self._waiting), held // self._group_rows * self._group_rows)

    def close(self) -> None:
        rest = pa.concat_tables([self._schema.empty_table(), *self._waiting])
        if rest.num_rows or not self._written:
            self._write_group(rest)
        if self._writer is not None:
            self._writer.close()

    def _write_groups(self, table: pa.Table, rows: int) -> None:
        for start in range(0, rows, self._group_rows):
            self._write_group(table.slice(start, self._group_rows))
        self._waiting = [table.slice(rows)]

    def _write_group(self, group: pa.Table) -> None:
        if self._written % ROWS_PER_SHARD == 0:
            if self._writer is not None:
                self._writer.close()
            self._writer = pq.ParquetWriter(self._paths[self._written // ROWS_PER_SHARD], self._schema, **_parquet_options(self._schema))
        assert self._writer is not None
        self._writer.write_table(group, row_group_size=self._group_rows)
        self._written += group.num_rows


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


def writer_of(folder: Path, split: str, schema: pa.Schema, *, rows: int, kind: Format) -> RowWriter:
    if kind == "parquet":
        return ParquetWriter(folder, split, schema, rows)
    return JsonWriter(folder / f"{split}.jsonl") if kind == "json" else ArrowWriter(folder / f"{split}.arrow", schema)


def write_shards(folder: Path, split: str, table: pa.Table, kind: Format = "parquet") -> list[Path]:
    """Write the split in order."""
    with closing_rows(writer_of(folder, split, table.schema, rows=table.num_rows, kind=kind)) as writer:
        writer.write(table)
    return [Path(path) for path in shard_paths(folder, split)]


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
        for batch in pyarrow.json.open_json(path, parse_options=options):
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


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    return {**PARQUET, "use_dictionary": [name for name in REPEATING if name in schema.names]}
