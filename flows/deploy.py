"""`trlm deploy`: work pools, deployments and automations on the server that PREFECT_API_URL names. Twice is as once."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.workers.process import ProcessWorker

ROOT = Path(__file__).resolve().parent.parent
FILES = ROOT / "deployments"


class DeployError(ValueError):
    """The deployments cannot be made; the message says what to do."""


def deploy() -> list[str]:
    """What was made, in words. Raises DeployError."""
    if not PREFECT_API_URL.value():
        raise DeployError("PREFECT_API_URL: wanted the server's address, got none; `trlm up` starts one and prints it")
    if not (FILES / "prefect.yaml").is_file():
        raise DeployError(f"{FILES}: wanted prefect.yaml, got nothing there; run `trlm deploy` from a checkout's own environment")
    with get_client(sync_client=True) as client:
        pools = [_work_pool(client, name, wanted) for name, wanted in _read("work-pools.yaml").items()]
        switches = _switches(client)
        _prefect_deploy()
        _put_back(client, switches)
        return [*pools, *_deployments(client), *(_automation(client, tree) for tree in _read("automations.yaml"))]


def _work_pool(client: SyncPrefectClient, name: str, wanted: dict[str, Any]) -> str:
    """A pool that is paused stays so."""
    template = ProcessWorker.get_default_base_job_template()
    template["variables"]["properties"]["env"]["default"] = wanted["env"]
    settings = {"description": wanted["description"], "concurrency_limit": wanted["concurrency_limit"], "base_job_template": template}
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type=wanted["type"], **settings))
    else:
        client.update_work_pool(name, WorkPoolUpdate(**settings))
    return f"work pool {name}"


def _switches(client: SyncPrefectClient) -> dict[tuple[UUID, str | None], bool]:
    """Which schedules are on: (deployment, slug) -> active. What people switched is theirs; `prefect deploy` would switch it back."""
    return {(each.id, schedule.slug): schedule.active for each in _ours(client) for schedule in each.schedules}


def _put_back(client: SyncPrefectClient, switches: dict[tuple[UUID, str | None], bool]) -> None:
    for each in _ours(client):
        for schedule in each.schedules:
            active = switches.get((each.id, schedule.slug), schedule.active)
            if active != schedule.active:
                client.update_deployment_schedule(each.id, schedule.id, active=active)


def _prefect_deploy() -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DeployError(f"prefect deploy ended with {done.returncode}; the end of what it said:\n{(done.stdout + done.stderr)[-2000:]}")


def _ours(client: SyncPrefectClient) -> list[DeploymentResponse]:
    return client.read_deployments(deployment_filter=DeploymentFilter(tags=DeploymentFilterTags(all_=["trlm"])))


def _deployments(client: SyncPrefectClient) -> list[str]:
    return sorted(f"deployment {client.read_flow(each.flow_id).name}/{each.name}" for each in _ours(client))


def _automation(client: SyncPrefectClient, tree: dict[str, Any]) -> str:
    for action in tree["actions"]:
        if "deployment_id" in action:
            action["deployment_id"] = str(client.read_deployment_by_name(action["deployment_id"].strip("{}")).id)
    wanted = AutomationCore.model_validate(tree)
    known = client.read_automations_by_name(wanted.name)
    if not known:
        client.create_automation(wanted)
    else:
        renewed = wanted.model_copy(update={"enabled": known[0].enabled})
        # An update forgets the silences that are being counted: a run that had died before it would say Running for ever.
        if renewed != AutomationCore.model_validate(known[0].model_dump(exclude={"id"})):
            client.update_automation(known[0].id, renewed)
    return f"automation {wanted.name}"


def _read(name: str) -> Any:
    return yaml.safe_load((FILES / name).read_text())
