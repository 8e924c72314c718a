"""Leases in a folder: held by one thread of one process, until that and the children that do its work have ended."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trlm_core.artifacts.lease import RUN, FileLease, descriptors, tried, waited_for

HOLDER_WITH_CHILD = """
import subprocess, sys, time
from pathlib import Path
from trlm_core.artifacts.lease import FileLease, descriptors, waited_for
with waited_for(FileLease(Path(sys.argv[1]), "a"), "a"):
    child = subprocess.Popen(["sleep", "600"], pass_fds=descriptors())
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_a_lease_is_free_again_after_its_block_and_names_its_holder_in_it(tmp_path: Path):
    with waited_for(FileLease(tmp_path, "a"), "a"):
        assert FileLease(tmp_path, "a").take() == (tmp_path / ".leases/a").read_text().strip()
        assert f"process {os.getpid()} on " in (tmp_path / ".leases/a").read_text()
    with tried(FileLease(tmp_path, "a")) as free:
        assert free


def test_leases_of_different_names_do_not_wait_for_each_other(tmp_path: Path):
    with waited_for(FileLease(tmp_path, "a"), "a"), tried(FileLease(tmp_path, "b")) as free:
        assert free


def test_threads_of_one_process_hold_a_lease_one_after_the_other(tmp_path: Path):
    inside, most = 0, 0

    def hold() -> None:
        nonlocal inside, most
        with waited_for(FileLease(tmp_path, "a"), "a"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.02)
            inside -= 1

    run_in_threads(hold, 5)
    assert most == 1


def test_a_thread_that_would_wait_for_itself_is_stopped(tmp_path: Path):
    with waited_for(FileLease(tmp_path, "a"), "a"), pytest.raises(AssertionError, match="would wait for itself"):
        take_and_leave(tmp_path)


def test_who_waits_says_for_whom_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    waiting = threading.Thread(target=take_and_leave, args=(tmp_path,))
    with caplog.at_level(logging.INFO, logger="trlm_core"), waited_for(FileLease(tmp_path, "a"), "a"):
        waiting.start()
        time.sleep(3 * FileLease.poll_seconds)
    waiting.join()
    (line,) = caplog.messages
    assert line.startswith(f"waiting for checkpoints/a, held by process {os.getpid()} on ")


def test_a_thread_passes_on_its_own_leases_and_never_the_run_s(tmp_path: Path):
    started, done = threading.Event(), threading.Event()

    def hold_another() -> None:
        with waited_for(FileLease(tmp_path, "b"), "b"):
            started.set()
            done.wait()

    other = threading.Thread(target=hold_another)
    other.start()
    started.wait()
    with waited_for(FileLease(tmp_path, RUN), "run"), waited_for(FileLease(tmp_path, "a"), "a"):
        (descriptor,) = descriptors()
        assert os.path.samestat(os.fstat(descriptor), (tmp_path / ".leases/a").stat())
    assert descriptors() == ()
    done.set()
    other.join()


def test_a_killed_process_keeps_its_lease_as_long_as_the_child_that_does_its_work_lives(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER_WITH_CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with tried(FileLease(tmp_path, "a")) as free:
            assert not free
    finally:
        os.kill(child, signal.SIGKILL)
    with waited_for(FileLease(tmp_path, "a"), "a"):
        pass


def test_a_forked_worker_does_not_keep_a_lease_that_its_parent_released(tmp_path: Path):
    with waited_for(FileLease(tmp_path, "a"), "a"):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        worker.start()
        time.sleep(0.1)
    with tried(FileLease(tmp_path, "a")) as free:
        assert free
    worker.kill()
    worker.join()


def take_and_leave(root: Path) -> None:
    with waited_for(FileLease(root, "a"), "checkpoints/a"):
        pass


def run_in_threads(target: Callable[[], object], count: int) -> None:
    threads = [threading.Thread(target=target) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
