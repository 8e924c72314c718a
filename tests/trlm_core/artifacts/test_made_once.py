"""No artifact is built twice at once: not by processes, not by machines, not after a maker was killed or stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trlm_core.artifacts.store import Store

TTL = "2"
MAKER = """
import sys, time
from pathlib import Path
from trlm_core.artifacts.store import Spec, Store

def build(folder):
    with Path(sys.argv[2]).open("a") as log:
        log.write("built\\n")
    print("building", flush=True)
    time.sleep(float(sys.argv[3]))
    (folder / "a").write_text("a")
    return {}

made = Store.open(sys.argv[1]).make(Spec("evals", "g", "n", {"seed": 1}, {}), build)
print(made.seal, flush=True)
"""
Maker = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(params=["folder", "bucket"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("s3_address")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "builds.txt"


@pytest.fixture
def maker(address: str, log: Path, tmp_path: Path) -> Maker:
    """`maker("first", seconds=1)`: a process on a machine of this name that makes the artifact, and takes so long to build it."""

    def start(machine: str, seconds: float) -> "subprocess.Popen[str]":
        environment = {**os.environ, "TRLM_CACHE": str(tmp_path / machine), "TRLM_LEASE_SECONDS": TTL}
        command = [sys.executable, "-c", MAKER, address, str(log), str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return start


def builds(log: Path) -> int:
    return len(log.read_text().splitlines())


def last_line(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.splitlines()[-1]


@pytest.mark.parametrize("machines", [("one", "one"), ("one", "two")], ids=["one machine", "two machines"])
def test_two_makers_at_once_build_it_once(machines: tuple[str, str], maker: Maker, log: Path):
    first, second = (maker(machine, seconds=0.5) for machine in machines)
    assert last_line(first) == last_line(second)
    assert builds(log) == 1


def test_a_killed_maker_is_followed_by_another(maker: Maker, log: Path, address: str):
    first = maker("one", seconds=600)
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    last_line(maker("two", seconds=0))
    assert builds(log) == 2
    assert len(Store.open(address).manifests()) == 1


@pytest.mark.parametrize("address", ["bucket"], indirect=True)
def test_a_maker_that_was_stopped_for_long_does_not_finish_what_another_took_over(maker: Maker, log: Path, address: str):
    first = maker("one", seconds=1)
    assert first.stdout is not None
    assert first.stdout.readline() == "building\n"
    first.send_signal(signal.SIGSTOP)
    seal = last_line(maker("two", seconds=0))
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=60)
    assert first.returncode != 0
    assert "LeaseLostError" in err
    assert "another process took it" in err
    (made,) = Store.open(address).manifests()
    assert made.seal == seal
