"""Leases in a bucket: taken over from the dead, never from the living, and noticed when they are lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from trlm_core.artifacts.errors import LeaseLostError
from trlm_core.artifacts.lease import tried, waited_for
from trlm_core.artifacts.remote import Remote
from trlm_core.artifacts.remote_lease import LeaseObject, RemoteLease
from trlm_core.artifacts.store import Store

TTL = 2.0
HOLDER = """
import sys, time
from pathlib import Path
from trlm_core.artifacts.lease import waited_for
from trlm_core.artifacts.remote import Remote
from trlm_core.artifacts.remote_lease import RemoteLease
with waited_for(RemoteLease(Remote(sys.argv[1]), Path(sys.argv[2]), "a"), "a"):
    print("held", flush=True)
    time.sleep(600)
"""


def lease(store: Store, ttl: float = TTL) -> RemoteLease:
    assert store.remote is not None
    return RemoteLease(store.remote, store.root, "a", ttl)


def generations(store: Store) -> dict[int, LeaseObject]:
    assert store.remote is not None
    return {
        int(key[-8:]): LeaseObject.model_validate_json(store.remote.read(key)) for key in store.remote.sizes(".leases/a")
    }  # fmt: skip


def holder_process(address: str, cache: Path) -> "subprocess.Popen[str]":
    cache.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, address, str(cache)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TRLM_LEASE_SECONDS": str(TTL)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_machine_finds_it_held_and_gets_the_next_generation_at_once_when_it_is_released(s3_store: Store, other_machine: Store):
    with waited_for(lease(s3_store), "a"):
        assert f"process {os.getpid()} on " in (lease(other_machine).take() or "")
    began = time.monotonic()
    with waited_for(lease(other_machine, ttl=60), "a"):
        assert max(generations(s3_store)) == 2
    assert time.monotonic() - began < 5
    assert list(generations(s3_store)) == [2], "older generations are swept, the newest stays"
    assert generations(s3_store)[2].released


def test_a_living_holder_keeps_it_for_longer_than_its_time_to_live(s3_store: Store, other_machine: Store):
    with waited_for(lease(s3_store), "a") as held:
        waiting = lease(other_machine)
        began = time.monotonic()
        while time.monotonic() - began < 2 * TTL:
            assert waiting.take() is not None
            time.sleep(waiting.poll_seconds)
        assert waiting.holder_lives
        held.check()


def test_a_killed_holder_s_lease_is_taken_over_after_its_time_to_live_and_not_before(s3_address: str, s3_store: Store, tmp_path: Path):
    process = holder_process(s3_address, tmp_path / "its-cache")
    process.send_signal(signal.SIGKILL)
    process.wait()
    waiting, began = lease(s3_store), time.monotonic()
    with waited_for(waiting, "a"):
        assert TTL < time.monotonic() - began < TTL + 5
        assert not waiting.holder_lives
        assert max(generations(s3_store)) == 2


def test_a_holder_that_was_stopped_and_wakes_up_finds_that_it_lost_it(s3_store: Store, other_machine: Store):
    with waited_for(lease(s3_store), "a") as sleeper:
        assert other_machine.remote is not None
        taken = LeaseObject(holder="process 1 on another", token="t", ttl=TTL)
        assert other_machine.remote.create(".leases/a/00000002", taken.model_dump_json().encode())
        with pytest.raises(LeaseLostError, match="another process took it"):
            sleeper.check()
    assert not generations(s3_store)[2].released, "a lost lease is not released by who lost it"


def test_a_holder_that_cannot_renew_for_longer_than_others_wait_has_lost_it(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import s3fs
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    with serve(DomainDispatcherApplication(create_backend_app)) as url:
        for variable, value in {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            monkeypatch.setenv(variable, value)
        s3fs.S3FileSystem(endpoint_url=url, skip_instance_cache=True).mkdir("bucket-of-a-server-that-ends")
        held = RemoteLease(Remote("s3://bucket-of-a-server-that-ends"), tmp_path, "a", ttl=TTL)
        assert held.take() is None
        held.check()
    time.sleep(TTL)
    with pytest.raises(LeaseLostError, match=r"could not be renewed for \d+ s"):
        held.check()
    held.release()


def test_of_many_that_create_the_same_object_one_does(s3_store: Store):
    assert s3_store.remote is not None
    remote, created = s3_store.remote, []
    threads = [threading.Thread(target=lambda: created.append(remote.create("one", b"x"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(created) == [False] * 7 + [True]


def test_trying_neither_waits_nor_takes_what_is_held(s3_store: Store, other_machine: Store):
    with waited_for(lease(s3_store), "a"), tried(lease(other_machine)) as free:
        assert not free
    with tried(lease(other_machine)) as free:
        assert free
