"""Metrics reach a real MLflow server in order, none lost, none doubled: while it is killed, stopped, refusing or losing its answers."""

import contextlib
import http.client
import json
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from tests.free_port import free_port
from trlm_core.metric_spool import MetricSpool, deliver, deliver_kept, deliver_or_keep, next_parcel, sent_bytes
from trlm_core.tracking import RunAddress, Tracker

BIN = Path(sys.executable).parent
START_SECONDS = 240
DELIVERY_SECONDS = 120.0
A_STEP = 0.02  # seconds
NEVER_A_NETWORK = 1.9  # seconds that no call of `log` may take; a try of the network takes 2 here
WRITER = """
import sys
from pathlib import Path
from trlm_core.metric_spool import MetricSpool
from trlm_core.tracking import RunAddress

spool = MetricSpool(Path(sys.argv[1]), RunAddress.model_validate_json(sys.argv[2]))
step = 0
while True:
    step += 1
    spool.log({"loss": 1 / step, "grad_norm": float(step)}, step)
    print(step, flush=True)
"""


class Server:
    """`mlflow server` on SQLite, that can be killed and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        files = ("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--artifacts-destination", str(self.folder / "artifacts"))
        command = [BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1", *files]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        began = time.monotonic()
        while not self._is_up():
            assert time.monotonic() - began < START_SECONDS, (self.folder / "server.log").read_text()[-2000:]
            time.sleep(0.2)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def _is_up(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health", timeout=2).status_code == 200
        return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow-server"))
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def short_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


@pytest.fixture
def run(server: Server) -> RunAddress:
    return Tracker(server.url).start("stage1_sft", params={}, tags={})


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """MLflow without a server, where there is nothing to be away."""
    folder = tmp_path_factory.getbasetemp() / "database"
    return Tracker(f"sqlite:///{folder / 'mlflow.db'}", artifacts=folder / "mlruns")


def test_what_is_logged_while_the_server_is_killed_and_started_again_arrives_in_order_and_once(
    server: Server, run: RunAddress, tmp_path: Path
):
    spool = MetricSpool(tmp_path / "metrics.jsonl", run)
    slowest = _log_steps(spool, 1, 50)
    server.kill()
    slowest = max(slowest, _log_steps(spool, 51, 150))
    server.start()
    slowest = max(slowest, _log_steps(spool, 151, 200))
    assert spool.close(DELIVERY_SECONDS) == "arrived"
    assert _history(run) == _spooled(tmp_path / "metrics.jsonl")
    assert [step for step, _, _ in _history(run)] == list(range(1, 200 + 1))
    assert slowest < NEVER_A_NETWORK


def test_what_is_logged_while_the_server_stands_still_arrives_in_order_and_once(server: Server, run: RunAddress, tmp_path: Path):
    """What it was asked before it stood still it does in the end, after the same has been asked again."""
    spool = MetricSpool(tmp_path / "metrics.jsonl", run)
    _log_steps(spool, 1, 50)
    server.signal(signal.SIGSTOP)
    try:
        slowest = _log_steps(spool, 51, 300)
    finally:
        server.signal(signal.SIGCONT)
    assert spool.close(DELIVERY_SECONDS) == "arrived"
    assert _history(run) == _spooled(tmp_path / "metrics.jsonl")
    assert [step for step, _, _ in _history(run)] == list(range(1, 300 + 1))
    assert slowest < NEVER_A_NETWORK


@pytest.mark.parametrize("fault", ["lost answer", "503", "429", "reset"])
def test_a_batch_that_is_sent_again_is_not_doubled(server: Server, tmp_path: Path, fault: str):
    with _between(server.port, [fault] * 3) as url:
        run = RunAddress(uri=url, run_id=Tracker(server.url).start("stage1_sft", params={}, tags={}).run_id)
        spool = MetricSpool(tmp_path / "metrics.jsonl", run)
        for step, loss in enumerate([0.1 + 0.2, 1e-300, math.nan, math.inf, -math.inf], start=1):
            spool.log({"loss": loss}, step)
        assert spool.close(DELIVERY_SECONDS) == "arrived"
    history = _client(server).get_metric_history(run.run_id, "loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5]
    assert [metric.value for metric in history[:2]] == [0.1 + 0.2, 1e-300]
    assert math.isnan(history[2].value)


def test_texts_are_kept_as_artifacts_and_a_file_logged_again_keeps_its_first_text(server: Server, run: RunAddress, tmp_path: Path):
    spool = MetricSpool(tmp_path / "metrics.jsonl", run)
    spool.log({"loss": 2.0}, 1)
    spool.log_text("<think>4 + 3 = 7.</think>7\nAnd ö.", "samples/step-000001.md")
    spool.log_text("another", "samples/step-000001.md")
    spool.log({"loss": 1.0}, 2)
    assert spool.close(DELIVERY_SECONDS) == "arrived"
    assert httpx.get(f"{_artifacts(server, run)}/samples/step-000001.md").text == "<think>4 + 3 = 7.</think>7\nAnd ö."
    assert [(step, value) for step, value, _ in _history(run)] == [(1, 2.0), (2, 1.0)]


def test_where_the_run_is_deleted_delivery_ends_with_one_line_and_the_training_goes_on(
    server: Server, run: RunAddress, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    _client(server).delete_run(run.run_id)
    spool = MetricSpool(tmp_path / "metrics.jsonl", run)
    _log_steps(spool, 1, 100)
    assert spool.close(DELIVERY_SECONDS) == "refused"
    (record,) = [record for record in caplog.records if record.name == "trlm_core.metric_spool"]
    assert record.levelno == logging.ERROR
    assert "delivery to MLflow has ended" in record.message
    assert "must be in the 'active' state" in record.message
    assert len(_spooled(tmp_path / "metrics.jsonl")) == 100


def test_closing_waits_only_so_long_and_what_is_left_is_delivered_later(
    server: Server, run: RunAddress, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    away = RunAddress(uri=f"http://127.0.0.1:{free_port()}", run_id=run.run_id)
    spool = MetricSpool(tmp_path / "metrics.jsonl", away)
    _log_steps(spool, 1, 50)
    began = time.monotonic()
    assert spool.close(1.0) == "waiting"
    assert time.monotonic() - began < 3
    assert [record.message for record in caplog.records if "does not answer; metrics wait" in record.message][1:] == [], "said once"
    assert deliver(tmp_path / "metrics.jsonl", run, DELIVERY_SECONDS) == "arrived"
    assert _history(run) == _spooled(tmp_path / "metrics.jsonl")


def test_after_a_kill_in_the_middle_of_a_line_a_resumed_training_doubles_and_loses_nothing(database: Tracker, tmp_path: Path):
    path, run = tmp_path / "metrics.jsonl", database.start("stage1_sft", params={}, tags={})
    _kill_a_writer(path, run, at_step=300)
    with path.open("a") as file:
        file.write('{"moment": 1, "step": 100000, "metr')
    first = _spooled(path)
    last = len(first)
    spool = MetricSpool(path, run)
    _log_steps(spool, last - 100, last + 20)  # the checkpoint is a hundred steps older than the kill
    assert spool.close(DELIVERY_SECONDS) == "arrived"
    history = _history(run)
    assert history[:last] == first
    assert [step for step, _, _ in history] == list(range(1, last + 21))
    assert history == _spooled(path)


def test_what_a_killed_training_left_is_delivered_from_where_it_was(database: Tracker, tmp_path: Path):
    path, run = tmp_path / "metrics.jsonl", database.start("stage1_sft", params={}, tags={})
    _kill_a_writer(path, run, at_step=3000)
    assert deliver(path, run, DELIVERY_SECONDS) == "arrived"
    assert _history(run) == _spooled(path)
    assert sent_bytes(path, run) == path.read_bytes().rindex(b"\n") + 1


def test_what_a_training_could_not_deliver_to_its_end_is_kept_and_delivered_when_mlflow_is_back(server: Server, tmp_path: Path):
    path, kept = tmp_path / "work" / "metrics.jsonl", tmp_path / "store" / ".undelivered"
    with _between(server.port, ["503"] * 20) as url:
        run = RunAddress(uri=url, run_id=Tracker(server.url).start("stage1_sft", params={}, tags={}).run_id)
        spool = MetricSpool(path, run)
        _log_steps(spool, 1, 20)
        assert spool.close(0.5) == "waiting"
        logged = _spooled(path)
        deliver_or_keep(path, run, 0.5, kept)
        deliver_kept(kept, 0.5)
        assert len(list(kept.iterdir())) == 2, "MLflow is still away"
        deliver_kept(kept, DELIVERY_SECONDS)
        assert deliver(path, run, DELIVERY_SECONDS) == "arrived", "a stage that goes on after all sends the same again"
    assert list(kept.iterdir()) == []
    assert _history(RunAddress(uri=server.url, run_id=run.run_id)) == logged


def test_a_new_run_gets_the_whole_curve(database: Tracker, tmp_path: Path):
    """Where somebody has deleted the run that the killed training was in."""
    path, old = tmp_path / "metrics.jsonl", database.start("stage1_sft", params={}, tags={})
    spool = MetricSpool(path, old)
    _log_steps(spool, 1, 10)
    assert spool.close(DELIVERY_SECONDS) == "arrived"
    new = database.start("stage1_sft", params={}, tags={})
    spool = MetricSpool(path, new)
    _log_steps(spool, 8, 12)
    assert spool.close(DELIVERY_SECONDS) == "arrived"
    assert [step for step, _, _ in _history(new)] == list(range(1, 13))
    assert [step for step, _, _ in _history(old)] == list(range(1, 11))


def test_a_metric_may_come_after_others_of_its_step(tmp_path: Path):
    spool = MetricSpool(tmp_path / "metrics.jsonl", None)
    spool.log({"loss": 2.0}, 0)
    spool.log({"eval_loss": 3.0, "loss": 9.0}, 0)
    assert spool.close(0) == "arrived"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["metrics"] for line in lines] == [{"loss": 2.0}, {"eval_loss": 3.0}]


def test_what_cannot_be_read_is_dropped_with_what_follows(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"moment": 1, "step": 1, "metrics": {"loss": 2.0}}\n' + bytes(40) + b'\n{"moment": 3, "step": 3, "metrics": {"loss": 1.0}}\n'
    )
    spool = MetricSpool(path, None)
    spool.log({"loss": 1.5}, 2)
    assert spool.close(0) == "arrived"
    assert [step for step, _, _ in _spooled(path)] == [1, 2]


def test_one_call_carries_no_more_metrics_than_mlflow_takes(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"moment": 1, "step": 1, "metrics": {f"m{number}": 0.0 for number in range(300)}}) + "\n"
    path.write_text(line * 7)
    sizes, end = [], 0
    while parcel := next_parcel(path, end):
        sizes.append(len(parcel.points))
        end = parcel.end
    assert sizes == [900, 900, 300]
    assert end == len(line) * 7


def _log_steps(spool: MetricSpool, first: int, last: int) -> float:
    """Seconds of the slowest call."""
    slowest = 0.0
    for step in range(first, last + 1):
        began = time.monotonic()
        spool.log({"loss": 1 / step, "grad_norm": 1.0}, step)
        slowest = max(slowest, time.monotonic() - began)
        time.sleep(A_STEP)
    return slowest


def _history(run: RunAddress) -> list[tuple[int, float, int]]:
    """Step, value and moment, as MLflow gives them."""
    client = mlflow.MlflowClient(tracking_uri=run.uri)
    return [(metric.step, metric.value, metric.timestamp) for metric in client.get_metric_history(run.run_id, "loss")]


def _spooled(path: Path) -> list[tuple[int, float, int]]:
    whole = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [(line["step"], line["metrics"]["loss"], line["moment"]) for line in whole]


def _kill_a_writer(path: Path, run: RunAddress, at_step: int) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path, run.model_dump_json()], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert any(int(line) == at_step for line in writer.stdout)
    writer.kill()
    writer.wait()


def _client(server: Server) -> Any:
    return mlflow.MlflowClient(tracking_uri=server.url)


def _artifacts(server: Server, run: RunAddress) -> str:
    where = _client(server).get_run(run.run_id).info.artifact_uri
    return where.replace("mlflow-artifacts:", f"{server.url}/api/2.0/mlflow-artifacts/artifacts")


@contextlib.contextmanager
def _between(port: int, faults: list[str]) -> Iterator[str]:
    """A server in front of that one: it meets its first requests with these faults and passes on all others."""

    class Between(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fault = faults.pop(0) if faults else None
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                self.connection.close()
                return
            if fault in {"503", "429"}:
                self.send_error(int(fault))
                return
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            upstream.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = upstream.getresponse()
            content = answer.read()
            if fault == "lost answer":
                assert answer.status == 200
                self.connection.close()
                return
            self.send_response(answer.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    front = ThreadingHTTPServer(("127.0.0.1", 0), Between)
    thread = threading.Thread(target=front.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{front.server_port}"
    front.shutdown()
    front.server_close()
    assert faults == [], "every fault was met"
