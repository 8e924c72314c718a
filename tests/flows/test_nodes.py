"""`trlm train` on two machines, as two commands on loopback that see one store: one checkpoint, one run, and the curve of one process."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import pytest

from tests.free_port import free_port

pytestmark = pytest.mark.long


def test_two_commands_train_one_stage(trlm: Any, tiny_recipe_file: Path, tmp_path: Path) -> None:
    meeting = f"127.0.0.1:{free_port()}"

    def train(store: Path, *more: str) -> Any:
        return trlm("train", str(tiny_recipe_file), "stage1_sft", "--store", str(store), "--device", "cpu", *more, timeout=1200)

    def history(store: Path) -> list[dict[str, Any]]:
        (path,) = store.glob("checkpoints/trlm-tiny/stage1_sft/*/history.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for store in (alone, shared):
        assert trlm("blend", str(tiny_recipe_file), "stage1_sft", "--store", str(store)).code == 0
    assert train(alone).code == 0
    with ThreadPoolExecutor(2) as threads:
        nodes = [("--nodes", "2", "--rendezvous", meeting, "--node-rank", rank) for rank in "01"]
        first, second = threads.map(lambda node: train(shared, *node), nodes)
    assert (first.code, second.code) == (0, 0), first.err[-3000:] + second.err[-3000:]
    assert second.out.splitlines()[-1] == "node 1 is done; node 0 writes the checkpoint"
    assert "step 10 of 10" in second.out
    for name in ("loss", "grad_norm", "useful_tokens"):
        assert [line[name] for line in history(shared)] == pytest.approx([line[name] for line in history(alone)], rel=1e-4, abs=1e-5), name
    client = mlflow.MlflowClient(f"sqlite:///{shared / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = client.search_runs(experiments, filter_string="tags.`trlm.kind` = 'checkpoints'")
    assert [run.info.status for run in runs] == ["FINISHED"], "the second node has no run of its own"
    again = train(shared, "--nodes", "2", "--rendezvous", meeting, "--node-rank", "1")
    assert again.code == 0, "of a finished stage, at once"
