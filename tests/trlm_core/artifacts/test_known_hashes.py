"""Known hashes: a file is read once, and again whenever it may have changed."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trlm_core.artifacts.fingerprint import file_sha256
from trlm_core.artifacts.known_hashes import SETTLED_NS, known_sha256, new_sha256

opened: list[str] = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)


@pytest.fixture
def settled(tmp_path: Path) -> Path:
    """A file whose times are old enough to tell a change by."""
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    time.sleep(2 * SETTLED_NS / 1e9)
    return path


def readings(path: Path) -> int:
    return opened.count(str(path))


def test_a_file_is_read_once(settled: Path):
    before = readings(settled)
    assert known_sha256(settled) == known_sha256(settled) == file_sha256(settled)
    assert readings(settled) - before == 2, "once for what is known, once for what is not"


def test_a_change_of_the_same_size_is_noticed_even_where_the_time_of_the_change_is_hidden(settled: Path):
    first, stat = known_sha256(settled), settled.stat()
    settled.write_bytes(b"WEIGHTS")
    os.utime(settled, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert known_sha256(settled) == file_sha256(settled) != first


def test_another_file_under_the_same_name_is_noticed(settled: Path, tmp_path: Path):
    first = known_sha256(settled)
    (tmp_path / "aside").write_bytes(b"WEIGHTS")
    (tmp_path / "aside").replace(settled)
    assert known_sha256(settled) == file_sha256(settled) != first


def test_a_file_that_changes_at_every_reading_is_never_taken_for_known(tmp_path: Path):
    path = tmp_path / "weights"
    for number in range(200):  # far more than one within a tick of the clock
        path.write_bytes(b"%03d" % number)
        assert known_sha256(path) == file_sha256(path)


def test_threads_that_ask_at_once_read_the_file_once(settled: Path):
    settled.write_bytes(bytes(64 << 20))  # long enough to be asked for while it is read
    time.sleep(2 * SETTLED_NS / 1e9)
    before = readings(settled)
    with ThreadPoolExecutor(6) as threads:
        told = {*threads.map(known_sha256, [settled] * 6)}
    assert readings(settled) - before == 1
    assert told == {file_sha256(settled)}


def test_a_file_that_has_just_been_written_is_read_once_and_known_from_then_on(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    first = new_sha256(path)
    assert known_sha256(path) == new_sha256(path) == first
    assert readings(path) == 1 + 1, "once to write it, once to read it"
    path.write_bytes(b"WEIGHTS")
    assert known_sha256(path) == file_sha256(path) != first


def test_a_file_from_the_future_is_waited_for_once_and_read(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    os.utime(path, (time.time() + 3600, time.time() + 3600))
    assert new_sha256(path) == file_sha256(path)
