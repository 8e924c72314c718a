"""The services of one machine, on loopback: Prefect's server, MLflow, a worker for each work pool; of `trlm up` and `trlm down`.

services.json: {"prefect": {"process": {"pid": 4711, "created": 1795572956.4}, "log": "..."}, "mlflow": {...}, ...}
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil
from pydantic import BaseModel, ConfigDict, TypeAdapter

from flows.health import answers
from trlm_core.artifacts.aside import write_aside
from trlm_core.training.watch import ProcessAddress

START_SECONDS = 180  # a first start creates the databases
SETTLE_SECONDS = 2  # a worker that cannot work has ended by then
STOP_SECONDS = 40  # a worker gives its run 30 s to end
POLL_SECONDS = 0.2
LOG_LINES = 15
POOLS = ("cpu", "mi300x")
SERVICES_NAME = "services.json"
HOME = "TRLM_SERVICES"  # variable of every process that is started here, its children's too


class ServiceError(ValueError):
    """A service cannot be started; the message says which, and what to do."""


class Service(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    process: ProcessAddress
    log: Path


SERVICES = TypeAdapter(dict[str, Service])


@dataclass(frozen=True)
class Machine:
    """Where the services of this machine live and answer."""

    home: Path  # databases, logs, services.json
    store: str
    prefect_port: int
    mlflow_port: int
    database_url: str | None  # of Prefect's server: postgresql+asyncpg://...; None: SQLite in home

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of everything that is started here, and of the shell that talks to it."""
        return {
            "PREFECT_API_URL": f"{self.prefect_url}/api",
            "MLFLOW_TRACKING_URI": self.mlflow_url,
            "TRLM_STORE": self.store,
            HOME: str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes and half a gigabyte for what nobody here asks of it
        }

    @property
    def server_environment(self) -> dict[str, str]:
        """Of Prefect's server alone: the database's address can hold a password."""
        return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database_url or f"sqlite+aiosqlite:///{self.home / 'prefect.db'}"}

    @property
    def mark(self) -> str:
        """What tells this machine's services from those that other options would start."""
        return f"store {self.store}, ports {self.prefect_port} and {self.mlflow_port}"

    @property
    def prefect_command(self) -> list[str]:
        return ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.prefect_port)]

    @property
    def mlflow_command(self) -> list[str]:
        files = [
            "--backend-store-uri",
            f"sqlite:///{self.home / 'mlflow.db'}",
            "--artifacts-destination",
            str(self.home / "mlflow-artifacts"),
        ]
        return ["mlflow", "server", "--host", "127.0.0.1", "--port", str(self.mlflow_port), "--workers", "1", *files]

    @staticmethod
    def worker_command(pool: str) -> list[str]:
        return ["prefect", "worker", "start", "--pool", pool, "--type", "process", "--name", f"{pool}-{socket.gethostname()}"]


def start(machine: Machine, deploy: Callable[[], object], pools: tuple[str, ...]) -> None:
    """Start what does not run yet, in order: server and MLflow, then deployments, then workers. Raises ServiceError."""
    machine.home.mkdir(parents=True, exist_ok=True)
    _require_the_same(machine)
    _run(machine, "prefect", machine.prefect_command, port=machine.prefect_port, more=machine.server_environment)
    _run(machine, "mlflow", machine.mlflow_command, port=machine.mlflow_port)
    _wait(machine, "prefect", f"{machine.prefect_url}/api/health")
    _wait(machine, "mlflow", f"{machine.mlflow_url}/health")
    deploy()
    for pool in pools:
        (machine.home / pool).mkdir(exist_ok=True)
        _run(machine, f"worker-{pool}", machine.worker_command(pool), folder=machine.home / pool)
    time.sleep(SETTLE_SECONDS)
    for pool in pools:
        _require_alive(machine, f"worker-{pool}", "a worker that stays")


def stop(home: Path) -> list[str]:
    """End the services, workers first, and the flow runs that outlived a killed worker; names of those that ran."""
    services = read_services(home)
    ended = [name for name in reversed(services) if _end(services[name].process)]
    for server in (services[name].process for name in ("mlflow", "prefect") if name in services):
        for orphan in _orphans(home, server):
            _end(orphan)
    for process in _left_behind(home):
        ended += [f"flow run's process {process.pid}"] if _end(process) else []
    (home / SERVICES_NAME).unlink(missing_ok=True)
    return ended


def read_services(home: Path) -> dict[str, Service]:
    path = home / SERVICES_NAME
    return SERVICES.validate_json(path.read_bytes()) if path.exists() else {}


def _require_the_same(machine: Machine) -> None:
    path = machine.home / "machine.txt"
    running = any(service.process.is_alive() for service in read_services(machine.home).values())
    if running and path.read_text() != machine.mark:
        raise ServiceError(f"{machine.home}: wanted {machine.mark}, got services that run with {path.read_text()}; `trlm down` first")
    path.write_text(machine.mark)


def _run(
    machine: Machine,
    name: str,
    command: list[str],
    *,
    port: int | None = None,
    folder: Path | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> None:
    services = read_services(machine.home)
    if name in services and services[name].process.is_alive():
        return
    if port is not None and name in services:
        for orphan in _orphans(machine.home, services[name].process):
            _end(orphan)
    if port is not None and _taken(port):
        raise ServiceError(f"{name}: wanted port {port}, got it taken by another program; choose another with --{name}-port")
    log = machine.home / f"{name}.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder or machine.home,
            env={**os.environ, **machine.environment, **more},
            start_new_session=True,  # it outlives this command
        )
    address = ProcessAddress(pid=process.pid, created=psutil.Process(process.pid).create_time())
    _write(machine.home, {**services, name: Service(process=address, log=log)})


def _write(home: Path, services: dict[str, Service]) -> None:
    write_aside(home / SERVICES_NAME, json.dumps(SERVICES.dump_python(services, mode="json"), indent=1))


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _wait(machine: Machine, name: str, url: str) -> None:
    began = time.monotonic()
    while not answers(url):
        _require_alive(machine, name, f"an answer at {url}", give_up=time.monotonic() - began > START_SECONDS)
        time.sleep(POLL_SECONDS)


def _require_alive(machine: Machine, name: str, wanted: str, *, give_up: bool = False) -> None:
    service = read_services(machine.home)[name]
    if give_up or not service.process.is_alive():
        tail = "\n".join(service.log.read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise ServiceError(f"{name}: wanted {wanted}, got {'none' if give_up else 'its end'}; the end of {service.log}:\n{tail}")


def _end(address: ProcessAddress) -> bool:
    """Ask it to end, then make it; its children too. True where it ran."""
    if not address.is_alive():
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(address.pid)
        family = [address, *(ProcessAddress(pid=each.pid, created=each.create_time()) for each in process.children(recursive=True))]
        process.terminate()
        # Not psutil.wait_procs: an ended process whose parent is gone can stay a zombie for long, and it would wait for that too.
        began = time.monotonic()
        while any(each.is_alive() for each in family) and time.monotonic() - began < STOP_SECONDS:
            time.sleep(POLL_SECONDS)
        for each in family:
            if each.is_alive():
                psutil.Process(each.pid).kill()
    return True


def _orphans(home: Path, server: ProcessAddress) -> Iterator[ProcessAddress]:
    """What a killed server left: MLflow's answers come from a child, which keeps the port. A child has its server's process group."""
    return _started_by(home, lambda process: os.getpgid(process.pid) == server.pid)


def _left_behind(home: Path) -> Iterator[ProcessAddress]:
    """Flow runs that outlived their worker."""
    return _started_by(home, lambda process: "prefect.engine" in process.cmdline())


def _started_by(home: Path, is_meant: Callable[[psutil.Process], bool]) -> Iterator[ProcessAddress]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            if process.environ().get(HOME) == str(home) and is_meant(process):
                yield ProcessAddress(pid=process.pid, created=process.create_time())
