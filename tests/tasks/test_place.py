"""Where a run works: what is said, and what the worker's environment says where nothing is."""

from pathlib import Path

import pytest

from tasks.place import Place, Where
from trlm_core.recipes.schema import Recipe


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("TRLM_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)


def test_what_is_said_wins_over_the_worker_s_own(tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRLM_STORE", str(tmp_path / "worker"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://worker:5000")
    own = Place.of(tiny_recipe, Where())
    assert (own.store_address, own.tracking_uri) == (str(tmp_path / "worker"), "http://worker:5000")
    said = Place.of(tiny_recipe, Where(store=str(tmp_path / "said"), tracking_uri="http://said:5000", pipeline_run="ab12"))
    assert (said.store_address, said.tracking_uri) == (str(tmp_path / "said"), "http://said:5000")
    assert said.run is not None
    assert said.where == Where(store=str(tmp_path / "said"), tracking_uri="http://said:5000", pipeline_run="ab12")


def test_without_a_tracking_address_mlflow_s_database_lies_in_the_store(tiny_recipe: Recipe, tmp_path: Path):
    assert Place.of(tiny_recipe, Where(store=str(tmp_path))).tracking_uri == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_without_a_store_the_error_says_where_to_name_one(tiny_recipe: Recipe):
    with pytest.raises(ValueError, match=r"store: wanted its address, got none; set where\.store, or TRLM_STORE"):
        Place.of(tiny_recipe, Where())


def test_stores_of_two_machines_are_two_though_their_paths_are_one(tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = Place.of(tiny_recipe, Where(store=str(tmp_path)))
    identities = set()
    for machine in ("first", "second"):
        monkeypatch.setattr("socket.gethostname", lambda machine=machine: machine)
        identities.add(place.store_identity)
    assert identities == {f"first:{tmp_path}", f"second:{tmp_path}"}
