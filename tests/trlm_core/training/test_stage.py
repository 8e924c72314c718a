"""A stage in the store: taken up where its trainer was killed, its reference log-probs made once, its workspace gone at the end."""

import dataclasses
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.free_port import free_port
from tests.processes import running
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.recipes.execution import Execution, check_group
from trlm_core.recipes.schema import Recipe, Stage
from trlm_core.tracking import RunAddress, Tracker
from trlm_core.training import node as node_module
from trlm_core.training.checkpoint import read_history
from trlm_core.training.errors import TrainingKilledError
from trlm_core.training.job import TrainingJob
from trlm_core.training.node import Node
from trlm_core.training.reference import reference_spec
from trlm_core.training.specs import checkpoint_spec
from trlm_core.training.stage import StageTraining, on_this_node
from trlm_core.training.watch import Progress

EXECUTION = Execution(device="cpu", threads=1, tokens_per_micro_batch=60, save_steps=3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def run(tmp_path: Path) -> RunAddress:
    return Tracker(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", artifacts=tmp_path / "mlruns").start("stage", params={}, tags={})


@pytest.fixture
def training_of(store: Store, run: RunAddress, tiny_recipe: Recipe, make_job: Callable[..., TrainingJob]) -> Callable[..., StageTraining]:
    """`training_of(training, on_progress)`: of a stage whose dataset and start lie finished in the store."""

    def made(
        training: Any, on_progress: Callable[[Progress], None], on_save: Callable[[Path, int], None] = lambda f, s: None
    ) -> StageTraining:
        pairs = training.trainer == "dpo"
        stage: Stage = tiny_recipe.stages[2 if pairs else 0].model_copy(update={"training": training})
        job = make_job(training)
        dataset, start = _kept(store, "datasets", job.dataset), _kept(store, "checkpoints", job.parent)
        return StageTraining(store, tiny_recipe, stage, dataset, start, EXECUTION, run, on_progress, on_save)

    return made


def _kept(store: Store, kind: Any, folder: Path) -> Manifest:
    def build(made: Path) -> dict[str, Any]:
        shutil.copytree(folder, made, dirs_exist_ok=True)
        return {}

    return store.make(Spec(kind, "literal", folder.name, {"made_by": "a test"}, {}), build)


def kill_at(step: int) -> Callable[[Progress], None]:
    def watch(progress: Progress) -> None:
        if progress.phase == "training" and progress.step >= step:
            for process in running("trlm_core.training.worker"):
                process.kill()

    return watch


def test_a_killed_stage_goes_on_from_its_last_save_and_leaves_no_workspace(
    store: Store, training_of: Callable[..., StageTraining], sft_training_of: Callable
):
    training = sft_training_of(epochs=40)
    saved: list[int] = []
    killed = training_of(training, kill_at(8), lambda folder, step: saved.append(step) if (folder / "model.safetensors").exists() else None)
    with pytest.raises(TrainingKilledError):
        killed.checkpoint()
    spec = checkpoint_spec(killed.recipe, killed.stage, killed.dataset, killed.start)
    assert store.find(spec) is None
    assert saved, "whoever waits for saves is told of them"
    seen: list[Progress] = []
    manifest = training_of(training, seen.append).checkpoint()
    assert seen[0].done_before >= saved[-1] > 0
    assert (manifest.counts["steps"], manifest.counts["skipped_steps"]) == (240, 0)
    assert [line["step"] for line in read_history(store.folder(manifest))] == list(range(1, 241))
    assert (store.folder(manifest) / "samples.jsonl").exists()
    assert not any((store.root / ".unfinished").iterdir())


def test_reference_log_probs_are_an_artifact_that_another_rate_reuses(
    store: Store, training_of: Callable[..., StageTraining], dpo_training_of: Callable
):
    phases: list[list[str]] = []
    for rate in (1e-3, 2e-3):
        seen: list[Progress] = []
        stage = training_of(dpo_training_of(epochs=1, learning_rate=rate), seen.append)
        stage.checkpoint()
        phases.append(sorted({progress.phase for progress in seen}))
    found = store.find(reference_spec(stage.recipe, stage.stage, stage.dataset, stage.start))
    assert found is not None
    assert found.counts == {"pairs": 48}
    assert phases == [["reference", "training"], ["training"]]


@pytest.mark.long
def test_a_second_node_waits_for_reference_log_probs_comes_back_for_a_second_try_and_leaves_nothing(
    store: Store, training_of: Callable[..., StageTraining], dpo_training_of: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(node_module, "SECONDS_BETWEEN_TRIES", 2.0)
    meeting = {"nodes": 2, "rendezvous": f"127.0.0.1:{free_port()}"}
    seen: list[list[Progress]] = [[], []]
    execution = EXECUTION.model_copy(update=meeting)
    killed = dataclasses.replace(training_of(dpo_training_of(epochs=20), kill_at(8)), execution=execution)
    first = dataclasses.replace(killed, on_progress=seen[0].append)
    further = execution.model_copy(update={"node_rank": 1})
    node = Node(store, killed.recipe, killed.stage, killed.dataset, killed.start, further, seen[1].append)
    with ThreadPoolExecutor(1) as threads:
        part = threads.submit(node.take_part)
        with pytest.raises(TrainingKilledError):
            killed.checkpoint()
        manifest = first.checkpoint()
        assert part.result() is None
    assert {progress.phase for progress in seen[1]} == {"training"}, "the first computes the reference log-probs alone"
    assert seen[0][-1].done_before == seen[1][-1].done_before > 0
    assert seen[0][-1].step == seen[1][-1].step == manifest.counts["steps"] == 120
    assert not any((store.root / ".unfinished").iterdir())
    node.take_part()  # of a stage that is finished: nothing, at once


@pytest.mark.long
def test_a_second_node_stays_until_the_checkpoint_is_there_also_where_the_first_is_gone_before_it_wrote_it(
    store: Store, training_of: Callable[..., StageTraining], sft_training_of: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(node_module, "SECONDS_TO_WRITE", 3.0)
    meeting = {"nodes": 2, "rendezvous": f"127.0.0.1:{free_port()}"}
    execution = EXECUTION.model_copy(update=meeting)
    first = dataclasses.replace(training_of(sft_training_of(epochs=1), lambda progress: None), execution=execution)
    spec = checkpoint_spec(first.recipe, first.stage, first.dataset, first.start)
    seen: list[Progress] = []
    node = Node(store, first.recipe, first.stage, first.dataset, first.start, execution.model_copy(update={"node_rank": 1}), seen.append)
    with ThreadPoolExecutor(1) as threads:
        part = threads.submit(node.take_part)
        first._run("checkpoint", spec, execution, store.workspace(spec), None)  # and nobody writes its manifest
        assert store.find(spec) is None
        first.checkpoint()
        assert part.result() is None
    assert store.find(spec) is not None
    assert [progress.done_before for progress in seen if progress.step == 6] == [0, 3], "it took part in both tries"


@pytest.mark.parametrize(("processes", "sharding"), [(1, "none"), (2, "full")])
def test_what_the_first_of_two_nodes_does_alone_it_shards_over_its_own_processes(processes: int, sharding: str):
    both = EXECUTION.model_copy(update={"nodes": 2, "rendezvous": "gpu0:29500", "sharding": "full", "processes": processes})
    alone = on_this_node(both)
    check_group(alone, 8)
    assert (alone.nodes, alone.processes, alone.sharding) == (1, processes, sharding)


def test_a_further_node_does_not_build_what_the_first_holds(training_of: Callable[..., StageTraining], sft_training_of: Callable):
    further = EXECUTION.model_copy(update={"nodes": 2, "node_rank": 1, "rendezvous": "127.0.0.1:29500"})
    stage = dataclasses.replace(training_of(sft_training_of(), print), execution=further)
    with pytest.raises(ValueError, match="node_rank: wanted 0, which holds the store, got 1"):
        stage.checkpoint()
