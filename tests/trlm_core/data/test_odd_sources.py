"""Sources and rows that are not as one expects them: filtered to the last, mixed, blank, long. Each is a blend or one clear error."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.base_model import make_base
from trlm_core.data.blend import BlendError, assemble, blend_spec
from trlm_core.data.checks import ONE_THOUGHT, ROUNDED, Check
from trlm_core.data.reading import read_picks
from trlm_core.data.revisions import files_revision
from trlm_core.data.sampling import Pick
from trlm_core.data.shards import iter_shards
from trlm_core.data.sources import read_source
from trlm_core.data.split_files import Part, SplitFile
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import Recipe, TakenSource
from trlm_core.text.thoughts import parse_reply

FILTERS = {"turns": False, "thoughts": None, "max_tokens": None, "exact_duplicates": True, "near_duplicates": None}
FILTERS |= {"contamination": None, "spares": 0.5}
TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
DIALOGS = {"kind": "dialogs", "num_examples": 20, "num_held_out": 2}
Blended = tuple[Manifest, Path]


def row(question: str, reply: str = "x", role: str = "assistant") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": role, "content": reply}]}


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A source of kind files with these rows, of which `count` are taken."""

    def written(name: str, rows: Sequence[dict[str, Any]], count: int, kind: str = "parquet", **changed: Any) -> dict[str, Any]:
        path = tmp_path / f"{name}.{kind}"
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema([("messages", TURNS)])), path, row_group_size=1_000)
        else:
            path.write_text("".join(json.dumps(each) + "\n" for each in rows))
        taken = {"kind": "files", "name": name, "address": str(path), "format": kind, "revision": files_revision(str(path))}
        taken |= {"num_examples": count, "sampling": "head", "allow_short": False, "drop": [], "rename": {}}
        return {**taken, "reported_share": None, "answers_by": None, **changed}

    return written


@pytest.fixture
def blended(changed_recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Blended]:
    """Stage 1's blend of these sources, and its folder."""

    def made(sources: Sequence[dict[str, Any]], filters: dict[str, Any] | None = None, parquet_from: int = 0) -> Blended:
        changes = {"sources": list(sources), "filters": filters, "parquet_from": parquet_from, "max_tokens": None}
        recipe = changed_recipe(**{f"stages.0.blend.{key}": value for key, value in changes.items()})
        store, stage = Store.open(tmp_path / "store"), recipe.stages[0]
        base = make_base(store, recipe.base)
        manifest = assemble(store, recipe, stage, [read_source(store, recipe, stage, each, base) for each in stage.blend.sources], base)
        return manifest, store.folder(manifest)

    return made


def test_a_source_whose_spare_rows_end_it_is_blended(source: Callable, blended: Callable):
    long = [row(f"b{number}", "abcdefgh " * 500) for number in range(1_600)]
    manifest, _ = blended([source("a", [row(f"a{number}") for number in range(1_500)], 1_000), source("b", long, 1_000)], FILTERS)
    assert {name: count["train"] for name, count in manifest.counts["sources"].items()} == {"a": 1_000, "b": 1_000}


def test_a_source_that_is_made_here_stands_beside_a_taken_one(source: Callable, blended: Callable):
    manifest, _ = blended([source("a", [row(f"a{number}") for number in range(200)], 100), DIALOGS], FILTERS)
    assert manifest.counts["rows"] == 120


@pytest.mark.parametrize("max_tokens", [None, 500])
def test_a_first_batch_of_which_no_row_is_sound_is_passed_over(source: Callable, blended: Callable, max_tokens: int | None):
    rows = [row(f"a{number}", role="tool" if number < 1_000 else "assistant") for number in range(1_200)]
    manifest, _ = blended([source("a", rows, 100)], {**FILTERS, "max_tokens": max_tokens})
    assert manifest.counts["sources"]["a"]["dropped"] == {"unknown_role": 1_000}


def test_a_blend_of_no_rows_is_one_clear_error(source: Callable, blended: Callable):
    with pytest.raises(BlendError, match="stage1_sft: wanted rows, got none of a"):
        blended([source("a", [row("a", role="tool")], 100, allow_short=True)])


def test_a_line_of_megabytes_goes_through_json_lines_and_back(source: Callable, blended: Callable, changed_recipe: Callable):
    text = "seven letters " * 300_000
    manifest, folder = blended([source("a", [row("a", text), row("b")], 2, "json")], parquet_from=100)
    assert manifest.counts["rows"] == 2
    schema = pa.schema([("messages", TURNS), ("source", pa.string()), ("_source_dataset", pa.string()), ("_source_subset", pa.string())])
    schema = schema.append(pa.field("_source_split", pa.string())).append(pa.field("_source_row", pa.int64()))
    back = [each for batch in iter_shards(folder, "train", schema) for each in batch.to_pylist()]
    assert sorted(each["messages"][1]["content"] for each in back) == [text, "x"]


def test_long_rows_make_smaller_groups_of_rows(source: Callable, blended: Callable):
    _, folder = blended([source("a", [row(f"a{number}", "abcdefgh " * 9_000) for number in range(500)], 500)])
    (path,) = folder.glob("train-*.parquet")
    sizes = [pq.read_metadata(path).row_group(number).num_rows for number in range(pq.read_metadata(path).num_row_groups)]
    assert sum(sizes) == 500
    assert max(sizes) < 250, "16 MiB hold about 200 of them"


def test_every_recipe_s_counts_have_the_shares_that_it_reports():
    recipe = load_recipe("trlm-135m", variant="report")
    for stage in recipe.stages:
        total = sum(source.num_examples for source in stage.blend.sources)
        for source in stage.blend.sources:
            if isinstance(source, TakenSource) and source.reported_share is not None:
                got = f"{100 * source.num_examples / total:.2f}"
                assert Check(name=source.name, wanted=str(source.reported_share), got=got, within=ROUNDED).passed, (source.name, got)


@pytest.mark.parametrize(("got", "passes"), [("3.45", True), ("3.59", True), ("3.61", False), ("3.39", False)])
def test_a_share_may_differ_by_the_report_s_rounding(got: str, passes: bool):
    assert Check(name="share", wanted="3.5", got=got, within=ROUNDED).passed is passes


def test_duckdb_and_the_filter_agree_on_what_a_thought_is_whatever_its_blanks():
    draw = random.Random(0)
    blanks = [
        "a",
        " ",
        "\n",
        "\t",
        "\x0b",
        "\x0c",
        "\r",
        "\x1c",
        "\x85",
        "\u00a0",
        "\u2003",
        "\u2028",
        "\u3000",
        "\u200b",
        "\ufeff",
        "<",
        "\x00",
    ]

    def some(parts: Sequence[str]) -> str:
        return "".join(draw.choices(parts, k=draw.randrange(4)))

    texts = [f"{some([*blanks, '<think>'])}<think>{some(blanks)}</think>{some([*blanks, '</think>'])}" for _ in range(40_000)]
    with duckdb.connect() as db:
        db.from_arrow(pa.table({"reply": texts})).create_view("replies")
        got = db.execute(f"select {ONE_THOUGHT} from replies").fetchall()
    wanted = [parse_reply(text) is not None for text in texts]
    assert [bool(each) for (each,) in got] == wanted
    assert 0.05 < sum(wanted) / len(wanted) < 0.95, "both kinds are among them"


def test_a_blend_is_of_its_tokenizer_and_its_variant(tiny_recipe: Recipe):
    stage, base = tiny_recipe.stages[0], Named("base", "0" * 64)
    spec = blend_spec(tiny_recipe, stage, [], base)
    assert blend_spec(tiny_recipe, stage, [], base).fingerprint == spec.fingerprint
    assert blend_spec(tiny_recipe, stage, [], Named("base", "1" * 64)).fingerprint != spec.fingerprint
    other = tiny_recipe.model_copy(update={"variant": "another"})
    assert blend_spec(other, stage, [], base).fingerprint != spec.fingerprint


def test_a_part_that_cannot_tell_its_size_takes_no_room_away():
    for _ in range(20):
        with pytest.raises(OSError, match="gone"):
            list(read_picks([Pick(Part(_Broken("hf://gone"), 0, 0, 1), None)], ["messages"]))
    from trlm_core.data.reading import AHEAD, _room

    taken = [_room.acquire(blocking=False) for _ in range(AHEAD)]
    for _ in range(sum(taken)):
        _room.release()
    assert all(taken)


class Named:
    def __init__(self, name: str, fingerprint: str) -> None:
        self.name, self.fingerprint = name, fingerprint


class _Broken(SplitFile):
    def part_bytes(self, number: int, columns: Sequence[str]) -> int:
        raise OSError("gone")
