"""Two machines, as two commands on loopback with a process each: the curve of one, and errors that tell what does not fit."""

import json
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.free_port import free_port
from tests.processes import running, variable_of
from trlm_core.recipes.execution import Execution, check_group
from trlm_core.training import launch
from trlm_core.training.checkpoint import read_history, read_lines
from trlm_core.training.errors import GroupError, RendezvousError, TrainingKilledError
from trlm_core.training.job import TrainingJob
from trlm_core.training.launch import run_training
from trlm_core.training.saves import newest_step
from trlm_core.training.watch import Progress


def node_of(job: TrainingJob, rank: int, port: int, scratch: Path, **execution: Any) -> TrainingJob:
    """The job of one machine: progress and errors in a folder of its own, the workspace in the store that both see."""
    keys = {"nodes": 2, "node_rank": rank, "rendezvous": f"127.0.0.1:{port}", **execution}
    scratch.mkdir(exist_ok=True)
    own = {"progress": scratch / "progress.json", "error_files": scratch}
    return job.model_copy(update={"execution": job.execution.model_copy(update=keys), **own})


def run_both(*nodes: TrainingJob) -> list[list[Progress]]:
    """What each launcher saw. Raises what the first that fails raises."""
    seen: list[list[Progress]] = [[] for _ in nodes]
    with ThreadPoolExecutor(len(nodes)) as threads:
        runs = [threads.submit(run_training, lambda scratch, job=job: job, each.append) for job, each in zip(nodes, seen, strict=True)]
        errors = [run.exception() for run in runs]
    if failed := [error for error in errors if error is not None]:
        raise failed[0]
    return seen


@pytest.fixture
def one(make_job: Callable[..., TrainingJob], sft_training_of: Callable) -> list[dict[str, Any]]:
    job = make_job(sft_training_of(neftune_noise_alpha=5.0), tokens=150)
    run_training(lambda scratch: job, lambda progress: None)
    return read_history(job.workspace)


def test_two_nodes_give_the_curve_of_one_process_also_over_a_save_and_with_a_budget_that_differs(
    one: list[dict[str, Any]], make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path
):
    job = make_job(sft_training_of(neftune_noise_alpha=5.0), tokens=150)
    for done_before in (0, 6):  # the second time from the save of step 6
        port = free_port()
        first = node_of(job, 0, port, tmp_path / f"first-{done_before}", save_steps=6)
        second = node_of(job, 1, port, tmp_path / f"second-{done_before}", tokens_per_micro_batch=90, save_steps=5)
        seen = run_both(first, second)
        assert newest_step(job.workspace / "saves") == 6, "the first node's execution holds for both"
        assert [{progress.done_before for progress in each} for each in seen] == [{done_before}] * 2
        assert [each[-1].step for each in seen] == [12, 12], "each launcher sees its own machine's progress"
        two = read_history(job.workspace)
        for name in ("loss", "grad_norm", "entropy", "mean_token_accuracy", "useful_tokens", "learning_rate"):
            assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-4, abs=1e-5), name
    assert (job.output / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("fingerprint", "processes", "said"),
    [
        ("77e0d4aa", 1, "fingerprint: wanted one in all 2 processes of the group, got 3f2a9c1b3f2a, 77e0d4aa77e0; start"),
        ("3f2a9c1b", 2, "processes: wanted one in all 3 processes of the group, got 1, 2, 2; start"),
    ],
)
def test_nodes_that_would_train_different_things_say_so_before_the_first_step(
    fingerprint: str, processes: int, said: str, make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path
):
    job, port = make_job(sft_training_of(), tokens=150), free_port()
    other = job.model_copy(update={"fingerprint": fingerprint * 8})
    with pytest.raises(GroupError, match=said):
        run_both(node_of(job, 0, port, tmp_path / "first"), node_of(other, 1, port, tmp_path / "second", processes=processes))
    assert read_history(job.workspace) == []


@pytest.mark.parametrize("has", ["none", "another of its step"])
def test_a_node_that_does_not_see_the_first_one_s_save_ends_all_and_they_say_which_store_they_want(
    has: str, make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path
):
    job, port = make_job(sft_training_of(), tokens=150), free_port()
    saving = job.model_copy(update={"execution": job.execution.model_copy(update={"save_steps": 6})})
    run_training(lambda scratch: saving, lambda progress: None)
    own = tmp_path / "own"
    if has != "none":
        shutil.copytree(job.workspace / "saves", own / "saves")
        listed = own / "saves" / "step-000006" / "save.json"
        listed.write_text(json.dumps({**json.loads(listed.read_text()), "loss": 9.0}))
    blind = node_of(job, 1, port, tmp_path / "second").model_copy(update={"workspace": own})
    with ThreadPoolExecutor(2) as threads:
        nodes = (node_of(job, 0, port, tmp_path / "first"), blind)
        errors = [*threads.map(lambda node: failure_of(node), nodes)]
    assert [type(error) for error in errors] == [GroupError, GroupError]
    for error in errors:
        assert "wanted the first node's save of step 6 on every node, got none or another on one; use a store whose" in str(error)


def failure_of(job: TrainingJob, on_progress: Callable[[Progress], None] = lambda progress: None) -> Exception | None:
    try:
        run_training(lambda scratch: job, on_progress)
    except Exception as error:
        return error
    return None


def test_a_node_whose_first_does_not_come_says_where_it_waited(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launch, "SECONDS_TO_MEET", 3)
    job, port = make_job(sft_training_of(), tokens=150), free_port()
    with pytest.raises(RendezvousError, match=rf"rendezvous 127\.0\.0\.1:{port}: wanted 2 nodes there within 3 s, node 1 did not"):
        run_training(lambda scratch: node_of(job, 1, port, tmp_path / "second"), lambda progress: None)


def test_a_first_node_whose_port_is_taken_says_so_at_once(make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path):
    job = make_job(sft_training_of(), tokens=150)
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(GroupError, match=rf"rendezvous 127\.0\.0\.1:{port}: wanted a free port on node 0, it is taken; choose another"):
            run_training(lambda scratch: node_of(job, 0, port, tmp_path / "first"), lambda progress: None)


def test_nodes_with_histories_of_their_own_skip_the_same_steps(
    one: list[dict[str, Any]], make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path
):
    """The second has a workspace of its own, as of a bucket's store, and there the small gradients of what it once trained alone."""
    training = sft_training_of(neftune_noise_alpha=5.0, bad_steps="skip", max_grad_norm_ratio=20.0)
    job, port, own = make_job(training, tokens=150), free_port(), tmp_path / "own"
    own.mkdir()
    (own / "history.jsonl").write_text("".join(f'{{"step": {step}, "grad_norm": 0.001, "loss": 1.0}}\n' for step in range(1, 21)))
    second = node_of(job, 1, port, tmp_path / "second").model_copy(update={"workspace": own})
    run_both(node_of(job, 0, port, tmp_path / "first"), second)
    assert [line["loss"] for line in read_history(job.workspace)] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    assert read_lines(job.workspace / "skipped_steps.jsonl") == []


def test_a_save_needs_room_on_the_first_node_s_disk_alone_and_leaves_nothing_on_the_other_s(
    make_job: Callable[..., TrainingJob], sft_training_of: Callable, small_disk: Callable[[int], Path], tmp_path: Path
):
    job, port = make_job(sft_training_of(), tokens=150), free_port()
    own = small_disk(400_000) / "workspace"
    own.mkdir()
    second = node_of(job, 1, port, tmp_path / "second").model_copy(update={"workspace": own})
    run_both(node_of(job, 0, port, tmp_path / "first", save_steps=6), second)
    assert newest_step(job.workspace / "saves") == 6
    assert not (own / "aside").exists()


def test_a_first_node_whose_second_is_killed_can_go_on(make_job: Callable[..., TrainingJob], sft_training_of: Callable, tmp_path: Path):
    job, port = make_job(sft_training_of(epochs=10_000), tokens=150), free_port()
    nodes = (node_of(job, 0, port, tmp_path / "first"), node_of(job, 1, port, tmp_path / "second"))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(failure_of, nodes[0])
        second = threads.submit(failure_of, nodes[1], kill_rank_1)
    assert [type(each.result()) for each in (first, second)] == [TrainingKilledError, TrainingKilledError]
    assert "wanted every process of the group, got one that is gone" in str(first.result())


def kill_rank_1(progress: Progress) -> None:
    for worker in running("trlm_core.training.worker"):
        if progress.step and variable_of(worker, "RANK") == "1":
            worker.kill()


@pytest.mark.parametrize(
    ("execution", "said"),
    [
        ({"processes": 3}, "processes: wanted a number that divides the 8 sequences of a step, got 3$"),
        ({"processes": 2, "nodes": 8, "rendezvous": "a:1"}, "processes: .* got 2 on each of 8 nodes$"),
        ({"sharding": "full"}, "sharding: wanted more than one process to hold a part each, got 1; set processes, or sharding none$"),
        ({"nodes": 2, "node_rank": 2, "rendezvous": "a:1"}, "node_rank: wanted 0 to 1 of 2 nodes, got 2$"),
        ({"nodes": 2}, "rendezvous: wanted HOST:PORT of the first of 2 nodes, got none$"),
        ({"nodes": 2, "rendezvous": "gpu0"}, "rendezvous: wanted HOST:PORT of the first of 2 nodes, got gpu0$"),
    ],
)
def test_a_group_that_cannot_work_is_named_before_it_is_started(execution: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        check_group(Execution(**execution), 8)


@pytest.mark.parametrize("execution", [{"processes": 8}, {"processes": 2, "nodes": 4, "node_rank": 3, "rendezvous": "gpu0:29500"}])
def test_a_group_that_can_work_is_let_through(execution: dict[str, Any]):
    check_group(Execution(**execution), 8)
