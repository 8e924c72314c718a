"""The files of a split and their parts: row groups (parquet), record batches (Arrow), whole files (JSON lines)."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.ipc
import pyarrow.json
import pyarrow.parquet as pq

from trlm_core.artifacts.errors import first_line
from trlm_core.data.errors import SourceConnectionError, SourceError
from trlm_core.data.hub import told
from trlm_core.data.shards import JSON_BLOCKS
from trlm_core.data.source_files import opened, pause

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
BATCH_ROWS = 1_000
TRIES = 4  # of a part that cannot be read, after the clients' own


@dataclass(frozen=True)
class Part:
    file: "SplitFile"
    number: int
    first_row: int  # of the split
    rows: int

    def bytes(self, columns: Sequence[str]) -> int:
        """Of the columns, as they are held in memory."""
        return self.file.part_bytes(self.number, columns)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Its rows in order. A read that fails is repeated from where it failed. Raises SourceError, SourceConnectionError."""
        return patiently(lambda: self.file.batches(self.number, columns), f"{self.file.path} part {self.number}")


@dataclass(frozen=True)
class SplitFile:
    path: str  # local, hf:// or s3://

    @property
    def is_remote(self) -> bool:
        return "://" in self.path

    @property
    def schema(self) -> pa.Schema:
        raise NotImplementedError

    @property
    def part_rows(self) -> list[int]:
        raise NotImplementedError

    def part_bytes(self, number: int, columns: Sequence[str]) -> int:
        raise NotImplementedError

    def batches(self, number: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError


class ParquetFile(SplitFile):
    @functools.cached_property
    def _footer(self) -> pq.FileMetaData:
        return once(self._read_footer, f"{self.path} footer")

    def _read_footer(self) -> pq.FileMetaData:
        with opened(self.path) as source:
            return pq.ParquetFile(source).metadata

    @property
    def schema(self) -> pa.Schema:
        return self._footer.schema.to_arrow_schema()

    @property
    def part_rows(self) -> list[int]:
        return [self._footer.row_group(number).num_rows for number in range(self._footer.num_row_groups)]

    def part_bytes(self, number: int, columns: Sequence[str]) -> int:
        group = self._footer.row_group(number)
        leaves = (group.column(index) for index in range(group.num_columns))
        return sum(leaf.total_uncompressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] in columns)

    def batches(self, number: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        # pre_buffer asks for the column chunks that are needed, near ones together, and for nothing else.
        with opened(self.path) as source:
            file = pq.ParquetFile(source, metadata=self._footer, pre_buffer=True, page_checksum_verification=True)
            yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=[number], columns=list(columns))


class ArrowFile(SplitFile):
    """Of `datasets`' kind (a stream) or with a footer."""

    @functools.cached_property
    def _table(self) -> pa.Table:
        return once(self._read, self.path)

    def _read(self) -> pa.Table:
        with opened(self.path) as source:
            try:
                return pyarrow.ipc.open_file(source).read_all()
            except pa.ArrowInvalid:
                source.seek(0)
                return pyarrow.ipc.open_stream(source).read_all()

    @functools.cached_property
    def _parts(self) -> list[pa.RecordBatch]:
        return self._table.to_batches()

    @property
    def schema(self) -> pa.Schema:
        return self._table.schema

    @property
    def part_rows(self) -> list[int]:
        return [part.num_rows for part in self._parts]

    def part_bytes(self, number: int, columns: Sequence[str]) -> int:
        return sum(self._parts[number][name].nbytes for name in columns)

    def batches(self, number: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        part = self._parts[number].select(list(columns))
        for start in range(0, part.num_rows, BATCH_ROWS):
            yield part.slice(start, BATCH_ROWS)


class JsonFile(SplitFile):
    @functools.cached_property
    def schema(self) -> pa.Schema:
        return once(self._read_schema, f"{self.path} schema")

    @functools.cached_property
    def part_rows(self) -> list[int]:
        return [once(self._count_lines, f"{self.path} lines")]

    def part_bytes(self, number: int, columns: Sequence[str]) -> int:
        return once(self._size, f"{self.path} size")

    def _read_schema(self) -> pa.Schema:
        with opened(self.path) as source:
            return pyarrow.json.open_json(source, read_options=JSON_BLOCKS).schema

    def _count_lines(self) -> int:
        with opened(self.path) as source:
            chunks = iter(lambda: source.read(1 << 20), b"")
            ends = [(chunk.count(b"\n"), chunk[-1:]) for chunk in chunks]
        return sum(count for count, _ in ends) + (bool(ends) and ends[-1][1] != b"\n")

    def _size(self) -> int:
        with opened(self.path) as source:
            return source.size()

    def batches(self, number: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        wanted = pa.schema([self.schema.field(name) for name in columns])
        options = pyarrow.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore")
        with opened(self.path) as source:
            for batch in pyarrow.json.open_json(source, read_options=JSON_BLOCKS, parse_options=options):
                yield batch.select(list(columns))


KINDS = {"parquet": ParquetFile, "arrow": ArrowFile, "json": JsonFile}


def parts_of(paths: Sequence[str], kind: str) -> Iterator[Part]:
    """Every part in order; a file is opened when its first part is asked for."""
    first_row = 0
    for path in paths:
        file = _pinned_file(kind, path) if path.startswith("hf://") else KINDS[kind](path)
        for number, rows in enumerate(file.part_rows):
            yield Part(file, number, first_row, rows)
            first_row += rows


@functools.lru_cache(maxsize=512)
def _pinned_file(kind: str, path: str) -> SplitFile:
    """A file at a commit stays as it is: its footer is read once a process."""
    return KINDS[kind](path)


def once(read: Callable[[], Result], where: str) -> Result:
    """What one patient reading gives."""

    def readings() -> Iterator[Result]:
        yield read()

    (result,) = patiently(readings, where)
    return result


def patiently(read: Callable[[], Iterator[Any]], where: str) -> Iterator[Any]:
    """What `read` gives, each thing once: after a failure it is read again and what was given already is left out."""
    given = failures = 0
    while True:
        try:
            for each in itertools.islice(read(), given, None):
                yield each
                given, failures = given + 1, 0
            return
        except SourceConnectionError:
            raise
        except (OSError, pa.ArrowException, *_client_errors()) as error:
            failures += 1
            reason = _lasting(error, where)
            if reason is not None:
                raise reason from error
            if failures == TRIES:
                raise _given_up(error, where) from error
            logger.warning("%s: %s; reading it again", where, first_line(error))
            pause(2 ** (failures - 1) / 2)


def _client_errors() -> tuple[type[Exception], ...]:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    return httpx2.TransportError, HfHubHTTPError


def _lasting(error: Exception, where: str) -> SourceError | None:
    """The error that another try would meet again."""
    if hasattr(error, "response"):
        meaning = told(error, where)
        return meaning if isinstance(meaning, SourceError) else None
    if isinstance(error, FileNotFoundError):
        return SourceError(f"{where}: wanted a file, got nothing there: {first_line(error)}")
    return None


def _given_up(error: Exception, where: str) -> SourceError | SourceConnectionError:
    undecodable = isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)  # how Arrow tells of both
    if undecodable:
        return SourceError(f"{where}: wanted rows, got bytes that are none, {TRIES} times: {first_line(error)}; the file is damaged there")
    return SourceConnectionError(f"{where}: wanted its bytes, got {type(error).__name__} {TRIES} times: {first_line(error)}")
