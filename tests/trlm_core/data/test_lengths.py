"""Lengths: of all rows where a filter has counted them, else of the first of the new order, and of each source."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from trlm_core.data.checks import Check
from trlm_core.data.lengths import Lengths
from trlm_core.data.rows import schema_of
from trlm_core.data.shuffle import Shuffle
from trlm_core.data.taken import TOKENS
from trlm_core.recipes.load import load_recipe

STAGE = load_recipe("trlm-135m", variant="report").stage("stage2_sft_think")
LONG, SHORT = (source.name for source in STAGE.blend.sources[:2])
PLACES = {source.name: (source.repo, source.subset, source.split) for source in STAGE.blend.sources if source.kind == "hub"}


def batch(name: str, sizes: Sequence[int]) -> pa.RecordBatch:
    """Rows of so many tokens: a digit is one."""
    place = dict(zip(("_source_dataset", "_source_subset", "_source_split"), PLACES[name], strict=True))
    rows = [
        {"messages": [{"role": "user", "content": "7" * size}], "source": "as it names itself", "_source_row": row, **place}
        for row, size in enumerate(sizes)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=schema_of(STAGE))


def checks(base: Path, folder: Path, batches: dict[str, pa.RecordBatch]) -> dict[str, str]:
    lengths = Lengths(STAGE, base)
    for name, each in batches.items():
        lengths.note(name, each)
    rows = {name: each.num_rows for name, each in batches.items()}
    plain = [each.select(schema_of(STAGE).names) for each in batches.values()]
    with Shuffle(sum(rows.values()), 1, 1_000).dealt(plain, schema_of(STAGE), folder) as dealt:
        lengths.sample(dealt)
    told = lengths.checks(rows)
    assert all(check == Check(name=check.name, wanted=None, got=check.got) for check in told), "measured, not required"
    return {check.name: check.got for check in told}


def test_a_small_blend_is_its_own_sample(tiny_base: Path, tmp_path: Path):
    told = checks(tiny_base, tmp_path, {LONG: batch(LONG, [90] * 10), SHORT: batch(SHORT, [3] * 90)})
    assert told == {
        "tokens of a row, of a seeded sample of 100": "p5 3, p25 3, p50 3, p75 3, p95 90, p99 90, max 90",
        f"tokens of {LONG}": "about 900, from 10 of its rows",
        f"tokens of {SHORT}": "about 270, from 90 of its rows",
    }


def test_a_sample_stands_for_every_row_of_its_source(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trlm_core.data.lengths.SAMPLED_ROWS", 40)
    monkeypatch.setattr("trlm_core.data.lengths.COUNTED_AT_ONCE", 7)
    told = checks(tiny_base, tmp_path, {LONG: batch(LONG, [91] * 1_000), SHORT: batch(SHORT, [3])})
    assert told[f"tokens of {LONG}"] == "about 91,000, from 40 of its rows"
    assert told[f"tokens of {SHORT}"] == "unknown: the sample has none of its rows"


def test_counts_of_a_filter_are_taken_as_they_are(tiny_base: Path, tmp_path: Path):
    counted = {name: batch(name, [1] * 4).append_column(TOKENS, pa.array([5, 6, 7, 8], pa.int32())) for name in (LONG, SHORT)}
    told = checks(tiny_base, tmp_path, counted)
    assert told["tokens of a row, of all rows"] == "p5 5, p25 5, p50 6, p75 7, p95 8, p99 8, max 8"
    assert (told[f"tokens of {LONG}"], told[f"tokens of {SHORT}"]) == ("26", "26")
