"""A site: a real Prefect server, MLflow and two workers in folders of their own, started by `trlm up`, on a two-layer model."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run

from flows.services import Service, read_services
from tests.free_port import free_port
from tests.processes import running, variable_of
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store

BIN = Path(sys.executable).parent
STAGES = ("stage1_sft", "stage2_sft_think", "stage3_dpo")
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
POLL_SECONDS = 0.25


@dataclass(frozen=True)
class Site:
    home: Path
    environment: dict[str, str]
    options: tuple[str, ...]  # of `trlm up`
    bin: Path = BIN

    def command(self, *arguments: str, timeout: float = 600) -> str:
        """What it printed; a command that fails fails the test."""
        done = subprocess.run(
            [str(BIN / arguments[0]), *arguments[1:]], capture_output=True, text=True, timeout=timeout, env=self.environment, check=False
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout

    def api(self, method: str, path: str, **body: Any) -> Any:
        answer = httpx.request(method, f"{self.environment['PREFECT_API_URL']}{path}", json=body or None, timeout=30)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def start(self, deployment: str, **parameters: Any) -> str:
        """Id of a new flow run, as the README starts it."""
        pairs = [word for name, value in parameters.items() for word in ("--param", f"{name}={json.dumps(value)}")]
        out = self.command("prefect", "deployment", "run", deployment, *pairs)
        (line,) = [line for line in out.splitlines() if "UUID:" in line]
        return str(UUID(line.split("UUID:")[1].strip()))

    def state(self, flow_run: str) -> dict[str, Any]:
        return self.api("GET", f"/flow_runs/{flow_run}")["state"]

    def wait(self, flow_run: str, seconds: float = 420) -> dict[str, Any]:
        """Its final state."""
        return wait_until(lambda: (state := self.state(flow_run))["type"] in FINAL and state, seconds, f"flow run {flow_run} ends")

    def finished(self, deployment: str, **parameters: Any) -> str:
        flow_run = self.start(deployment, **parameters)
        state = self.wait(flow_run)
        assert state["type"] == "COMPLETED", state["message"]
        return flow_run

    def flow_runs(self, **filters: Any) -> list[dict[str, Any]]:
        return self.api("POST", "/flow_runs/filter", sort="EXPECTED_START_TIME_ASC", limit=200, **filters)

    def children(self, flow_run: str, flow: str | None = None) -> list[dict[str, Any]]:
        """Flow runs that this one started, here or elsewhere, in order."""
        found = self.flow_runs(flow_runs={"parent_flow_run_id": {"any_": [flow_run]}})
        return [each for each in found if flow is None or each["flow_id"] == self.flow_id(flow)]

    def flow_id(self, flow: str) -> str:
        return self.api("GET", f"/flows/name/{flow}")["id"]

    def mlflow_runs(self) -> list[Run]:
        client = MlflowClient(self.environment["MLFLOW_TRACKING_URI"])
        experiment = client.get_experiment_by_name("trlm")
        return list(client.search_runs([experiment.experiment_id], max_results=1000)) if experiment else []

    @property
    def services(self) -> dict[str, Service]:
        return read_services(self.home)

    def processes(self, module: str) -> list[psutil.Process]:
        """Processes of this site that run `python -m module`, whoever their parent is now."""
        return [each for each in running(module, psutil.process_iter()) if self._owns(each)]

    def trainers(self) -> list[psutil.Process]:
        return self.processes("trlm_core.training.worker")

    def flow_processes(self, flow_run: str) -> list[psutil.Process]:
        return [each for each in self.processes("prefect.engine") if variable_of(each, "PREFECT__FLOW_RUN_ID") == flow_run]

    def _owns(self, process: psutil.Process) -> bool:
        return variable_of(process, "PREFECT_API_URL") == self.environment["PREFECT_API_URL"]


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    began = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() - began < seconds, f"waited {seconds:.0f} s in vain until {what}"
        time.sleep(POLL_SECONDS)
    return value


@pytest.fixture(scope="session")
def start_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Site]]:
    """`start_site()`: a site of its own, ended with the tests."""
    homes: list[tuple[Path, dict[str, str]]] = []

    def start(*options: str, store: str | None = None, **changed: str) -> Site:
        home = tmp_path_factory.mktemp("site")
        address = store or str(home / "store")
        prefect_port, mlflow_port = free_port(), free_port()
        environment = {
            **os.environ,
            "PREFECT_HOME": str(home / "prefect-home"),
            "PREFECT_API_URL": f"http://127.0.0.1:{prefect_port}/api",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{mlflow_port}",
            "TRLM_STORE": address,
            "COLUMNS": "200",
            **changed,
        }
        homes.append((home, environment))
        ports = ("--prefect-port", str(prefect_port), "--mlflow-port", str(mlflow_port))
        site = Site(home / "services", environment, ("--home", str(home / "services"), "--store", address, *ports, *options))
        site.command("trlm", "up", *site.options)
        return site

    yield start
    for home, environment in homes:
        subprocess.run([str(BIN / "trlm"), "down", "--home", str(home / "services")], env=environment, timeout=120, check=True)


@pytest.fixture(scope="session")
def site(start_site: Callable[..., Site]) -> Site:
    return start_site()


@pytest.fixture(scope="session")
def recipe_of(tiny_recipe_tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, Any]]:
    """`recipe_of(2)`: the parameter `recipe` of the tiny recipe's first two stages, with epochs enough to be met while they train."""
    folder = tmp_path_factory.mktemp("recipe")

    def choice(stages: int) -> dict[str, Any]:
        path = folder / f"trlm-tiny-{stages}.yaml"
        path.write_text(yaml.safe_dump({**tiny_recipe_tree, "stages": tiny_recipe_tree["stages"][:stages]}, sort_keys=False))
        return {"name": str(path), "settings": [f"stages.{stage}.training.epochs=20" for stage in STAGES[:stages]]}

    return choice


@pytest.fixture(scope="session")
def tiny(recipe_of: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    return recipe_of(3)


@pytest.fixture(scope="session")
def pipeline(site: Site, tiny: dict[str, Any]) -> str:
    """Id of an undisturbed full pipeline's finished flow run, on the site's own store."""
    return site.finished("trlm/full-pipeline", recipe=tiny)


@pytest.fixture(scope="session")
def port() -> Callable[[], int]:
    return free_port


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """`until(condition, seconds, what)`: its first true value; a test that waits in vain says for what."""
    return wait_until


@pytest.fixture(scope="session")
def outcome() -> Callable[[str], dict[str, Any]]:
    return outcome_of


def outcome_of(address: str) -> dict[str, Any]:
    """What a store holds, as far as two runs must agree: fingerprints of everything, numbers of the evaluations."""
    manifests = Store.open(address).manifests()
    return {
        "fingerprints": sorted((_place(each), each.fingerprint) for each in manifests),
        "evaluations": {each.name: each.counts for each in manifests if each.kind == "evals"},
    }


def _place(manifest: Manifest) -> str:
    return f"{manifest.kind}/{manifest.group}/{manifest.name}"
