"""Tracking: the only module that imports mlflow. One parent run per pipeline run, one child per blend, stage, evaluation and report."""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trlm_core.artifacts.aside import write_aside
from trlm_core.artifacts.errors import first_line
from trlm_core.artifacts.full_disk import is_full_disk
from trlm_core.artifacts.lease import FileLease, tried

logger = logging.getLogger(__name__)

EXPERIMENT = "trlm"
DATABASE = "sqlite:///"
DIGEST_LENGTH = 36  # mlflow's limit
PARAM_LENGTH = 6000
METRICS_IN_A_BATCH = 1000  # mlflow's limit
# One short try a request: MLflow's own retries would hold a caller for 4 minutes where nobody answers, for 16 where a server stalls,
# whatever the caller can bear. `_Patient` tries again instead.
ONE_TRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
PATIENCE_SECONDS = 240.0  # for a server that is away when a run begins or a file is kept
FINISH_SECONDS = 60.0  # for one that is away when a run ends
PAUSE_SECONDS = 1.0  # doubled from try to try
LONGEST_PAUSE_SECONDS = 15.0


class RunAddress(BaseModel):
    """Where a run's metrics go; crosses process borders as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str  # sqlite:////path/mlflow.db, or a server's address
    run_id: str


class RunCancelledError(Exception):
    """Somebody cancelled this work where it runs: its run ends KILLED, not FAILED."""


@dataclass(frozen=True)
class OpenRun:
    address: RunAddress
    name: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Tracker:
    uri: str
    artifacts: Path | None = None  # where a new experiment on a database keeps its files; a server knows by itself

    @cached_property
    def _client(self) -> Any:
        return _client(self.uri)

    def start(self, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], parent: str | None = None) -> RunAddress:
        """Open a run. Parameters are a recipe or a part of one, flattened here."""
        run = self._client.create_run(
            self._experiment_id(), run_name=name, tags={**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        )
        for key, value in flattened(params).items():
            self._client.log_param(run.info.run_id, key, str(value)[:PARAM_LENGTH])
        return RunAddress(uri=self.uri, run_id=run.info.run_id)

    def take_up(self, memory: Path, *, tags: Mapping[str, str], parent: str | None = None) -> RunAddress | None:
        """The run that the memory names, RUNNING again under these tags; None where there is none, or it is another server's or deleted.

        Its first end stays its end time until it ends again: MLflow cannot take one away.
        """
        run = _remembered(memory)
        if run is None or run.uri != self.uri or not self._is_active(run):
            return None
        from mlflow.entities import RunTag

        told = {**tags, **({"mlflow.parentRunId": parent} if parent else {})}
        # First: by the old tags, it would be a dead flow run's, which the reconciler ends.
        self._client.log_batch(run.run_id, tags=[RunTag(key, value) for key, value in told.items()])
        self._client.update_run(run.run_id, status="RUNNING")
        return run

    def _is_active(self, run: RunAddress) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return self._client.get_run(run.run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def open_runs(self) -> list[OpenRun]:
        """Runs that say they are running."""
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            return []
        running = self._client.search_runs([found.experiment_id], filter_string="attributes.status = 'RUNNING'", max_results=1000)
        return [OpenRun(RunAddress(uri=self.uri, run_id=run.info.run_id), run.info.run_name, dict(run.data.tags)) for run in running]

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return found.experiment_id
        from mlflow.exceptions import MlflowException

        database = self.uri.startswith(("sqlite:", "postgresql:"))
        location = self.artifacts.as_uri() if database and self.artifacts else None
        try:
            return self._client.create_experiment(EXPERIMENT, artifact_location=location)
        except MlflowException:
            found = self._client.get_experiment_by_name(EXPERIMENT)
            if found is None:  # not another run's first moment either
                raise
            return found.experiment_id


@contextlib.contextmanager
def tracked(
    tracker: Tracker,
    name: str,
    *,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent: str | None = None,
    memory: Path | None = None,
) -> Iterator[RunAddress]:
    """A run that ends FINISHED, FAILED on an error, or KILLED when it was interrupted or cancelled.

    `memory`: a file that remembers the run, so that the work goes on in it when it is begun again.
    """
    with _begun(tracker, name, params=params, tags=tags, parent=parent, memory=memory) as run:
        try:
            yield run
        except RunCancelledError:
            finish(run, "KILLED")
            raise
        except Exception:
            finish(run, "FAILED")
            raise
        except BaseException:
            finish(run, "KILLED")
            raise
        finish(run, "FINISHED")


@contextlib.contextmanager
def _begun(
    tracker: Tracker, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], parent: str | None, memory: Path | None
) -> Iterator[RunAddress]:
    if memory is None:
        yield tracker.start(name, params=params, tags=tags, parent=parent)
        return
    with tried(FileLease(memory.parent, memory.name)) as free:  # a run that another process is in stays its own
        known = tracker.take_up(memory, tags=tags, parent=parent) if free else None
        run = known or tracker.start(name, params=params, tags=tags, parent=parent)
        if free:
            write_aside(memory, run.model_dump_json())
        yield run


def _remembered(memory: Path) -> RunAddress | None:
    try:
        return RunAddress.model_validate_json(memory.read_text())
    except (FileNotFoundError, ValidationError):  # the machine stopped before it was on the disk
        return None


def finish(run: RunAddress, status: str) -> None:
    """End the run; a run that has ended already keeps its end.

    Where MLflow stays away, or the run is deleted, the log says so: the work that ends here does not fail for it.
    """
    from mlflow.exceptions import MlflowException

    client = _client(run.uri, FINISH_SECONDS)
    try:
        if client.get_run(run.run_id).info.status == "RUNNING":
            client.set_terminated(run.run_id, status)
    except MlflowException as error:
        if is_full_disk(error):
            raise
        why = first_line(error)
        logger.warning("MLflow run %s could not be set %s: %s; if it is left open, the next reconciling ends it", run.run_id, status, why)


def log_metrics(run: RunAddress, metrics: Mapping[str, float], step: int = 0) -> None:
    from mlflow.entities import Metric

    moment = int(time.time() * 1000)
    _client(run.uri).log_batch(run.run_id, metrics=[Metric(key, float(value), moment, step) for key, value in metrics.items()])


def log_history(run: RunAddress, history: Sequence[Mapping[str, float]]) -> None:
    """The curves of a training that is over: a line a step, with its number under `step`."""
    from mlflow.entities import Metric

    moment = int(time.time() * 1000)
    metrics = [Metric(key, float(value), moment, int(line["step"])) for line in history for key, value in line.items() if key != "step"]
    for begin in range(0, len(metrics), METRICS_IN_A_BATCH):
        _client(run.uri).log_batch(run.run_id, metrics=metrics[begin : begin + METRICS_IN_A_BATCH])


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    moment: int  # ms since 1970
    step: int


def import_client() -> None:
    """Before threads track: mlflow's packages import one another, and two threads that import them at once break both."""
    import mlflow  # noqa: F401


def send_points(run: RunAddress, points: Sequence[Point]) -> None:
    """One try. Points that MLflow has already, each value and moment alike, are not doubled: its primary key holds them all."""
    from mlflow.entities import Metric

    client = _client(run.uri, 0.0)
    for begin in range(0, len(points), METRICS_IN_A_BATCH):
        batch = points[begin : begin + METRICS_IN_A_BATCH]
        client.log_batch(run.run_id, metrics=[Metric(point.key, point.value, point.moment, point.step) for point in batch])


def send_text(run: RunAddress, text: str, file: str) -> None:
    """One try; the same file again replaces it."""
    _client(run.uri, 0.0).log_text(run.run_id, text, file)


def is_outage(error: Exception) -> bool:
    """Whether MLflow, its network or its disk failed, so that the same call can succeed later; otherwise it is refused, or our mistake."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError
    from sqlalchemy.exc import OperationalError

    if isinstance(error, MlflowException):  # 408 and 429 are among its 500s by now
        return error.get_http_status_code() >= 500
    if isinstance(error, HTTPError) and error.response is not None:  # of an artifact
        return error.response.status_code >= 500
    return isinstance(error, OSError | OperationalError)


class SystemReadings:
    """What this machine's CPU, memory, disk, network and GPUs do, by MLflow's own collectors and under its names.

    Its monitor ends for good when MLflow is away once, and holds the caller at the end; so only its collectors are used.
    """

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self._collectors = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *_gpu_collectors()]
        self.take()  # the CPU's share is that since the last reading: the first means nothing

    def take(self) -> dict[str, float]:
        """{"system/cpu_utilization_percentage": 71.3, ...}: now, or since the last reading."""
        readings: dict[str, float] = {}
        for collector in self._collectors:
            collector.collect_metrics()
            readings |= collector.aggregate_metrics()
            collector.clear_metrics()
        # Of an AMD GPU, MLflow takes 500 W for the limit, whatever the model.
        return {f"system/{key}": value for key, value in readings.items() if not key.endswith("power_usage_percentage")}


def _gpu_collectors() -> list[Any]:
    """Of NVIDIA's GPUs through nvidia-ml-py, of AMD's through pyrsmi; none where neither package finds its driver."""
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    for collector in (GPUMonitor, ROCMMonitor):
        with contextlib.suppress(Exception):  # each package and driver has its own way to say that it is not there
            return [collector()]
    return []


def log_file(run: RunAddress, path: Path, folder: str | None = None) -> None:
    _client(run.uri).log_artifact(run.run_id, str(path), folder)


def log_table(run: RunAddress, rows: Sequence[Mapping[str, str]], name: str) -> None:
    """As an artifact that MLflow's page shows as a table; the columns are the first row's."""
    _client(run.uri).log_table(run.run_id, {column: [row[column] for row in rows] for column in rows[0]}, name)


def artifact_page(run: RunAddress, path: str) -> str:
    """Where a browser finds an artifact of the run: on MLflow's page, or, of a database without a server, the file itself."""
    info = _client(run.uri).get_run(run.run_id).info
    if run.uri.startswith("http"):
        return f"{run.uri}/#/experiments/{info.experiment_id}/runs/{run.run_id}/artifacts/{path}"
    return f"{info.artifact_uri}/{path}"


def log_dataset(run: RunAddress, *, name: str, fingerprint: str, source: str, profile: Mapping[str, Any], context: str) -> None:
    """Log a dataset under our own digest: mlflow's ignores list columns, and so does not see changed messages."""
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name,
        digest=fingerprint[:DIGEST_LENGTH],
        source_type="local",
        source=json.dumps({"uri": source}),
        schema=None,
        profile=json.dumps(dict(profile)),
    )
    tags = [InputTag("mlflow.data.context", context)]
    _client(run.uri).log_inputs(run.run_id, [DatasetInput(dataset=dataset, tags=tags)])


def register_checkpoint(run: RunAddress, *, name: str, address: str, fingerprint: str) -> None:
    """A new version of the registered model, under the alias `candidate`; `address`: the checkpoint's folder, or its s3: address.

    MLflow's server takes no folder of another machine for a source: there the run's own manifest stands in, and a tag has the address.
    """
    from mlflow.exceptions import MlflowException

    client = _client(run.uri)
    with contextlib.suppress(MlflowException):  # it exists already: a version is added to it
        client.create_registered_model(name)
    source = address if "://" in address else f"runs:/{run.run_id}/manifest.json"
    version = client.create_model_version(name, source=source, run_id=run.run_id, tags={"fingerprint": fingerprint, "address": address})
    client.set_registered_model_alias(name, "candidate", version.version)


def flattened(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings with dotted keys; lists stay one value."""
    flat: dict[str, Any] = {}
    for key, value in params.items():
        name = f"{prefix}{key}"
        flat.update(flattened(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _client(uri: str, patience: float = PATIENCE_SECONDS) -> Any:
    """MLflow's client, that bears an outage of a server for `patience` seconds; a database has nothing to wait for."""
    from mlflow import MlflowClient

    path = Path(uri.removeprefix(DATABASE).partition("?")[0])
    if uri.startswith(DATABASE) and not path.exists():
        _make_database(path)
    for variable, value in ONE_TRY.items():
        os.environ.setdefault(variable, value)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    return _Patient(client, patience) if uri.startswith("http") else client


class _Patient:
    """A client whose calls are tried again while its server is away."""

    def __init__(self, client: Any, seconds: float) -> None:
        self._client, self._seconds = client, seconds

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **kwargs: _patiently(lambda: method(*args, **kwargs), self._seconds)


def _patiently(call: Callable[[], Any], seconds: float) -> Any:
    began, pause = time.monotonic(), PAUSE_SECONDS
    while True:
        try:
            return call()
        except Exception as error:
            if not is_outage(error) or time.monotonic() - began + pause > seconds:
                raise
            logger.warning("MLflow does not answer, tried again in %.0f s: %s", pause, first_line(error))
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _make_database(path: Path) -> None:
    """MLflow makes its tables one by one, and one that a kill or a full disk left half made opens never again: it is made aside."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as aside:
        MlflowClient(tracking_uri=f"{DATABASE}{aside}/{path.name}")
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(f"{aside}/{path.name}", path)
