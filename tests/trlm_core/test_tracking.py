"""Tracking with a real MLflow on SQLite: how runs end, what they hold, and whose digest a dataset has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import sqlalchemy.exc

from trlm_core.tracking import RunAddress, Tracker, finish, flattened, log_dataset, log_file, log_metrics, register_checkpoint, tracked


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
