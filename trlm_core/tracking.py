"""Tracking: the only module that imports mlflow. One parent run per pipeline run, one child per blend, stage, evaluation and report."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

EXPERIMENT = "trlm"
DATABASE = "sqlite:///"
DIGEST_LENGTH = 36  # mlflow's limit
PARAM_LENGTH = 6000


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
    tracker: Tracker, name: str, *, params: Mapping[str, Any], tags: Mapping[str, str], parent: str | None = None
) -> Iterator[RunAddress]:
    """A run that ends FINISHED, FAILED on an error, or KILLED when it was interrupted or cancelled."""
    run = tracker.start(name, params=params, tags=tags, parent=parent)
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


def finish(run: RunAddress, status: str) -> None:
    """End the run; a run that has ended already keeps its end."""
    client = _client(run.uri)
    if client.get_run(run.run_id).info.status == "RUNNING":
        client.set_terminated(run.run_id, status)


def log_metrics(run: RunAddress, metrics: Mapping[str, float], step: int = 0) -> None:
    from mlflow.entities import Metric

    moment = int(time.time() * 1000)
    _client(run.uri).log_batch(run.run_id, metrics=[Metric(key, float(value), moment, step) for key, value in metrics.items()])


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


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    path = Path(uri.removeprefix(DATABASE).partition("?")[0])
    if uri.startswith(DATABASE) and not path.exists():
        _make_database(path)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_database(path: Path) -> None:
    """MLflow makes its tables one by one, and one that a kill or a full disk left half made opens never again: it is made aside."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as aside:
        MlflowClient(tracking_uri=f"{DATABASE}{aside}/{path.name}")
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(f"{aside}/{path.name}", path)
