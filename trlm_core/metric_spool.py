"""Metrics on their way to MLflow: in a file at once, and from there delivered in order by a thread, whether MLflow is there or not.

metrics.jsonl:      {"moment": 1795572956412, "step": 12, "metrics": {"loss": 0.71, "grad_norm": 1.3}}
                    {"moment": 1795572957020, "file": "samples/step-000012.md", "text": "..."}
metrics.jsonl.sent: {"run": {"uri": "http://mlflow:5000", "run_id": "3f2a..."}, "bytes": 1834}
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trlm_core.artifacts.aside import write_aside
from trlm_core.artifacts.errors import first_line
from trlm_core.artifacts.shelf import sync
from trlm_core.tracking import METRICS_IN_A_BATCH, Point, RunAddress, import_client, is_outage, send_points, send_text

logger = logging.getLogger(__name__)

Delivery = Literal["arrived", "waiting", "refused"]

UNDELIVERED = ".undelivered"  # folder of a store: spools of trainings that ended while MLflow was away
GATHER_SECONDS = 1.0  # lines that are logged so close together travel together
PAUSE_SECONDS = 1.0  # after a failed try, doubled from try to try
LONGEST_PAUSE_SECONDS = 15.0
CLOSING_PAUSE_SECONDS = 0.5


class MetricSpool:
    """What a training logs. A value once logged stays: who resumes and logs its step again adds nothing."""

    def __init__(self, path: Path, run: RunAddress | None) -> None:
        """Go on with the file, if there is one. Without a run, it is kept and not delivered."""
        _cut_half_line(path)
        self._last: dict[str, int] = {}  # metric -> its last step
        self._texts: set[str] = set()
        for entry in _entries(path):
            self._last |= dict.fromkeys(entry.get("metrics", {}), entry.get("step", 0))
            self._texts |= {entry["file"]} if "file" in entry else set()
        self._file = path.open("a")
        self._lock = threading.Lock()
        self._courier = Courier(path, run) if run is not None else None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Never waits for a network."""
        with self._lock:
            new = {key: float(value) for key, value in metrics.items() if step > self._last.get(key, step - 1)}
            if new:
                self._append({"moment": _now(), "step": step, "metrics": new})
                self._last |= dict.fromkeys(new, step)

    def log_text(self, text: str, file: str) -> None:
        """As an artifact of the run, at this path."""
        with self._lock:
            if file not in self._texts:
                self._append({"moment": _now(), "file": file, "text": text})
                self._texts.add(file)

    def next_step(self, metric: str) -> int:
        """For what has no steps of its own: the one after the last, 0 at first."""
        with self._lock:
            return self._last.get(metric, -1) + 1

    def close(self, seconds: float) -> Delivery:
        """Wait at most so long for what is left to arrive. What waits stays in the file: see `deliver`."""
        with self._lock:
            self._file.close()
        return "arrived" if self._courier is None else self._courier.close(seconds)

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        if self._courier is not None:
            self._courier.wake()


def deliver(path: Path, run: RunAddress, seconds: float) -> Delivery:
    """Send what the file still holds, for at most so long. For when its spool is closed, or was killed."""
    return Courier(path, run).close(seconds) if path.exists() else "arrived"


def deliver_or_keep(path: Path, run: RunAddress, seconds: float, folder: Path) -> None:
    """At the end of a training. What cannot be delivered yet goes to that folder, for `deliver_kept`."""
    if deliver(path, run, seconds) != "waiting":
        return
    kept = folder / f"{run.run_id}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    write_aside(_record(kept), Sent(run=run, bytes=sent_bytes(path, run)).model_dump_json())
    shutil.copy(path, kept)  # not moved: a stage that is not finished after all goes on in its own, and what both send is the same
    logger.warning("%s: MLflow is still away; the next pipeline on this store delivers these metrics", kept)


def deliver_kept(folder: Path, seconds: float) -> None:
    """Send what earlier trainings have left there, for at most so long each."""
    for path in sorted(folder.glob("*.jsonl")):
        run = Sent.model_validate_json(_record(path).read_text()).run
        ended = deliver(path, run, seconds)
        if ended == "arrived":
            path.unlink()
            _record(path).unlink()
        elif ended == "refused":
            path.rename(path.with_suffix(".refused"))  # never tried again, and there to be read


class Courier:
    """The thread that delivers a spool's file, and writes beside it how far it is."""

    def __init__(self, path: Path, run: RunAddress) -> None:
        self._path, self._run = path, run
        import_client()
        self._awake, self._closing = threading.Event(), threading.Event()
        self._deadline = float("inf")
        self._delivery: Delivery = "waiting"
        self._thread = threading.Thread(target=self._work, daemon=True, name="metric-courier")
        self._thread.start()

    def wake(self) -> None:
        self._awake.set()

    def close(self, seconds: float) -> Delivery:
        self._deadline = time.monotonic() + seconds
        self._closing.set()
        self._awake.set()
        self._thread.join(seconds)
        return self._delivery

    def _work(self) -> None:
        try:
            self._deliver()
        except Exception as error:  # nobody waits for this thread, and a training does not fail for it
            self._delivery = "refused"
            why = f"{type(error).__name__}: {first_line(error)}"
            logger.error("%s: delivery to MLflow has ended; the training goes on, its metrics stay in this file: %s", self._path, why)

    def _deliver(self) -> None:
        failures = 0
        while time.monotonic() < self._deadline:
            last = self._closing.is_set()  # asked before the file is read: what is logged is in it by then
            try:
                more = self._send_next()
            except Exception as error:
                if not is_outage(error):
                    raise
                failures += 1
                self._tell(failures, error)
                self._pause(failures)
                continue
            if failures:
                logger.warning("%s: MLflow answers again", self._path)
            failures = 0
            if not more and last:
                self._delivery = "arrived"
                return
            if not more:
                self._awake.wait()
                self._awake.clear()
                self._closing.wait(GATHER_SECONDS)

    def _send_next(self) -> bool:
        """Whether there was anything."""
        parcel = next_parcel(self._path, sent_bytes(self._path, self._run))
        if parcel is None:
            return False
        sync(self._path)  # MLflow never knows what a machine that stops has lost: it would be logged again, at another moment
        if parcel.text is not None:
            send_text(self._run, parcel.text, parcel.file)
        else:
            send_points(self._run, parcel.points)
        write_aside(_record(self._path), Sent(run=self._run, bytes=parcel.end).model_dump_json())
        return True

    def _tell(self, failures: int, error: Exception) -> None:
        if failures == 1:
            logger.warning("%s: MLflow does not answer; metrics wait in this file until it does: %s", self._path, first_line(error))

    def _pause(self, failures: int) -> None:
        if self._closing.is_set():
            time.sleep(CLOSING_PAUSE_SECONDS)
        else:
            self._closing.wait(min(PAUSE_SECONDS * 2 ** (failures - 1), LONGEST_PAUSE_SECONDS))


@dataclass(frozen=True)
class Parcel:
    """What one call delivers: a text, or points of one line or more."""

    end: int  # bytes of the file that are delivered after it
    points: list[Point]
    text: str | None = None
    file: str = ""


def next_parcel(path: Path, begin: int) -> Parcel | None:
    """The whole lines from there on, as many as one call takes; None where there are none."""
    points: list[Point] = []
    end = begin
    for size, entry in _lines(path, begin):
        if "text" in entry:
            return Parcel(end, points) if points else Parcel(end + size, [], entry["text"], entry["file"])
        if points and len(points) + len(entry["metrics"]) > METRICS_IN_A_BATCH:
            break
        points += [Point(key, value, entry["moment"], entry["step"]) for key, value in entry["metrics"].items()]
        end += size
    return Parcel(end, points) if points else None


class Sent(BaseModel):
    """How far a file is delivered, and to which run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: RunAddress
    bytes: int


def sent_bytes(path: Path, run: RunAddress) -> int:
    """0 for another run than the one that got them: a new run gets the whole curve."""
    try:
        sent = Sent.model_validate_json(_record(path).read_text())
    except (FileNotFoundError, ValidationError):  # nothing yet, or the machine stopped before it was on the disk
        return 0
    return sent.bytes if sent.run == run and sent.bytes <= path.stat().st_size else 0


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}.sent")


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    return (entry for _, entry in _lines(path, 0)) if path.exists() else iter(())


def _lines(path: Path, begin: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Size and content of every whole line."""
    with path.open("rb") as file:
        file.seek(begin)
        for line in file:
            if line.endswith(b"\n"):
                yield len(line), json.loads(line)


def _cut_half_line(path: Path) -> None:
    """A killed process may have written the beginning of a line; on a machine that lost its power, anything may be there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    whole = 0
    try:
        for size, _ in _lines(path, 0):
            whole += size
    except ValueError:
        logger.warning("%s: what follows byte %d cannot be read and is dropped", path, whole)
    os.truncate(path, whole)


def _now() -> int:
    return time.time_ns() // 1_000_000
