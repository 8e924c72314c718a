"""Watching a training: the progress file and the address of a process."""

import subprocess
import sys
from pathlib import Path

from trlm_core.training.watch import ProcessAddress, Progress, read_progress, write_progress


def test_progress_is_read_as_it_was_written_and_none_before_the_first_step(tmp_path: Path):
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    write_progress(path, Progress(phase="training", step=12, steps=60, done_before=0, seconds=31.5, loss=0.71))
    assert read_progress(path) == Progress(phase="training", step=12, steps=60, done_before=0, seconds=31.5, loss=0.71)
    assert [each.name for each in tmp_path.iterdir()] == ["progress.json"]


def test_the_time_left_is_that_of_the_steps_left_at_the_pace_so_far():
    assert Progress(phase="training", step=15, steps=60, done_before=0, seconds=30.0, loss=None).seconds_left == 90.0
    assert Progress(phase="training", step=15, steps=60, done_before=10, seconds=30.0, loss=None).seconds_left == 270.0
    assert Progress(phase="training", step=0, steps=60, done_before=0, seconds=3.0, loss=None).seconds_left is None


def test_a_process_is_alive_until_it_ends_and_is_never_mistaken_for_a_later_one_with_its_number():
    here = ProcessAddress.here()
    assert here.is_alive()
    assert not here.model_copy(update={"created": here.created - 100}).is_alive()
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert not ProcessAddress(pid=child.pid, created=here.created).is_alive()
