"""Deploy, run from the command line, look: on a real server, MLflow and two workers."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from trlm_core.artifacts.store import Store

STAGES = ("stage1_sft", "stage2_sft_think", "stage3_dpo")
DEPLOYMENTS = {
    *("trlm/full-pipeline", "trlm/local", "evaluate/checkpoint", "reconcile/runs", "trm/smollm2-135m", "trm/smollm3-3b"),
    *(f"{flow}/stage-{number}" for flow in ("blend", "train") for number in (1, 2, 3)),
}
LONG = ("stages.stage1_sft.training.epochs=400",)  # minutes on a tiny model
CANCEL_SECONDS = 30


@pytest.fixture
def long_training(site: Any, tiny: dict[str, Any], tmp_path: Path, until: Callable[..., Any]) -> tuple[str, str]:
    """A pipeline and the training that it started elsewhere, which has made steps; on a store of its own."""
    where = {"store": str(tmp_path / "store")}
    flow_run = site.start("trlm/full-pipeline", recipe={**tiny, "settings": LONG}, where=where)
    history = lambda: list((tmp_path / "store").glob(".unfinished/*/history.jsonl"))  # noqa: E731
    until(lambda: history() and len(history()[0].read_text().splitlines()) > 5, 240, "stage 1 has made steps")
    (training,) = site.children(flow_run, "train")
    return flow_run, training["id"]


def test_deploying_twice_is_as_once(site: Any) -> None:
    def made() -> dict[str, Any]:
        deployments = {each["id"]: each["name"] for each in site.api("POST", "/deployments/filter")}
        automations = {each["id"]: (each["name"], each["updated"]) for each in site.api("POST", "/automations/filter")}
        pools = {each["id"]: (each["name"], each["concurrency_limit"]) for each in site.api("POST", "/work_pools/filter")}
        schedules = {
            each["id"]: sorted(schedule["slug"] for schedule in each["schedules"]) for each in site.api("POST", "/deployments/filter")
        }
        return {"deployments": deployments, "automations": automations, "pools": pools, "schedules": schedules}

    before = made()
    site.command("trlm", "deploy")
    assert made() == before
    assert sorted(before["pools"].values()) == [("cpu", None), ("mi300x", 1)]
    assert len(before["deployments"]) == len(DEPLOYMENTS)
    assert len(before["automations"]) == 2


def test_deploying_again_leaves_what_people_have_switched(site: Any) -> None:
    deployment = site.api("GET", "/deployments/name/blend/stage-2")
    switched = {each["slug"]: not each["active"] for each in deployment["schedules"]}
    for each in deployment["schedules"]:
        site.api("PATCH", f"/deployments/{deployment['id']}/schedules/{each['id']}", active=switched[each["slug"]])
    automation = site.api("POST", "/automations/filter")[0]
    site.api("PATCH", f"/automations/{automation['id']}", enabled=False)
    site.api("PATCH", "/work_pools/cpu", is_paused=True)
    try:
        site.command("trlm", "deploy")
        again = site.api("GET", "/deployments/name/blend/stage-2")
        assert {each["slug"]: each["active"] for each in again["schedules"]} == switched
        assert site.api("GET", f"/automations/{automation['id']}")["enabled"] is False
        assert site.api("GET", "/work_pools/cpu")["is_paused"] is True
    finally:
        site.api("PATCH", "/work_pools/cpu", is_paused=False)
        site.api("PATCH", f"/automations/{automation['id']}", enabled=True)


def test_the_run_form_has_descriptions_defaults_and_choices(site: Any) -> None:
    deployment = site.api("GET", "/deployments/name/train/stage-2")
    schema = deployment["parameter_openapi_schema"]
    assert schema["properties"]["stage"]["enum"] == list(STAGES)
    assert schema["properties"]["stage"]["description"] == "Chat SFT, SFT with thoughts, or DPO."
    assert deployment["parameters"] == {"stage": "stage2_sft_think", "recipe": {"name": "trlm-135m-local"}}
    choice, where = schema["definitions"]["RecipeChoice"]["properties"], schema["definitions"]["Where"]["properties"]
    assert choice["variant"]["anyOf"][0]["enum"] == ["report", "reference", "improved"]
    assert choice["name"]["default"] == "trlm-135m-local"
    for field in (*choice.values(), *where.values(), *schema["definitions"]["Execution"]["properties"].values()):
        assert field["description"]


def test_schedules_of_the_hub_recipe_are_off_and_reblends_never_pile_up(site: Any) -> None:
    deployment = site.api("GET", "/deployments/name/blend/stage-1")
    assert {each["slug"]: each["active"] for each in deployment["schedules"]} == {"local": True, "hub": False}
    assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    training = site.api("GET", "/deployments/name/train/stage-1")
    assert training["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_the_weekly_reblend_is_scheduled_and_the_hub_s_is_not(site: Any, until: Callable[..., Any]) -> None:
    deployment = site.api("GET", "/deployments/name/blend/stage-1")
    coming = {"deployment_id": {"any_": [deployment["id"]]}, "state": {"type": {"any_": ["SCHEDULED"]}}}
    runs = until(lambda: site.flow_runs(flow_runs=coming), 120, "the scheduler has made the coming runs")
    assert {run["parameters"]["recipe"]["name"] for run in runs} == {"trlm-135m-local"}


def test_the_pipeline_trains_on_the_other_pool_and_leaves_everything_in_the_store(site: Any, pipeline: str) -> None:
    runs = site.children(pipeline)
    trained = [run for run in runs if run["work_pool_name"] == "mi300x"]
    assert [run["parameters"]["stage"] for run in trained] == list(STAGES)
    assert {run["state"]["type"] for run in runs} == {"COMPLETED"}
    store = Store.open(site.environment["TRLM_STORE"])
    assert {"datasets", "checkpoints", "evals", "reports"} == {each.kind for each in store.manifests()}
    assert "goals reached; reports/" in site.state(pipeline)["message"]
    assert "checkpoints/trlm-tiny/stage2_sft_think/001-" in trained[1]["state"]["message"]


def test_the_other_side_is_handed_the_store_s_address_alone(site: Any, pipeline: str) -> None:
    parameters = site.children(pipeline, "train")[0]["parameters"]
    assert set(parameters) == {"stage", "recipe", "where"}
    assert parameters["where"]["store"] == site.environment["TRLM_STORE"]
    assert parameters["where"]["tracking_uri"] is None, "the worker's own"
    assert parameters["where"]["execution"]["device"] == "auto"
    assert "checkpoints/" not in json.dumps(parameters)
    assert "datasets/" not in json.dumps(parameters)


def test_artifacts_show_composition_curves_results_and_the_report(site: Any, pipeline: str) -> None:
    found = {each["key"]: each for each in site.api("POST", "/artifacts/filter", limit=200) if each["key"]}
    for stage in STAGES:
        assert "| loss |" in found[f"curve-{stage.replace('_', '-')}"]["data"]
        rows = json.loads(found[f"composition-{stage.replace('_', '-')}"]["data"])
        assert {"source", "rows", "share", "held out", "dropped"} == set(rows[0])
    assert "| stage 3 |" in found["result-table"]["data"]
    assert f"{site.environment['MLFLOW_TRACKING_URI']}/#/experiments/" in found["report"]["data"]


def test_mlflow_has_one_parent_and_its_children_across_both_workers(site: Any, pipeline: str) -> None:
    runs = [run for run in site.mlflow_runs() if run.data.tags["trlm.store"].endswith(":" + site.environment["TRLM_STORE"])]
    parents = {run.info.run_id for run in runs if run.data.tags["trlm.kind"] == "pipeline"}
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") in parents]
    assert {f"checkpoints/{stage}" for stage in STAGES} <= {run.info.run_name for run in children}
    assert len(runs) == len(children) + len(parents)


def test_a_rerun_starts_no_training(site: Any, tiny: dict[str, Any], pipeline: str) -> None:
    again = site.finished("trlm/full-pipeline", recipe=tiny)
    assert site.children(again, "train") == []


@pytest.mark.long
def test_the_local_deployment_builds_the_same_in_one_process(
    site: Any, tiny: dict[str, Any], pipeline: str, tmp_path: Path, outcome: Callable[[str], Any]
) -> None:
    flow_run = site.finished("trlm/local", recipe=tiny, where={"store": str(tmp_path / "store")})
    assert {run["work_pool_name"] for run in site.children(flow_run)} == {None}
    assert outcome(str(tmp_path / "store")) == outcome(site.environment["TRLM_STORE"])


def test_a_training_without_its_stage_dataset_says_what_to_run_first(site: Any, tiny: dict[str, Any], tmp_path: Path) -> None:
    state = site.wait(site.start("train/stage-2", stage="stage2_sft_think", recipe=tiny, where={"store": str(tmp_path / "empty")}))
    assert state["type"] == "FAILED"
    assert "got none finished; run blend/stage-2 with the same recipe and settings first" in state["message"]


def test_a_bad_setting_fails_at_once_with_its_reason(site: Any, tiny: dict[str, Any]) -> None:
    state = site.wait(site.start("trlm/full-pipeline", recipe={**tiny, "settings": ["stages.stage1_sft.training.lr=1"]}))
    assert state["type"] == "FAILED"
    assert "learning_rate" in state["message"]
    assert "got 'lr'" in state["message"]


def test_cancelling_the_pipeline_ends_its_training_within_seconds(
    site: Any, long_training: tuple[str, str], until: Callable[..., Any], tmp_path: Path
) -> None:
    pipeline, training = long_training
    assert site.trainers()
    site.command("prefect", "flow-run", "cancel", pipeline)
    until(lambda: not site.trainers(), CANCEL_SECONDS, "the trainer is gone")
    assert site.wait(pipeline)["type"] == "CANCELLED"
    assert site.wait(training)["type"] == "CANCELLED"
    assert_nothing_is_left(site, str(tmp_path / "store"), until)


def test_a_second_pipeline_is_told_who_holds_the_store_and_cancelling_the_training_cancels_the_first(
    site: Any, long_training: tuple[str, str], tiny: dict[str, Any], until: Callable[..., Any], tmp_path: Path
) -> None:
    pipeline, training = long_training
    second = site.wait(site.start("trlm/full-pipeline", recipe=tiny, where={"store": str(tmp_path / "store")}))
    assert second["type"] == "FAILED"
    assert f"store {tmp_path / 'store'}: wanted it free, got a run that holds it" in second["message"]
    assert site.state(training)["type"] == "RUNNING"

    site.command("prefect", "flow-run", "cancel", training)
    until(lambda: not site.trainers(), CANCEL_SECONDS, "the trainer is gone")
    assert site.wait(training)["type"] == "CANCELLED"
    state = site.wait(pipeline)
    assert state["type"] == "CANCELLED"
    assert "train/stage-1" in state["message"]
    assert_nothing_is_left(site, str(tmp_path / "store"), until)


def test_down_ends_every_process_and_up_brings_all_back(start_site: Callable[..., Any]) -> None:
    site = start_site("--pool", "cpu")
    processes = [service.process for service in site.services.values()]
    assert len(processes) == 3
    server = psutil.Process(site.services["mlflow"].process.pid)
    children = server.children(recursive=True)
    assert children, "MLflow answers from a child"
    server.kill()
    site.command("trlm", "down", "--home", str(site.home))
    assert not any(process.is_alive() for process in processes)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE], "nor what a killed one left"
    assert site.services == {}


def test_a_taken_port_is_one_clear_line(site: Any, tmp_path: Path) -> None:
    port = site.environment["PREFECT_API_URL"].split(":")[2].split("/")[0]
    done = subprocess.run(
        [site.bin / "trlm", "up", "--home", str(tmp_path / "other"), "--prefect-port", port],
        capture_output=True, text=True, env=site.environment, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip() == f"trlm: prefect: wanted port {port}, got it taken by another program; choose another with --prefect-port"


def test_up_with_other_options_says_what_runs_with_which(site: Any, tmp_path: Path) -> None:
    options = [word if word != site.environment["TRLM_STORE"] else str(tmp_path / "other") for word in site.options]
    done = subprocess.run([site.bin / "trlm", "up", *options], capture_output=True, text=True, env=site.environment, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"wanted store {tmp_path / 'other'}" in line
    assert f"got services that run with store {site.environment['TRLM_STORE']}" in line
    assert line.endswith("`trlm down` first")


def test_a_database_that_cannot_be_reached_is_said_at_once_with_the_server_s_own_words(start_site: Callable[..., Any], port: Any) -> None:
    with pytest.raises(AssertionError, match=r"trlm: prefect: wanted an answer at .*, got its end"):
        start_site("--database-url", f"postgresql+asyncpg://nobody@127.0.0.1:{port()}/none")


def assert_nothing_is_left(site: Any, store: str, until: Callable[..., Any]) -> None:
    def open_ends() -> list[str]:
        mlflow = [
            run.info.run_name
            for run in site.mlflow_runs()
            if run.data.tags["trlm.store"].endswith(f":{store}") and run.info.status == "RUNNING"
        ]
        alive = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
        return mlflow + [run["name"] for run in site.flow_runs(flow_runs=alive) if run["flow_id"] != site.flow_id("reconcile")]

    until(lambda: not open_ends(), 90, "no run says Running")
    statuses = {run.info.run_name: run.info.status for run in site.mlflow_runs() if run.data.tags["trlm.store"].endswith(f":{store}")}
    assert statuses["checkpoints/stage1_sft"] == "KILLED"
    pool = site.api("POST", "/work_pools/mi300x/concurrency_status")
    assert pool["active_slots"] == 0
