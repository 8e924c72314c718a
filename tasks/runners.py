"""Runners: what reads the sources of a blend: threads of the flow's process, or the nodes of a Ray cluster."""

import importlib.util
import os
import socket
from typing import Any, Literal

from prefect import unmapped
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from tasks.data import read_source
from tasks.place import Place
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.schema import Stage

RunnerName = Literal["threads", "ray"]
LOCAL = "local"  # Ray's word for a cluster of this process alone; without it Ray joins whatever cluster it finds on the machine
OBJECT_BYTES = 128 << 20  # what travels is manifests; Ray would set aside a third of the memory
ANSWER_SECONDS = 10
# Ray writes what a runtime environment holds into its logs: nothing here may be a secret. Those a node has from its own environment.
PASSED_ON = (
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "HF_ENDPOINT",
    "HF_HUB_DISABLE_XET",
    "HF_HUB_OFFLINE",
    "PREFECT_LOGGING_EXTRA_LOGGERS",
)


def check_runner(runner: RunnerName, store: Store) -> None:
    """Raise ValueError where this runner is not installed or not there, or its nodes would not reach the store or Prefect's server."""
    if runner == "threads":
        return
    if importlib.util.find_spec("prefect_ray") is None:
        raise ValueError("runner ray: wanted prefect-ray, got nothing installed; pip install 'trlm[ray]'")
    cluster = _cluster()
    if cluster == LOCAL:
        return
    if store.remote is None:
        raise ValueError(
            f"store {store.address}: wanted an s3: address, which every node of the Ray cluster {cluster} reaches, got a folder; "
            "choose another with --store, or unset RAY_ADDRESS for a cluster on this machine"
        )
    if not PREFECT_API_URL.value():
        raise ValueError(f"PREFECT_API_URL: wanted a server that every node of the Ray cluster {cluster} reaches, got none; set it")
    _check_answers(cluster)


def read_sources(place: Place, stage: Stage, base: Manifest, runner: RunnerName) -> list[Manifest]:
    """The stage's sources, read side by side. One that fails lets the others finish: their work is kept."""
    readers: TaskRunner[Any] = _ray() if runner == "ray" else ThreadPoolTaskRunner()
    with readers:
        same = {"place": unmapped(place), "stage": unmapped(stage), "base": unmapped(base)}
        read: Any = readers.map(read_source, {**same, "source": list(stage.blend.sources)})  # pyright: ignore[reportArgumentType]
        read.wait()
        return read.result()


def _ray() -> TaskRunner[Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = _cluster()
    if cluster == LOCAL:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on Linux too, this is what keeps Ray on loopback
        options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_BYTES}
    else:
        options = {"runtime_env": {"env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ}}}
    from tasks.ray_nodes import RayNodes  # not before the variables are set

    return RayNodes(cluster, options)


def _check_answers(cluster: str) -> None:
    """Ray would go on trying for minutes. For an address without a port (auto), Ray's own error has to do."""
    host, _, port = cluster.removeprefix("ray://").rpartition(":")
    if not host:
        return
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"RAY_ADDRESS: wanted a Ray cluster that answers at {cluster}, got {error}; start it or unset it") from error


def _cluster() -> str:
    return os.environ.get("RAY_ADDRESS") or LOCAL
