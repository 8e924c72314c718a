"""Saves: whole or not there, the newest good one found, the best kept."""

import json
from pathlib import Path

import pytest

from trlm_core.training.saves import discard_after, keep_save, newest_good, newest_step, prune


@pytest.fixture
def saves(tmp_path: Path) -> Path:
    return tmp_path / "saves"


def saved(saves: Path, step: int, loss: float | None = 1.0) -> Path:
    aside = saves.parent / "aside"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(bytes([step % 256]) * 1000)
    (aside / "optimizer.pt").write_bytes(b"moments")
    return keep_save(aside, saves, step, loss)


def test_a_save_lists_every_file_with_its_hash_and_leaves_nothing_aside(saves: Path):
    folder = saved(saves, 300, 0.5)
    assert folder.name == "step-000300"
    listed = json.loads((folder / "save.json").read_text())
    assert (listed["step"], listed["loss"], sorted(listed["files"])) == (300, 0.5, ["model.safetensors", "optimizer.pt"])
    assert [path.name for path in saves.parent.iterdir()] == ["saves"]


def test_there_is_no_good_save_before_the_first(saves: Path):
    assert newest_good(saves) is None
    assert newest_step(saves) is None


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"momentS"), "optimizer.pt: wanted sha256"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt: missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "model.safetensors: wanted 1,000 bytes, got 4"),
        (lambda folder: (folder / "save.json").unlink(), "wanted a finished save"),
        (lambda folder: (folder / "save.json").write_text('{"step": 20'), "wanted a finished save"),
    ],
)
def test_a_damaged_save_is_passed_over_with_a_warning_that_says_what_is_wrong(
    saves: Path, harm, words: str, caplog: pytest.LogCaptureFixture
):
    good, damaged = saved(saves, 10), saved(saves, 20)
    harm(damaged)
    found = newest_good(saves)
    assert found is not None
    assert (found[0], found[1].step) == (good, 10)
    assert words in caplog.text
    assert str(damaged) in caplog.text


def test_what_a_resumed_training_does_not_build_on_goes_and_pushes_nothing_out(saves: Path):
    for step in (10, 20, 30):
        saved(saves, step)
    discard_after(saves, 10)
    assert [folder.name for folder in saves.iterdir()] == ["step-000010"]
    saved(saves, 20)
    found = newest_good(saves)
    assert found is not None
    assert found[1].step == 20
    discard_after(saves, 0)
    assert [*saves.iterdir()] == []


def test_the_newest_and_the_best_are_kept(saves: Path):
    for step, loss in ((10, 0.9), (20, 0.3), (30, 0.7), (40, None), (50, 0.8)):
        saved(saves, step, loss)
    prune(saves, keep=2)
    assert sorted(folder.name for folder in saves.iterdir()) == ["step-000020", "step-000040", "step-000050"]


def test_a_damaged_save_is_never_the_best(saves: Path):
    for step, loss in ((10, 0.1), (20, 0.5), (30, 0.7)):
        saved(saves, step, loss)
    (saves / "step-000010" / "save.json").write_text("{")
    prune(saves, keep=1)
    assert sorted(folder.name for folder in saves.iterdir()) == ["step-000020", "step-000030"]


def test_saves_are_counted_by_their_steps_and_not_by_their_names(saves: Path):
    for step in (999_999, 1_000_000):
        saved(saves, step)
    assert newest_step(saves) == 1_000_000
