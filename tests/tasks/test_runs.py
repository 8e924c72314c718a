"""What builds something under an MLflow run: a training that is begun again goes on in its run, and what is reused opens none."""

from pathlib import Path
from typing import Any

import mlflow
import pytest

from tasks.place import Place, Where
from tasks.runs import built, trained
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec
from trlm_core.recipes.schema import Recipe
from trlm_core.tracking import RunAddress

SPEC = Spec(kind="checkpoints", group="trlm-tiny", name="stage1_sft", identity={"epochs": 1}, inputs={})


class Build:
    """Fails as often as it is told to, then builds; remembers the runs that it was given."""

    def __init__(self, place: Place, failures: int) -> None:
        self.place, self.failures = place, failures
        self.runs: list[RunAddress] = []

    def __call__(self, run: RunAddress) -> Manifest:
        self.runs.append(run)
        if len(self.runs) <= self.failures:
            raise RuntimeError("out of memory")
        return self.place.store.make(SPEC, self._fill)

    def _fill(self, folder: Path) -> dict[str, Any]:
        (folder / "weights").write_text("weights")
        return {}


@pytest.fixture
def place(tiny_recipe: Recipe, tmp_path: Path) -> Place:
    return Place.of(tiny_recipe, Where(store=str(tmp_path / "store"), tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}"))


def test_a_training_that_failed_goes_on_in_its_run_and_then_leaves_nothing_behind(place: Place):
    build = Build(place, failures=2)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            trained(place, SPEC, {}, build)
        assert _status(build.runs[0]) == "FAILED"
    trained(place, SPEC, {}, build)
    assert build.runs == [build.runs[0]] * 3
    assert _status(build.runs[0]) == "FINISHED"
    trained(place, SPEC, {}, build)
    assert len(build.runs) == 3, "reused"
    assert [path for path in (place.store.root / ".unfinished").rglob("*") if path.is_file()] == []


def test_what_cannot_go_on_gets_a_run_each_time(place: Place):
    build = Build(place, failures=1)
    with pytest.raises(RuntimeError):
        built(place, SPEC, {}, build)
    built(place, SPEC, {}, build)
    assert [_status(run) for run in build.runs] == ["FAILED", "FINISHED"]


def _status(run: RunAddress) -> str:
    return mlflow.MlflowClient(tracking_uri=run.uri).get_run(run.run_id).info.status
