"""Saves on their way to the loopback Hub while the training goes on: it never waits, never fails, and every outcome is told."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.faults import Fault, Request, calls
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.server import LoopbackHub
from tests.processes import running
from trlm_core.training import save_pusher
from trlm_core.training.save_pusher import PushedSave, SavePusher

REPO = "tester/model"
CARD = "---\ntags: [trlm]\n---\nStep {}.\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        hubs = {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        for name, value in {**hubs, "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(save_pusher, "SECONDS_BEFORE_TRIES", (0.0, 0.1, 0.1))
        yield server


@pytest.fixture
def save(tmp_path: Path) -> Callable[[int], Path]:
    def make(step: int) -> Path:
        folder = tmp_path / "saves" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "config.json", "history.jsonl", "optimizer.pt", "save.json", "rng_state.pth"):
            (folder / name).write_text(f"{name} of step {step}")
        return folder

    return make


@pytest.fixture
def pusher(hub: LoopbackHub) -> Iterator[SavePusher]:
    made = SavePusher(REPO, lambda folder, step: CARD.format(step))
    yield made
    made.close()


class Gate:
    """Holds up the requests that it hits until it is opened."""

    def __init__(self, hits: Callable[[Request], bool]) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        self.fault = Fault(hits, first=self._wait)

    def _wait(self) -> None:
        self.reached.set()
        self._open.wait(60)

    def open(self) -> None:
        self._open.set()


def test_each_save_is_one_commit_of_what_loads_it(hub: LoopbackHub, pusher: SavePusher, save: Callable, tmp_path: Path):
    for step in (300, 600):
        pusher.push(save(step), step)
        _wait_for(lambda step=step: step in [each.step for each in pusher.outcomes])
    assert _messages(hub) == ["", "step 300", "step 600"]
    head = _repository(hub).head
    assert set(head.files) == {".gitattributes", "README.md", "model.safetensors", "config.json", "history.jsonl"}
    assert b"".join(head.files["README.md"].pieces(0, 99)) == CARD.format(600).encode()
    first, second = pusher.close()
    assert [(each.step, each.outcome) for each in (first, second)] == [(300, "published"), (600, "published")]
    assert second.told == f"{hub.endpoint}/{REPO}/commit/{head.sha}"
    assert sorted(path.name for path in (tmp_path / "saves").iterdir()) == ["step-000300", "step-000600"], "nothing else is left"


def test_a_push_that_hangs_stops_nobody_and_ends_with_the_training(hub: LoopbackHub, pusher: SavePusher, save: Callable):
    gate = Gate(calls("/lfs/", "PUT"))
    hub.faults.append(gate.fault)
    began = time.monotonic()
    pusher.push(save(300), 300)
    assert time.monotonic() - began < 0.5
    assert gate.reached.wait(30)
    (child,) = running("trlm_core.training.save_push")
    began = time.monotonic()
    (outcome,) = pusher.close()
    assert time.monotonic() - began < 5
    assert (outcome.step, outcome.outcome) == (300, "passed over")
    assert "the training ended first" in outcome.told
    assert not child.is_running()
    gate.open()
    assert _messages(hub) == [""]


def test_the_newest_save_takes_the_place_of_those_that_wait_and_a_removed_one_still_arrives(
    hub: LoopbackHub, pusher: SavePusher, save: Callable
):
    gate = Gate(calls("/commit/main"))
    hub.faults.append(gate.fault)
    pusher.push(save(300), 300)
    assert gate.reached.wait(30)
    for step in (600, 900):
        folder = save(step)
        pusher.push(folder, step)
        shutil.rmtree(folder)  # as the training does with all but the last
    gate.open()
    _wait_for(lambda: "step 900" in _messages(hub))
    assert _messages(hub) == ["", "step 300", "step 900"]
    weights = _repository(hub).head.files["model.safetensors"]
    assert b"".join(weights.pieces(0, weights.size)) == b"model.safetensors of step 900"
    assert {each.step: (each.outcome, each.told) for each in pusher.close()}[600] == ("passed over", "a newer save came first")


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_s_error_is_tried_again(hub: LoopbackHub, pusher: SavePusher, save: Callable, status: int):
    hub.faults.append(Fault(calls("/api/models/tester/model"), status=status, times=2))
    pusher.push(save(300), 300)
    _wait_for(lambda: "step 300" in _messages(hub))
    assert _messages(hub) == ["", "step 300"]


def test_a_push_that_takes_too_long_is_ended_and_tried_again(
    hub: LoopbackHub, pusher: SavePusher, save: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(save_pusher, "SECONDS_OF_A_TRY", 8.0)
    gate = Gate(calls("/lfs/", "PUT"))
    hub.faults.append(gate.fault)
    pusher.push(save(300), 300)
    _wait_for(lambda: pusher.outcomes)
    gate.open()
    assert (pusher.outcomes[0].outcome, _messages(hub)) == ("published", ["", "step 300"])


def test_a_refused_token_fails_once_and_the_next_save_has_its_turn(
    hub: LoopbackHub, pusher: SavePusher, save: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_0123456789")
    pusher.push(save(300), 300)
    _wait_for(lambda: pusher.outcomes)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pusher.push(save(600), 600)
    _wait_for(lambda: "step 600" in _messages(hub))
    failed, _ = pusher.close()
    assert (failed.step, failed.outcome) == (300, "failed")
    assert failed.told.startswith("tester/model: wanted a token that may write it, the Hub says 401")
    assert "hf_wrong" not in failed.told


def test_a_save_that_is_not_there_is_a_failed_push_and_no_error(pusher: SavePusher, tmp_path: Path):
    missing = tmp_path / "saves" / "step-000300"
    pusher.push(missing, 300)
    assert pusher.close() == [PushedSave(300, "failed", f"{missing}: No such file or directory")]


def _repository(hub: LoopbackHub) -> Repository:
    found = hub.repositories.get(REPO, "model")
    assert found is not None
    return found


def _messages(hub: LoopbackHub) -> list[str]:
    found = hub.repositories.get(REPO, "model")
    return [commit.message for commit in found.commits] if found else []


def _wait_for(is_so: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)
