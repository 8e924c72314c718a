"""DuckDB checks over the finished shards of a blend; one that fails stops the blend.

{"name": "rows of chain_sum-trace", "wanted": "40", "got": "40", "passed": true}
"""

from collections.abc import Iterator
from pathlib import Path

import duckdb
from pydantic import BaseModel, ConfigDict

from trlm_core.data.shards import shard_paths
from trlm_core.recipes.schema import GeneratedSource, Stage

PROVENANCE_COLUMNS = ("source", "_source_dataset", "_source_subset", "_source_split", "_source_row")


class Check(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    wanted: str
    got: str

    @property
    def passed(self) -> bool:
        return self.wanted == self.got


def run_checks(folder: Path, stage: Stage) -> list[Check]:
    """Every check of a blend's folder, in order: counts, provenance, uniqueness, leakage, form of the thoughts."""
    with duckdb.connect() as db:
        for split in ("train", "held_out"):
            db.read_parquet(shard_paths(folder, split)).create_view(split)
        return [*_counts(db, stage), *_provenance(db), *_uniqueness(db, stage), *_leakage(db, stage), *_thoughts(db, stage)]


def _scalar(db: duckdb.DuckDBPyConnection, query: str, *values: object) -> int:
    row = db.execute(query, list(values)).fetchone()
    assert row is not None
    return int(row[0])


def _counts(db: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[Check]:
    for source in stage.blend.sources:
        place = (source.repo, source.subset or "", source.split) if source.kind == "hub" else None
        if place is None:
            got = _scalar(db, "select count(*) from train where source = ?", source.name)
        else:
            got = _scalar(db, "select count(*) from train where _source_dataset = ? and _source_subset = ? and _source_split = ?", *place)
        yield Check(name=f"rows of {source.name}", wanted=str(source.num_examples), got=str(got))
    wanted = sum(source.num_examples for source in stage.blend.sources)
    yield Check(name="rows in all", wanted=str(wanted), got=str(_scalar(db, "select count(*) from train")))


def _provenance(db: duckdb.DuckDBPyConnection) -> Iterator[Check]:
    missing = " or ".join(f"{column} is null" for column in PROVENANCE_COLUMNS)
    yield Check(name="rows without provenance", wanted="0", got=str(_scalar(db, f"select count(*) from train where {missing}")))
    key = "_source_dataset, _source_subset, _source_split, _source_row"
    query = f"select count(*) from (select {key} from train group by all having count(*) > 1)"
    yield Check(name="rows that share their place in a source", wanted="0", got=str(_scalar(db, query)))


def _uniqueness(db: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[Check]:
    if any(source.kind == "hub" for source in stage.blend.sources):
        return  # the report takes its sources as they come
    column = _conversation_column(stage)
    query = f"select count(*) from (select {column} from train group by all having count(*) > 1)"
    yield Check(name="rows that stand twice", wanted="0", got=str(_scalar(db, query)))


def _leakage(db: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[Check]:
    column = _conversation_column(stage)
    question = f"list_filter({column}, lambda message: message.role = 'user')[1].content"
    query = f"select count(*) from (select {question} q from train intersect select {question} q from held_out)"
    yield Check(name="questions on both sides of the split", wanted="0", got=str(_scalar(db, query)))


def _thoughts(db: duckdb.DuckDBPyConnection, stage: Stage) -> Iterator[Check]:
    """Generated rows say in their form whether a thought is due: exactly one well-formed pair, or none."""
    with_thoughts = [s.name for s in stage.blend.sources if isinstance(s, GeneratedSource) and s.form != "answer"]
    without = [s.name for s in stage.blend.sources if s.kind == "dialogs" or (isinstance(s, GeneratedSource) and s.form == "answer")]
    for column in ("chosen", "rejected") if stage.training.trainer == "dpo" else ("messages",):
        reply = f"list_last({column}).content"
        form = f"(regexp_matches({reply}, '(?s)^<think>.+</think>.+$') and len(regexp_extract_all({reply}, '</?think>')) = 2)"
        if with_thoughts:
            got = _scalar(db, f"select count(*) from train where list_contains(?, source) and not {form}", with_thoughts)
            yield Check(name=f"{column} without one closed thought", wanted="0", got=str(got))
        if without:
            got = _scalar(
                db, f"select count(*) from train where list_contains(?, source) and regexp_matches({reply}, '</?think>')", without
            )
            yield Check(name=f"{column} with a thought where none is due", wanted="0", got=str(got))


def _conversation_column(stage: Stage) -> str:
    return "chosen" if stage.training.trainer == "dpo" else "messages"
