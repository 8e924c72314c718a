"""What a run shows of the saves that it pushed while it trained."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

from tasks.place import Place, Where
from tasks.publishing import Publishing, saves_pushed
from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.server import LoopbackHub

REPO = "tester/model"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with LoopbackHub() as started:
        hubs = {"HF_ENDPOINT": started.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        for name, value in {**hubs, "HF_TOKEN": TOKEN}.items():
            monkeypatch.setenv(name, value)
        yield started


def test_a_run_shows_what_became_of_each_save_and_the_save_s_card_says_its_step(hub: LoopbackHub, built: Any, tmp_path: Path):
    _pushed(built, Publishing(repo=REPO, when="saves"), _save(tmp_path))
    repository = hub.repositories.get(REPO, "model")
    assert repository is not None
    assert [commit.message for commit in repository.commits] == ["", "step 2"]
    card = repository.head.files["README.md"]
    assert b"these are the weights after step 2." in b"".join(card.pieces(0, card.size))
    (shown,) = _shown()
    assert shown == [{"step": 2, "outcome": "published", "told": f"{hub.endpoint}/{REPO}/commit/{repository.head.sha}"}]


@pytest.mark.parametrize("to", [None, Publishing(repo=REPO, when="end")])
def test_without_the_wish_no_save_is_pushed(hub: LoopbackHub, built: Any, tmp_path: Path, to: Publishing | None):
    _pushed(built, to, _save(tmp_path))
    assert not hub.requests


def _pushed(built: Any, to: Publishing | None, save: Path) -> None:
    place = Place.of(built.recipe, Where(store=built.store.address))

    @flow(name="pushes")
    def pushes() -> None:
        with saves_pushed(place, place.recipe.stage("stage1_sft"), to) as on_save:
            on_save(save, 2)
            pusher = getattr(on_save, "__self__", None)
            while pusher is not None and not pusher.outcomes:
                time.sleep(0.05)

    pushes()


def _save(folder: Path) -> Path:
    save = folder / "saves" / "step-000002"
    save.mkdir(parents=True)
    (save / "model.safetensors").write_bytes(b"weights")
    (save / "history.jsonl").write_text("".join(json.dumps({"step": step, "loss": 1.0, "useful_tokens": 9}) + "\n" for step in (1, 2)))
    return save


def _shown() -> list[Any]:
    with get_client(sync_client=True) as client:
        artifacts = client.request("POST", "/artifacts/filter", json={"artifacts": {"key": {"any_": ["pushed-saves-stage1-sft"]}}}).json()
    return [json.loads(artifact["data"]) for artifact in artifacts]
