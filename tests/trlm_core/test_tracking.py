"""Tracking with a real MLflow on SQLite: how runs end, what they hold, and whose digest a dataset has."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy.exc

import trlm_core.tracking
from tests.free_port import free_port
from trlm_core.tracking import (
    RunAddress,
    SystemReadings,
    Tracker,
    finish,
    flattened,
    log_dataset,
    log_file,
    log_metrics,
    register_checkpoint,
    tracked,
)

HOLDER = """
import sys
from pathlib import Path
from trlm_core.tracking import Tracker, tracked

with tracked(Tracker(sys.argv[1]), "stage1_sft", params={}, tags={}, memory=Path(sys.argv[2])) as run:
    print(run.run_id, flush=True)
    sys.stdin.read()
"""
NVIDIA = """
class NVMLError(Exception): ...
class Memory: used, total = 8e9, 16e9
class Rates: ...
nvmlInit = lambda: None
nvmlDeviceGetCount = lambda: 1
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetMemoryInfo = lambda handle: Memory
busy = iter((1, 91))
def nvmlDeviceGetUtilizationRates(handle):
    Rates.gpu = next(busy)
    return Rates
nvmlDeviceGetPowerUsage = lambda handle: 310_000
nvmlDeviceGetEnforcedPowerLimit = lambda handle: 700_000
"""
AMD = """
smi_initialize = smi_shutdown = lambda: None
smi_get_device_count = lambda: 1
smi_get_device_average_power = lambda index: 612.0
smi_get_device_memory_used = lambda index: 96e9
smi_get_device_memory_total = lambda index: 192e9
busy = iter((1, 98))
smi_get_device_utilization = lambda index: next(busy)
"""


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One database for all tests of this file, since creating it takes seconds; every test opens runs of its own."""
    folder = tmp_path_factory.mktemp("tracking")
    return Tracker(uri=f"sqlite:///{folder / 'mlflow.db'}", artifacts=folder / "mlruns")


@pytest.fixture
def run(tracker: Tracker) -> RunAddress:
    return tracker.start("stage1_sft", params={}, tags={})


def test_a_child_names_its_parent_and_keeps_its_tags_and_name(tracker: Tracker):
    parent = tracker.start("trlm-tiny", params={}, tags={})
    child = tracker.start("stage1_sft", params={}, tags={"fingerprint": "aa" * 32}, parent=parent.run_id)
    stored = _run(child)
    assert stored.data.tags["mlflow.parentRunId"] == parent.run_id
    assert stored.data.tags["fingerprint"] == "aa" * 32
    assert (stored.info.run_name, stored.info.status) == ("stage1_sft", "RUNNING")
    assert "mlflow.parentRunId" not in _run(parent).data.tags
    assert _run(parent).info.experiment_id == stored.info.experiment_id


def test_parameters_are_the_recipe_flattened(tracker: Tracker):
    run = tracker.start("a", params={"training": {"learning_rate": 0.001, "beta": None}, "faults": ["misread", "miscount"]}, tags={})
    assert _run(run).data.params == {"training.learning_rate": "0.001", "training.beta": "None", "faults": "['misread', 'miscount']"}


def test_a_parameter_longer_than_mlflow_takes_is_cut_and_not_lost(tracker: Tracker):
    run = tracker.start("a", params={"sources": ["x" * 10_000]}, tags={})
    assert len(_run(run).data.params["sources"]) == 6_000


def test_nested_mappings_have_dotted_keys_and_lists_stay_one_value():
    assert flattened({"a": {"b": {"c": 1}, "d": [1, 2]}, "e": None}) == {"a.b.c": 1, "a.d": [1, 2], "e": None}


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_tracked_block_ends_as_it_ended(tracker: Tracker, error: type[BaseException] | None, status: str):
    runs = []

    def block() -> None:
        with tracked(tracker, "a", params={}, tags={}) as run:
            runs.append(run)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            block()
    else:
        block()
    assert _run(runs[0]).info.status == status


def test_a_run_that_has_ended_keeps_its_end(run: RunAddress):
    finish(run, "FAILED")
    finish(run, "FINISHED")
    assert _run(run).info.status == "FAILED"


def test_metrics_keep_their_steps(run: RunAddress):
    for step in (1, 2, 3):
        log_metrics(run, {"loss": 3.0 - step, "grad_norm": 1.0}, step)
    history = mlflow.MlflowClient(tracking_uri=run.uri).get_metric_history(run.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2.0), (2, 1.0), (3, 0.0)]


def test_files_are_kept_below_the_tracker_s_folder(tracker: Tracker, run: RunAddress, tmp_path: Path):
    (tmp_path / "report.html").write_text("page")
    log_file(run, tmp_path / "report.html", "pages")
    assert tracker.artifacts is not None
    assert [path.read_text() for path in tracker.artifacts.rglob("pages/report.html")] == ["page"]


def test_a_dataset_has_our_digest_and_changed_messages_change_it(tracker: Tracker, built: Any):
    digests = []
    for stage in ("stage1_sft", "stage2_sft_think"):
        blend = built.stages[stage].blend
        run = tracker.start(stage, params={}, tags={})
        log_dataset(run, name=stage, fingerprint=blend.fingerprint, source="runs", profile={"rows": 40}, context="training")
        (dataset,) = _run(run).inputs.dataset_inputs
        assert dataset.dataset.digest == blend.fingerprint[:36]
        assert {tag.key: tag.value for tag in dataset.tags} == {"mlflow.data.context": "training"}
        digests.append(dataset.dataset.digest)
    assert len(set(digests)) == 2


def test_a_checkpoint_is_registered_version_by_version_and_the_last_is_the_candidate(run: RunAddress, tmp_path: Path):
    for fingerprint in ("aa" * 32, "bb" * 32):
        register_checkpoint(run, name="trlm-tiny.stage1_sft", address=str(tmp_path), fingerprint=fingerprint)
    client = mlflow.MlflowClient(tracking_uri=run.uri, registry_uri=run.uri)
    candidate = client.get_model_version_by_alias("trlm-tiny.stage1_sft", "candidate")
    assert (str(candidate.version), candidate.tags["fingerprint"], candidate.run_id) == ("2", "bb" * 32, run.run_id)
    assert candidate.tags["address"] == str(tmp_path)
    assert len(client.search_model_versions("name='trlm-tiny.stage1_sft'")) == 2


def test_a_database_that_a_full_disk_left_half_made_is_made_anew(small_disk: Callable[[int], Path]):
    disk = small_disk(500 << 10)
    tracker = Tracker(uri=f"sqlite:///{disk / 'mlflow.db'}", artifacts=disk / "artifacts")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="disk is full"):
        tracker.start("run", params={}, tags={})
    assert not list(disk.iterdir())
    small_disk(64 << 20)
    assert tracker.start("run", params={}, tags={}).run_id


def test_an_address_crosses_a_process_border_as_json(run: RunAddress):
    assert RunAddress.model_validate_json(run.model_dump_json()) == run


def _run(run: RunAddress) -> Any:
    return mlflow.MlflowClient(tracking_uri=run.uri).get_run(run.run_id)


def test_a_database_s_address_may_carry_options(tmp_path: Path) -> None:
    tracker = Tracker(uri=f"sqlite:///{tmp_path / 'mlflow.db'}?timeout=30", artifacts=tmp_path / "mlruns")
    with tracked(tracker, "a run", params={}, tags={}) as run:
        assert run.run_id
    assert (tmp_path / "mlflow.db").is_file()


def test_a_training_begun_again_goes_on_in_its_run_under_its_new_pipeline(tracker: Tracker, tmp_path: Path):
    memory = tmp_path / "run.json"
    killed = _begun_and_left(tracker, memory, KeyboardInterrupt)
    assert _run(killed).info.status == "KILLED"
    parent = tracker.start("trlm-tiny", params={}, tags={})
    tags = {"prefect.flow_run_id": "the second"}
    with tracked(tracker, "stage1_sft", params={"epochs": 2}, tags=tags, parent=parent.run_id, memory=memory) as run:
        assert run == killed
        stored = _run(run)
        assert stored.info.status == "RUNNING"
        assert stored.data.tags.items() >= {"prefect.flow_run_id": "the second", "mlflow.parentRunId": parent.run_id}.items()
        assert run in [each.address for each in tracker.open_runs()]
    ended = _run(killed)
    assert ended.info.status == "FINISHED"
    assert ended.info.end_time >= ended.info.start_time


def test_a_run_that_was_left_open_is_taken_up_too(tracker: Tracker, tmp_path: Path):
    memory = tmp_path / "run.json"
    left_open = tracker.start("stage1_sft", params={}, tags={})
    memory.write_text(left_open.model_dump_json())
    with tracked(tracker, "stage1_sft", params={}, tags={}, memory=memory) as run:
        assert run == left_open


@pytest.mark.parametrize("lost", ["deleted", "never there", "another server's", "half written"])
def test_where_the_run_is_gone_a_new_one_is_opened_and_remembered(tracker: Tracker, tmp_path: Path, lost: str):
    memory = tmp_path / "run.json"
    old = _begun_and_left(tracker, memory, ValueError)
    if lost == "deleted":
        mlflow.MlflowClient(tracking_uri=old.uri).delete_run(old.run_id)
    else:
        memory.write_text(
            {
                "never there": RunAddress(uri=old.uri, run_id="0" * 32).model_dump_json(),
                "another server's": RunAddress(uri="http://127.0.0.1:9", run_id=old.run_id).model_dump_json(),
                "half written": '{"uri": "sql',
            }[lost]
        )
    with tracked(tracker, "stage1_sft", params={}, tags={}, memory=memory) as run:
        assert run != old
        assert RunAddress.model_validate_json(memory.read_text()) == run


def test_a_run_that_another_process_is_in_is_left_to_it(tracker: Tracker, tmp_path: Path):
    """Who comes second waits for the first one's checkpoint; cancelled meanwhile, it must not end the first one's run."""
    memory = tmp_path / "run.json"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tracker.uri, memory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    theirs = RunAddress(uri=tracker.uri, run_id=holder.stdout.readline().strip())
    ours = _begun_and_left(tracker, memory, KeyboardInterrupt)
    assert ours != theirs
    assert (_run(ours).info.status, _run(theirs).info.status) == ("KILLED", "RUNNING")
    assert RunAddress.model_validate_json(memory.read_text()) == theirs
    holder.communicate("")
    assert _run(theirs).info.status == "FINISHED"


@pytest.mark.parametrize("away", ["nobody listens", "503", "it stands still"])
def test_where_mlflow_stays_away_the_end_of_a_run_is_left_to_the_reconciling(
    away: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(trlm_core.tracking, "FINISH_SECONDS", 2.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    began = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as still:  # it takes calls and never answers
        server = _Unavailable() if away == "503" else None
        port = server.port if server else still.getsockname()[1] if away == "it stands still" else free_port()
        finish(RunAddress(uri=f"http://127.0.0.1:{port}", run_id="a" * 32), "FINISHED")
    assert time.monotonic() - began < 10
    assert f"MLflow run {'a' * 32} could not be set FINISHED" in caplog.messages[-1]


def test_a_deleted_run_does_not_fail_the_work_that_ends(tracker: Tracker, caplog: pytest.LogCaptureFixture):
    with tracked(tracker, "stage1_sft", params={}, tags={}) as run:
        mlflow.MlflowClient(tracking_uri=run.uri).delete_run(run.run_id)
    assert "must be in the 'active' state" in caplog.messages[-1]


def test_a_server_that_comes_back_is_waited_for(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    server = _Unavailable(times=2)
    with pytest.raises(mlflow.MlflowException, match="no such run"):  # its third answer
        log_metrics(RunAddress(uri=f"http://127.0.0.1:{server.port}", run_id="a" * 32), {"loss": 1.0})
    assert len([message for message in caplog.messages if "MLflow does not answer, tried again" in message]) == 2


def test_the_machine_is_read_under_the_names_of_mlflow_s_page():
    readings = SystemReadings().take()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(readings)
    assert 0 < readings["system/system_memory_usage_percentage"] < 100


@pytest.mark.parametrize(
    ("package", "file", "text", "wanted"),
    [
        ("pynvml", "pynvml.py", NVIDIA, {"memory_usage_percentage": 50.0, "memory_usage_megabytes": 8000.0, "utilization_percentage": 91.0, "power_usage_watts": 310.0}),
        ("pyrsmi", "pyrsmi/rocml.py", AMD, {"memory_usage_percentage": 50.0, "memory_usage_gigabytes": 96.0, "utilization_percentage": 98.0, "power_usage_watts": 612.0}),
    ],
)  # fmt: skip
def test_a_gpu_s_use_memory_and_power_are_read_through_its_maker_s_package(
    package: str, file: str, text: str, wanted: dict[str, float], tmp_path: Path
):
    """Stand-ins for two packages that need a driver, busier at the second reading; the collectors over them are MLflow's own."""
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    command = "import json; from trlm_core.tracking import SystemReadings; print(json.dumps(SystemReadings().take()))"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {command}"], capture_output=True, text=True, check=True
    )
    readings = json.loads(done.stdout)
    assert {key: value for key, value in readings.items() if "gpu" in key} == {
        f"system/gpu_0_{key}": value for key, value in wanted.items()
    }


class _Unavailable:
    """A server that answers 503 so many times, and that there is no such run from then on."""

    def __init__(self, times: int = 1000) -> None:
        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                nonlocal times
                times -= 1
                body = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}' if times < 0 else b"busy"
                self.send_response(404 if times < 0 else 503)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Answer)
        self.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()


def _begun_and_left(tracker: Tracker, memory: Path, error: type[BaseException]) -> RunAddress:
    tags = {"prefect.flow_run_id": "the first"}
    with pytest.raises(error), tracked(tracker, "stage1_sft", params={"epochs": 1}, tags=tags, memory=memory) as run:
        raise error
    return run
