"""Blends of the tiny recipe, end to end: counts, order, provenance, the checks that stop a wrong one, and the card."""

import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
import yaml

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.base_model import make_base
from trlm_core.data.blend import BlendError, assemble, blend_spec, read_checks
from trlm_core.data.checks import run_checks
from trlm_core.data.rows import CONVERSATION, schema_of
from trlm_core.data.shards import read_shards, shard_paths, write_shards
from trlm_core.data.sources import read_source
from trlm_core.data.split import is_held_out
from trlm_core.recipes.schema import Recipe
from trlm_core.text.thoughts import parse_reply

STAGES = ["stage1_sft", "stage2_sft_think", "stage3_dpo"]


@pytest.fixture(params=STAGES)
def stage(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_blend_has_every_source_s_count(built: Any, stage: str):
    rows = _rows(built, stage)
    wanted = {source.name: source.num_examples for source in built.stages[stage].stage.blend.sources}
    assert Counter(row["source"] for row in rows) == wanted
    assert built.stages[stage].blend.counts["rows"] == sum(wanted.values())


def test_the_held_out_split_has_every_source_s_count_twice_for_pairs(built: Any, stage: str):
    rows = _rows(built, stage, "held_out")
    times = 2 if stage == "stage3_dpo" else 1
    assert Counter(row["source"] for row in rows) == {s.name: times * s.num_held_out for s in built.stages[stage].stage.blend.sources}


def test_a_blend_is_shuffled_across_its_sources(built: Any, stage: str):
    names = [row["source"] for row in _rows(built, stage)]
    changes = sum(a != b for a, b in itertools.pairwise(names))
    assert changes > len(names) / 4


def test_no_question_is_on_both_sides_and_each_is_on_the_side_of_its_hash(built: Any, stage: str):
    train, held_out = ({_question(row) for row in _rows(built, stage, split)} for split in ("train", "held_out"))
    assert not train & held_out
    assert not any(is_held_out(question) for question in train)
    assert all(is_held_out(question) for question in held_out)


def test_every_row_says_where_it_comes_from(built: Any, stage: str):
    rows = _rows(built, stage)
    places = [(row["_source_dataset"], row["_source_subset"], row["_source_split"], row["_source_row"]) for row in rows]
    assert len(set(places)) == len(rows)
    assert {place[0] for place in places} <= {"reasoning-gym", "chatterbot-corpus"}


def test_every_trace_is_one_closed_thought_and_no_stage_1_reply_has_one(built: Any):
    assert all(parse_reply(row["messages"][-1]["content"]) for row in _rows(built, "stage2_sft_think"))
    assert not any("think>" in row["messages"][-1]["content"] for row in _rows(built, "stage1_sft"))


def test_pairs_share_their_question_and_differ_in_their_answer(built: Any):
    for row in _rows(built, "stage3_dpo"):
        assert row["chosen"][0] == row["rejected"][0]
        chosen, rejected = (parse_reply(row[side][-1]["content"]) for side in ("chosen", "rejected"))
        assert chosen
        assert rejected
        assert chosen.answer != rejected.answer


def test_training_pairs_carry_only_the_seen_faults_and_half_the_held_out_ones_the_unseen(built: Any):
    blend = built.stages["stage3_dpo"].stage.blend
    assert {row["fault"] for row in _rows(built, "stage3_dpo")} <= set(blend.faults)
    held_out = [row["fault"] in blend.unseen_faults for row in _rows(built, "stage3_dpo", "held_out")]
    assert sum(held_out) * 2 == len(held_out)


def test_the_same_recipe_gives_the_same_bytes_in_another_store(built: Any, store: Store):
    again = _built_again(store, built.recipe, "stage2_sft_think")
    before = built.stages["stage2_sft_think"].blend
    assert again.fingerprint == before.fingerprint
    assert again.files == before.files, "every file's sha256"


def test_another_seed_gives_other_rows_in_another_order(built: Any, store: Store, changed_recipe: Callable[..., Recipe]):
    again = _built_again(store, changed_recipe(**{"stages.1.blend.seed": 77}), "stage2_sft_think")
    assert again.fingerprint != built.stages["stage2_sft_think"].blend.fingerprint
    questions = {row["messages"][0]["content"] for row in read_shards(store.folder(again), "train", CONVERSATION).to_pylist()}
    assert questions != {_question(row) for row in _rows(built, "stage2_sft_think")}


def test_another_learning_rate_is_the_same_blend(built: Any, changed_recipe: Callable[..., Recipe]):
    stage = built.stages["stage1_sft"]
    recipe = changed_recipe(**{"stages.0.training.learning_rate": 0.5})
    assert blend_spec(recipe, recipe.stages[0], stage.sources, built.base).fingerprint == stage.blend.fingerprint


def test_all_checks_pass_and_are_kept_beside_the_shards(built: Any, stage: str):
    checks = read_checks(built.folder(built.stages[stage].blend))
    assert all(check.passed for check in checks)
    assert built.stages[stage].blend.counts["checks_passed"] == sum(check.wanted is not None for check in checks) >= 7


def _doubled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [*rows[1:], {**rows[1], "_source_row": 10_000, "source": rows[0]["source"]}]


def _doubled_place(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    same = {key: rows[1][key] for key in ("_source_dataset", "_source_subset", "_source_split", "_source_row")}
    return [{**rows[0], **same}, *rows[1:]]


def _short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows[1:]


def _without(column: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda rows: [{**rows[0], column: None}, *rows[1:]]


def _replied(text: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    def replied(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        column = "rejected" if "rejected" in rows[0] else "messages"
        return [{**rows[0], column: [rows[0][column][0], {"role": "assistant", "content": text}]}, *rows[1:]]

    return replied


@pytest.mark.parametrize(
    ("stage", "corrupt", "check"),
    [
        ("stage1_sft", _doubled, "rows that stand twice"),
        ("stage3_dpo", _doubled, "rows that stand twice"),
        ("stage2_sft_think", _doubled_place, "rows that share their place in a source"),
        ("stage2_sft_think", _short, "rows in all"),
        ("stage1_sft", _without("_source_dataset"), "rows without provenance"),
        ("stage1_sft", _without("_source_subset"), "rows without provenance"),
        ("stage1_sft", _without("_source_split"), "rows without provenance"),
        ("stage3_dpo", _without("_source_row"), "rows without provenance"),
        ("stage1_sft", _without("source"), "rows without provenance"),
        ("stage2_sft_think", _replied("7"), "messages without one closed thought"),
        ("stage2_sft_think", _replied("<think>\n4 + 3 = 7.\n7"), "messages without one closed thought"),
        ("stage2_sft_think", _replied("<think>a</think>"), "messages without one closed thought"),
        ("stage2_sft_think", _replied("<think>a</think>b<think>c</think>d"), "messages without one closed thought"),
        ("stage3_dpo", _replied("7"), "rejected without one closed thought"),
        ("stage1_sft", _replied("<think>\na\n</think>\nb"), "messages with a thought where none is due"),
    ],
)
def test_a_corrupted_blend_fails_its_check(built: Any, tmp_path: Path, stage: str, corrupt: Callable, check: str):
    failed = _failed_after(built, tmp_path, stage, "train", corrupt)
    assert check in failed


def test_a_training_question_on_the_held_out_side_fails_its_check(built: Any, tmp_path: Path, stage: str):
    train = _rows(built, stage)
    failed = _failed_after(built, tmp_path, stage, "held_out", lambda rows: [*rows, train[3]])
    assert failed == ["questions on both sides of the split"]


def test_a_blend_that_fails_a_check_stops_with_wanted_and_got_and_leaves_nothing_finished(
    built: Any, store: Store, changed_recipe: Callable[..., Recipe]
):
    recipe = changed_recipe(**{"stages.1.blend.sources.0.num_examples": 17})
    sources = [_copied(built, store, source) for source in built.stages["stage2_sft_think"].sources]
    with pytest.raises(BlendError, match="rows of chain_sum-trace: wanted 17, got 16"):
        assemble(store, recipe, recipe.stage("stage2_sft_think"), sources, make_base(store, recipe.base))
    assert [manifest.group for manifest in store.manifests()] == ["bases", "sources", "sources"]


def test_the_card_s_metadata_is_yaml_that_names_both_splits(built: Any, stage: str):
    card = (built.folder(built.stages[stage].blend) / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert [file["split"] for file in metadata["configs"][0]["data_files"]] == ["train", "held_out"]
    assert metadata["license"] == ("other" if stage == "stage1_sft" else "apache-2.0")
    for source in built.stages[stage].stage.blend.sources:
        assert f"| {source.name} | " in card


def test_load_dataset_opens_the_folder_with_both_splits(built: Any, stage: str, tmp_path: Path):
    folder = built.folder(built.stages[stage].blend)
    loaded: Any = datasets.load_dataset(str(folder), cache_dir=str(tmp_path))
    assert {split: len(rows) for split, rows in loaded.items()} == {
        "train": len(_rows(built, stage)),
        "held_out": len(_rows(built, stage, "held_out")),
    }
    assert loaded["train"].to_list() == _rows(built, stage)


def test_shards_part_a_long_split_in_order_and_an_empty_split_keeps_its_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trlm_core.data.shards.ROWS_PER_SHARD", 10)
    rows = pa.table({"a": list(range(25))})
    names = [path.name for path in write_shards(tmp_path, "train", rows)]
    assert names == ["train-00000-of-00003.parquet", "train-00001-of-00003.parquet", "train-00002-of-00003.parquet"]
    assert read_shards(tmp_path, "train").equals(rows)
    write_shards(tmp_path, "held_out", rows.slice(0, 0))
    assert read_shards(tmp_path, "held_out").schema == rows.schema
    with pytest.raises(FileNotFoundError, match="wanted shards of test, got none"):
        shard_paths(tmp_path, "test")


def _rows(built: Any, stage: str, split: str = "train") -> list[dict[str, Any]]:
    made = built.stages[stage]
    return read_shards(built.folder(made.blend), split, schema_of(made.stage)).to_pylist()


def _question(row: dict[str, Any]) -> str:
    return (row.get("messages") or row["chosen"])[0]["content"]


def _built_again(store: Store, recipe: Recipe, name: str) -> Manifest:
    stage, base = recipe.stage(name), make_base(store, recipe.base)
    return assemble(store, recipe, stage, [read_source(store, recipe, stage, source, base) for source in stage.blend.sources], base)


def _copied(built: Any, store: Store, manifest: Manifest) -> Manifest:
    shutil.copytree(built.folder(manifest), store.root / manifest.address)
    return manifest


def _failed_after(built: Any, tmp_path: Path, stage: str, split: str, corrupt: Callable) -> list[str]:
    """Names of the checks that fail once the rows of a split have been corrupted."""
    folder = tmp_path / "blend"
    shutil.copytree(built.folder(built.stages[stage].blend), folder)
    made = built.stages[stage]
    before = read_shards(folder, split, schema_of(made.stage))
    for path in shard_paths(folder, split):
        Path(path).unlink()
    write_shards(folder, split, pa.Table.from_pylist(corrupt(before.to_pylist()), schema=before.schema), "json")
    rows = {name: count["train"] for name, count in made.blend.counts["sources"].items()}
    return [check.name for check in run_checks(folder, made.stage, rows) if not check.passed]
