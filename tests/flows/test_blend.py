"""`trlm blend --latest` from the loopback Hub: built, then Cached without a row read, then built anew where a source has changed."""

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from tests.loopback_hub.blends import write_recipe
from tests.loopback_hub.server import LoopbackHub
from tests.loopback_hub.smoltalk2 import PREFERENCES, SFT, SMOLTALK2, conversation_row, parquet_files, preferences, smoltalk2

STAGE = "stage2_sft_think"
ROWS, COUNT = 40, 25
THINK = "s1k_1.1_think"
CHECKS, DRIFT = "checks-stage2-sft-think", "drift-stage2-sft-think"


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        server.repositories.made(SMOLTALK2).commit(smoltalk2(ROWS))
        server.repositories.made(PREFERENCES).commit(preferences(ROWS))
        yield server


@pytest.fixture(scope="module")
def recipe_file(hub: LoopbackHub, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report's second stage, shrunk, from `main`."""
    path = write_recipe(tmp_path_factory.mktemp("recipe") / "report-tiny.yaml", hub, tiny_base, _shrink)
    tree = yaml.safe_load(path.read_text())
    for stage in tree["stages"]:
        for source in stage["blend"]["sources"]:
            source["revision"] = "main"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def _shrink(tree: dict[str, Any]) -> None:
    tree["stages"] = [{**stage, "parent": "base"} for stage in tree["stages"] if stage["name"] == STAGE]
    for stage in tree["stages"]:
        for source in stage["blend"]["sources"]:
            source |= {"num_examples": COUNT, "reported_share": None}


@pytest.fixture(scope="module")
def blends(trlm: Any, hub: LoopbackHub, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> dict[str, Any]:
    """What three of them said, the rows' requests that each made, their store, and the tables that Prefect got of them."""
    root = tmp_path_factory.mktemp("blends")
    others = {key: len(_tables(prefect_home, key)) for key in (CHECKS, DRIFT)}  # of blends of other tests, which have the same server
    clients = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(root / "hf")}
    done: dict[str, Any] = {"store": root / "store"}
    for name in ("first", "unchanged", "changed"):
        if name == "changed":
            rows = [conversation_row(THINK, number + 1) for number in range(ROWS)]
            hub.repositories.made(SMOLTALK2).commit(parquet_files(f"SFT/{THINK}", rows, SFT, 10, 2))
        before = len(hub.data_requests())
        ended = trlm("blend", str(recipe_file), STAGE, "--latest", "--store", str(root / "store"), "--json", **clients)
        assert ended.code == 0, ended.err[-4000:]
        done[name] = ended
        done[f"{name} requests"] = len(hub.data_requests()) - before
    return done | {key: _tables(prefect_home, key)[count:] for key, count in others.items()}


def test_an_unchanged_source_gives_the_blend_that_is_there_and_no_row_is_read(blends: dict[str, Any]) -> None:
    assert blends["first requests"] > 0
    assert "Cached: the sources give what is there already; no row was read" in blends["unchanged"].out
    assert blends["unchanged requests"] == 0
    assert blends["unchanged"].last_line == blends["first"].last_line


def test_a_changed_source_gives_a_new_version_and_says_what_drifted(blends: dict[str, Any]) -> None:
    first, changed = blends["first"].last_line, blends["changed"].last_line
    assert "Cached" not in blends["changed"].out
    assert (first["address"].split("/")[-1][:3], changed["address"].split("/")[-1][:3]) == ("001", "002")
    (drift,) = blends[DRIFT]
    differs = {row["what"] for row in drift}
    assert f"revision of {THINK}" in differs
    assert {what for what in differs if "of " in what and "revision" not in what} <= {f"tokens of {THINK}", *_of_rows(differs)}


def test_the_checks_are_a_table_in_prefect_and_in_mlflow(blends: dict[str, Any]) -> None:
    shown = blends[CHECKS]
    assert len(shown) == 2, "one a blend that was built"
    client = MlflowClient(f"sqlite:///{blends['store']}/mlflow.db")
    (experiment,) = [each for each in client.search_experiments() if each.name == "trlm"]
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == f"datasets/{STAGE}"]
    tables = [json.loads(Path(client.download_artifacts(run.info.run_id, "checks.json")).read_text()) for run in runs]
    logged = [[dict(zip(table["columns"], row, strict=True)) for row in table["data"]] for table in tables]
    assert sorted(map(json.dumps, logged)) == sorted(map(json.dumps, shown))
    assert {"check": "rows in all", "wanted": str(6 * COUNT), "got": str(6 * COUNT), "verdict": "passed"} in shown[0]


def _of_rows(differs: set[str]) -> set[str]:
    return {what for what in differs if what.startswith("tokens of a row")}


def _tables(home: Path, key: str) -> list[Any]:
    with sqlite3.connect(os.fspath(home / "prefect.db")) as database:
        if not database.execute("select 1 from sqlite_master where name = 'artifact'").fetchone():
            return []  # no flow has run yet
        rows = database.execute("select data from artifact where key = ? order by created", [key]).fetchall()
    tables = [json.loads(row[0]) for row in rows]
    return [json.loads(table) if isinstance(table, str) else table for table in tables]
