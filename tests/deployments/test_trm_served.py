"""The deployments of the TRM track on a real server: a run to its report, and one that is cancelled in the middle of a phase."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.entities import Run

from tests.trlm_core.trm.tiny_recipe import tiny_trm_tree
from trlm_core.artifacts.store import Store
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.training.checkpoint import read_history
from trlm_core.training.saves import SAVES, newest_step
from trlm_core.trm_lineage import TRMLineage

pytestmark = pytest.mark.long
TRAININGS = {"base", "phase1", "nonrecursive", "pause", "direct-tuned", "phase2", "phase2b", "phase3"}
CANCEL_SECONDS = 30
LONGER = "phase2.training.steps=3000"


@pytest.fixture(scope="module")
def tiny_trm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The parameter `recipe` of a deployment."""
    path = tmp_path_factory.mktemp("recipe") / "trm-tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_trm_tree(), sort_keys=False))
    return {"name": str(path)}


@pytest.fixture(scope="module")
def finished(site: Any, tiny_trm: dict[str, str]) -> str:
    """Id of a flow run of trm/smollm2-135m to its end, on the site's own store."""
    return site.finished("trm/smollm2-135m", recipe=tiny_trm)


def runs_of_trm(site: Any) -> list[Run]:
    """MLflow's of the tiny recipe: pipelines, and what belongs to them."""
    runs = site.mlflow_runs()
    parents = {run.info.run_id for run in runs if run.info.run_name == "trm-tiny"}
    return [run for run in runs if run.info.run_id in parents or run.data.tags.get("mlflow.parentRunId") in parents]


def test_a_deployment_leaves_all_that_its_recipe_leads_to(site: Any, finished: str, tiny_trm: dict[str, str]) -> None:
    foretold = {spec.fingerprint for spec in TRMLineage(load_trm_recipe(tiny_trm["name"])).specs.values()}
    in_store = {manifest.fingerprint for manifest in Store.open(site.environment["TRLM_STORE"]).manifests()}
    assert foretold <= in_store
    assert "reports/trm-tiny/report/001-" in site.state(finished)["message"]
    (flow_run,) = site.flow_runs(flow_runs={"id": {"any_": [finished]}})
    assert flow_run["work_pool_name"] == "mi300x"


def test_its_report_and_its_gates_are_artifacts_of_the_flow_run(site: Any, finished: str) -> None:
    artifacts = site.api("POST", "/artifacts/filter", artifacts={"flow_run_id": {"any_": [finished]}})
    (report,) = [each for each in artifacts if each["key"] == "trm-report"]
    assert "report/report.html" in report["data"]
    assert report["description"].startswith("report of trm-tiny: reports/trm-tiny/report/001-")
    assert {"gate-phase1", "gate-phase2", "gate-phase3"} <= {each["key"] for each in artifacts}


def test_mlflow_has_a_child_run_for_every_training_and_measurement(site: Any, finished: str) -> None:
    parent, *children = sorted(runs_of_trm(site), key=lambda run: "mlflow.parentRunId" in run.data.tags)
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    names = [run.info.run_name for run in children]
    assert len(names) == len(set(names))
    wanted = {*(f"checkpoints/{each}" for each in TRAININGS), "datasets/thoughts", "datasets/states-train", "evals/evaluation"}
    assert wanted | {f"evals/phase{number}" for number in ("1", "2", "2b", "3")} <= set(names)
    assert {run.data.tags["trlm.track"] for run in [parent]} == {"trm"}


def test_a_cancelled_phase_is_saved_and_killed_and_the_next_run_goes_on_behind_it(
    site: Any, finished: str, tiny_trm: dict[str, str], until: Callable[..., Any]
) -> None:
    recipe = {**tiny_trm, "settings": [LONGER]}
    spec = TRMLineage(load_trm_recipe(tiny_trm["name"], settings=[LONGER])).specs["phase2"]
    workspace = Path(site.environment["TRLM_STORE"]) / ".unfinished" / spec.fingerprint
    flow_run = site.start("trm/smollm3-3b", recipe=recipe)
    until(lambda: (workspace / "history.jsonl").exists() and len(read_history(workspace)) > 50, 240, "phase 2 has made steps")
    site.command("prefect", "flow-run", "cancel", flow_run)
    assert site.wait(flow_run, CANCEL_SECONDS + 30)["type"] == "CANCELLED"
    until(lambda: not site.flow_processes(flow_run), CANCEL_SECONDS, "its process is gone")
    done = len(read_history(workspace))
    assert newest_step(workspace / SAVES) == done, "the last step that was made is the one that is saved"
    (killed,) = [run for run in runs_of_trm(site) if run.data.tags.get("trlm.fingerprint") == spec.fingerprint]
    assert killed.info.status == "KILLED"

    site.finished("trm/smollm3-3b", recipe=recipe)
    (after,) = [run for run in runs_of_trm(site) if run.data.tags.get("trlm.fingerprint") == spec.fingerprint]
    assert (after.info.run_id, after.info.status) == (killed.info.run_id, "FINISHED")
    (manifest,) = [each for each in Store.open(site.environment["TRLM_STORE"]).manifests() if each.fingerprint == spec.fingerprint]
    assert manifest.counts["steps"] == 3_000
