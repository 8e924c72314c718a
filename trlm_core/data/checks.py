"""DuckDB checks over the finished shards of a blend; one that fails stops the blend. What is only measured wants nothing.

{"name": "rows of chain_sum-trace", "wanted": "40", "got": "40"}  {"name": "rows that stand twice", "wanted": null, "got": "3"}
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from trlm_core.artifacts.errors import first_line
from trlm_core.data.errors import CheckError
from trlm_core.data.normalize import place_of
from trlm_core.data.rows import CONVERSATIONS, schema_of
from trlm_core.data.shards import format_of, shard_paths
from trlm_core.recipes.schema import GeneratedSource, Source, Stage, TakenSource
from trlm_core.text.thoughts import BLANKS

PROVENANCE_COLUMNS = ("source", "_source_dataset", "_source_subset", "_source_split", "_source_row")
PLACE = "_source_dataset, _source_subset, _source_split"
MEMORY = "256MB"
THREADS = 2  # each holds a row group and what is made of it, or 32 MiB of JSON lines
ROUNDED = 0.1  # percent: the report's table has 3.5 where 2,000 of 58,000 are 3.45
FULL = ("max_temp_directory_size", "No space left on device")  # DuckDB's words for a disk that takes nothing more
TURN = "STRUCT(role VARCHAR, content VARCHAR)[]"


class Check(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    wanted: str | None  # None: measured, not required
    got: str
    within: float | None = None  # both are numbers, and may differ by so much

    @property
    def passed(self) -> bool:
        if self.wanted is None or self.wanted == self.got:
            return True
        return self.within is not None and abs(float(self.wanted) - float(self.got)) <= self.within

    @property
    def verdict(self) -> str:
        return "measured" if self.wanted is None else "passed" if self.passed else "FAILED"

    @property
    def row(self) -> dict[str, str]:
        """Of a table."""
        return {"check": self.name, "wanted": self.wanted or "", "got": self.got, "verdict": self.verdict}


def run_checks(folder: Path, stage: Stage, rows: Mapping[str, int], near: Path | None = None) -> list[Check]:
    """Every check of a blend's folder, in order: counts, shares, schema, provenance, duplicates, leakage, form of the thoughts.

    rows: source name -> rows that it gave; where it may be short, they are what is wanted of it.
    near: folder of DuckDB's temporary files, which are gone afterwards; None: the system's.
    """
    with _spilling(near) as db:
        for split in ("train", "held_out"):
            _view(db, folder, split, schema_of(stage))
        db.execute(f"create temp table facts as {_facts(stage)}")
        return [
            *_counts(db, stage, rows),
            *_shares(db, stage),
            _schema(db, stage),
            *_provenance(db, stage),
            *_duplicates(db, stage),
            _leakage(db, stage),
            *_thoughts(db, stage),
        ]


@contextlib.contextmanager
def _spilling(near: Path | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB in bounded memory. Without a folder of its own it would spill into the working directory."""
    with (
        tempfile.TemporaryDirectory(prefix=".checks-", dir=near) as spool,
        duckdb.connect(
            config={"memory_limit": MEMORY, "threads": THREADS, "preserve_insertion_order": "false", "temp_directory": spool}
        ) as db,
    ):
        try:
            yield db
        except duckdb.Error as error:
            if any(words in str(error) for words in FULL):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), spool) from error
            if isinstance(error, duckdb.OutOfMemoryException):
                raise CheckError(f"checks: wanted rows that {MEMORY} can hold, got longer ones: {first_line(error)}") from error
            raise


def _view(db: duckdb.DuckDBPyConnection, folder: Path, split: str, schema: pa.Schema) -> None:
    paths = shard_paths(folder, split)
    if format_of(folder, split) == "parquet":
        db.read_parquet(paths).create_view(split)
    else:
        columns = {field.name: _type(field) for field in schema}
        (path,) = paths
        db.read_json(path, columns=columns, format="newline_delimited").create_view(split)


def _type(field: pa.Field) -> str:
    return TURN if field.name in CONVERSATIONS else "BIGINT" if pa.types.is_integer(field.type) else "VARCHAR"


def _facts(stage: Stage) -> str:
    """What the checks need of every row, so that its text is read once; of `train` with the replies of each conversation beside it."""
    conversations = _conversations(stage)
    facts = [f"hash({', '.join(conversations)}) as conversation", f"hash({_question(conversations[0])}) as question"]
    for name in conversations:
        facts.append(
            f"len(replies_{name}) > 0 and list_bool_and(list_transform(replies_{name}, lambda reply: {ONE_THOUGHT})) as one_in_{name}"
        )
        facts.append(f"not list_bool_or(list_transform(replies_{name}, lambda reply: {ANY_THOUGHT})) as none_in_{name}")
    replies = [f"{_contents(name, 'assistant')} as replies_{name}" for name in conversations]
    return f"select {PLACE}, _source_row, source, {', '.join(facts)} from (select *, {', '.join(replies)} from train)"


def _contents(conversation: str, role: str) -> str:
    return f"list_transform(list_filter({conversation}, lambda turn: turn.role = '{role}'), lambda turn: turn.content)"


def _question(conversation: str) -> str:
    return f"{_contents(conversation, 'user')}[1]"


def _conversations(stage: Stage) -> list[str]:
    return [name for name in CONVERSATIONS if name in schema_of(stage).names]


BLANK = "[" + "".join(rf"\x{{{ord(blank):x}}}" for blank in BLANKS) + "]"  # Python's blanks, of which RE2's own class has the first few
# As text/thoughts.py parses a reply: one pair, at the start, with something in it and behind it. Each test reads the text once.
ONE_THOUGHT = (
    "(len(string_split(reply, '<think>')) = 2 and len(string_split(reply, '</think>')) = 2"
    f" and regexp_matches(reply, '^{BLANK}*<think>')"
    f" and not regexp_matches(reply, '<think>{BLANK}*</think>') and not regexp_matches(reply, '</think>{BLANK}*$'))"
)
ANY_THOUGHT = "(contains(reply, '<think>') or contains(reply, '</think>'))"


def _scalar(db: duckdb.DuckDBPyConnection, query: str, *values: object) -> int:
    row = db.execute(query, list(values)).fetchone()
    assert row is not None
    return int(row[0])


def _place(source: Source) -> tuple[str, str, str] | None:
    """None for a source that is made here."""
    return place_of(source) if isinstance(source, TakenSource) else None


def _rows_of(db: duckdb.DuckDBPyConnection, source: Source) -> int:
    place = _place(source)
    if place is None:
        return _scalar(db, "select count(*) from facts where source = ?", source.name)
    return _scalar(db, "select count(*) from facts where _source_dataset = ? and _source_subset = ? and _source_split = ?", *place)


def _counts(db: duckdb.DuckDBPyConnection, stage: Stage, rows: Mapping[str, int]) -> Iterator[Check]:
    for source in stage.blend.sources:
        yield Check(name=f"rows of {source.name}", wanted=str(_wanted(source, rows)), got=str(_rows_of(db, source)))
    wanted = sum(_wanted(source, rows) for source in stage.blend.sources)
    yield Check(name="rows in all", wanted=str(wanted), got=str(_scalar(db, "select count(*) from facts")))


def _wanted(source: Source, rows: Mapping[str, int]) -> int:
    return rows[source.name] if isinstance(source, TakenSource) and source.allow_short else source.num_examples


def _shares(db: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[Check]:
    total = max(1, _scalar(db, "select count(*) from facts"))
    for source in stage.blend.sources:
        if isinstance(source, TakenSource) and source.reported_share is not None:
            share = f"{100 * _rows_of(db, source) / total:.2f}"
            yield Check(name=f"percent that are {source.name}'s, as reported", wanted=str(source.reported_share), got=share, within=ROUNDED)


def _schema(db: duckdb.DuckDBPyConnection, stage: Stage) -> Check:
    described = db.execute("describe train").fetchall()
    got = ", ".join(f"{name} {kind}" for name, kind, *_ in described).replace('"', "")
    return Check(name="columns", wanted=", ".join(f"{field.name} {_type(field)}" for field in schema_of(stage)), got=got)


def _provenance(db: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[Check]:
    missing = " or ".join(f"{column} is null" for column in PROVENANCE_COLUMNS)
    yield Check(name="rows without provenance", wanted="0", got=str(_scalar(db, f"select count(*) from facts where {missing}")))
    query = f"select count(*) from (select {PLACE}, _source_row from facts group by all having count(*) > 1)"
    yield Check(name="rows that share their place in a source", wanted="0", got=str(_scalar(db, query)))
    traced = _scalar(db, "select count(*) from facts where _source_row >= 0") and sum(
        _rows_of(db, source) for source in stage.blend.sources
    )
    untraced = _scalar(db, "select count(*) from facts") - traced
    yield Check(name="rows that no source of the recipe explains", wanted="0", got=str(untraced))


def _duplicates(db: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[Check]:
    """A report's blend takes its sources as they come: there duplicates are counted, not forbidden."""
    filters, generated = stage.blend.filters, all(not isinstance(source, TakenSource) for source in stage.blend.sources)
    forbidden = generated or (filters is not None and filters.exact_duplicates)
    twice = _scalar(db, "select count(*) - count(distinct conversation) from facts")
    yield Check(name="rows that stand twice", wanted="0" if forbidden else None, got=str(twice))


def _leakage(db: duckdb.DuckDBPyConnection, stage: Stage) -> Check:
    asked = f"select hash({_question(_conversations(stage)[0])}) from held_out"
    query = f"select count(distinct question) from facts where question in ({asked})"
    return Check(name="questions on both sides of the split", wanted="0", got=str(_scalar(db, query)))


def _thoughts(db: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[Check]:
    """Generated rows say in their form whether a thought is due; for taken ones a filter does, or the stage's name and it is measured."""
    conversations = _conversations(stage)
    for wanted, names in (("one", _names(stage, with_thoughts=True)), ("none", _names(stage, with_thoughts=False))):
        for column in conversations if names else ():
            query = f"select count(*) from facts where list_contains(?, source) and not {wanted}_in_{column}"
            yield Check(name=f"{column} {WRONG[wanted]}", wanted="0", got=str(_scalar(db, query, names)))
    places = [list(place) for source in stage.blend.sources if (place := _place(source)) is not None]
    wanted = _due(stage)
    if not places or wanted is None:
        return
    for column in conversations:
        found = _scalar(db, f"select count(*) from facts where list_contains(?, [{PLACE}]) and not {wanted}_in_{column}", places)
        required = stage.blend.filters is not None and stage.blend.filters.thoughts is not None
        yield Check(name=f"taken {column} {WRONG[wanted]}", wanted="0" if required else None, got=str(found))


WRONG = {"one": "without one closed thought", "none": "with a thought where none is due"}


def _due(stage: Stage) -> str | None:
    if stage.blend.filters is not None and stage.blend.filters.thoughts is not None:
        return stage.blend.filters.thoughts
    return {"stage1_sft": "none", "stage2_sft_think": "one"}.get(stage.name)


def _names(stage: Stage, *, with_thoughts: bool) -> list[str]:
    """Of the sources whose rows are made here."""
    made = [source for source in stage.blend.sources if not isinstance(source, TakenSource)]
    return [source.name for source in made if (isinstance(source, GeneratedSource) and source.form != "answer") == with_thoughts]
