"""`--runner ray`: a blend whose sources two nodes of a Ray cluster read from a bucket into a bucket, with a real Prefect server.

The nodes are real ones on this machine, on loopback. Each reads through a cache of its own, which shows what it has built.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import s3fs
import yaml
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.run_server import run_server
from tasks.runners import check_runner
from tests.loopback_hub.smoltalk2 import SFT, conversation_row, parquet_files
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.revisions import files_revision

BUCKET = "ray-blends"
KEY, SECRET = "loopback-key", "loopback-secret-that-no-log-may-hold"
SOURCES = ("arithmetic_think", "letters_no_think", "words_think", "numbers_no_think")
ROWS = 40  # of every source, in two files
COUNT = 25  # that are taken of it
NODES = ("first", "second")


@dataclass(frozen=True)
class Blended:
    manifests: dict[str, Manifest]  # by kind, group and name
    said: str

    def bytes(self) -> dict[str, dict[str, str]]:
        """What lies in the store: sha256 of every file of every dataset."""
        return {name: {path: entry.sha256 for path, entry in each.files.items()} for name, each in self.manifests.items()}


@pytest.fixture(scope="module")
def bucket(s3_server: str, prefect_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a bucket with the files of four sources; this process and all that it starts reach it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "RAY_ADDRESS"):
            patch.delenv(name, raising=False)
        for name, value in {
            "AWS_ENDPOINT_URL": s3_server,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "PREFECT_HOME": str(prefect_home),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray takes 127.0.0.1 for what it is, and listens on nothing else
            "RAY_USAGE_STATS_ENABLED": "0",
            "TRLM_CACHE": str(tmp_path_factory.mktemp("own-cache")),
        }.items():
            patch.setenv(name, value)
        Path("/tmp/ray").mkdir(exist_ok=True)  # Ray's Cluster writes its address there, and makes no folder for it
        system = s3fs.S3FileSystem(endpoint_url=s3_server)
        system.mkdir(BUCKET)
        for source in SOURCES:
            rows = [conversation_row(source, number) for number in range(ROWS)]
            for path, content in parquet_files(f"{source}/train", rows, SFT, row_group=10, files=2).items():
                system.pipe_file(f"{BUCKET}/{path}", content)
        yield f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def recipe_file(bucket: str, tiny_recipe_tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe with one stage, of the bucket's files."""
    stage = tiny_recipe_tree["stages"][0]
    blend = {**stage["blend"], "sources": [source(name, f"{bucket}/{name}/*.parquet") for name in SOURCES], "parquet_from": 1}
    path = tmp_path_factory.mktemp("recipe") / "trlm-tiny.yaml"
    path.write_text(yaml.safe_dump({**tiny_recipe_tree, "stages": [{**stage, "blend": blend}]}, sort_keys=False))
    return path


def source(name: str, address: str) -> dict[str, Any]:
    return {
        "kind": "files",
        "name": name,
        "address": address,
        "format": "parquet",
        "revision": files_revision(address),
        "num_examples": COUNT,
        "sampling": "row_groups",
        "allow_short": False,
        "drop": ["chat_template_kwargs"],
        "rename": {},
        "reported_share": None,
        "answers_by": None,
    }


@dataclass(frozen=True)
class Cluster:
    address: str
    logs: Path
    caches: dict[str, Path]  # of each node


@pytest.fixture(scope="module")
def cluster(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of one CPU each, started with the bucket's variables in their environment, as the guide says."""
    from ray.cluster_utils import Cluster as Nodes

    logs = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # a socket's path may have 107 bytes
    caches = {name: tmp_path_factory.mktemp(name) for name in NODES}
    nodes = Nodes()
    for name in NODES:
        nodes.add_node(
            node_ip_address="127.0.0.1",
            num_cpus=1,
            object_store_memory=100 << 20,
            include_dashboard=False,
            temp_dir=str(logs),
            env_vars={"TRLM_CACHE": str(caches[name])},
        )
    yield Cluster(str(nodes.address), logs, caches)
    nodes.shutdown()
    shutil.rmtree(logs)


@pytest.fixture(scope="module")
def api(bucket: str) -> Iterator[str]:
    with run_server() as wait_for_server:
        wait_for_server()
        yield str(PREFECT_API_URL.value())


@pytest.fixture(scope="module")
def blend(bucket: str, recipe_file: Path, trlm: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Blended]:
    def run(store: str, **environment: str) -> Blended:
        mlflow = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
        done = trlm(
            "blend", str(recipe_file), "stage1_sft", "--store", f"{bucket}/{store}", "--runner", store, "--tracking-uri", mlflow,
            timeout=180, **{**os.environ, **environment},
        )  # fmt: skip
        assert done.code == 0, done.out[-3000:] + done.err[-3000:]
        manifests = [each for each in Store.open(f"{bucket}/{store}").manifests() if each.kind == "datasets"]
        return Blended({f"{each.group}/{each.name}": each for each in manifests}, done.out + done.err)

    return run


@pytest.fixture(scope="module")
def by_threads(blend: Callable[..., Blended], api: str) -> Blended:
    return blend("threads", PREFECT_API_URL=api)


@pytest.fixture(scope="module")
def by_ray(blend: Callable[..., Blended], api: str, cluster: Cluster) -> Blended:
    return blend("ray", PREFECT_API_URL=api, RAY_ADDRESS=cluster.address)


def test_nodes_build_the_bytes_that_threads_build(by_threads: Blended, by_ray: Blended) -> None:
    assert {name: each.fingerprint for name, each in by_ray.manifests.items()} == {
        name: each.fingerprint for name, each in by_threads.manifests.items()
    }
    assert by_ray.bytes() == by_threads.bytes()
    assert by_ray.manifests["trlm-tiny/stage1_sft"].counts["rows"] == COUNT * len(SOURCES)


def test_each_source_is_read_on_one_node_and_both_nodes_read(by_ray: Blended, cluster: Cluster) -> None:
    read = {node: sources_below(cache) for node, cache in cluster.caches.items()}
    assert all(read.values()), read
    assert sorted(read["first"] + read["second"]) == sorted(SOURCES), "none of them twice"


def sources_below(cache: Path) -> list[str]:
    return [path.name for path in cache.glob("**/datasets/sources/*")]


def test_prefect_s_server_knows_how_every_source_ended(by_threads: Blended, by_ray: Blended, api: str) -> None:
    runs = asked(api, "task_runs", name={"like_": "read "})
    assert sorted(run["name"] for run in runs) == sorted(f"read {name}" for name in SOURCES * 2), "of both blends"
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    logs = asked(api, "logs", task_run_id={"any_": [run["id"] for run in runs]})
    assert len([each for each in logs if "Finished in state Completed" in each["message"]]) == len(runs)


def asked(api: str, kind: str, **filters: Any) -> list[dict[str, Any]]:
    return httpx.post(f"{api}/{kind}/filter", json={kind: filters}).raise_for_status().json()


def test_no_log_of_the_cluster_holds_the_bucket_s_secret(by_ray: Blended, cluster: Cluster) -> None:
    logs = [path for path in cluster.logs.rglob("*") if path.is_file()]
    assert any(path.name.startswith("worker-") and b"read words_think" in path.read_bytes() for path in logs), "they are the logs"
    assert [path for path in logs if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in by_ray.said


@dataclass
class Watched:
    code: int | None = None
    said: str = ""
    started: dict[psutil.Process, str] = field(default_factory=dict)  # with its name
    listening: set[str] = field(default_factory=set)  # addresses

    def left(self) -> list[str]:
        _, alive = psutil.wait_procs(self.started, timeout=20)
        return [self.started[each] for each in alive]

    def look(self, process: int) -> None:
        with contextlib.suppress(psutil.Error):
            for each in psutil.Process(process).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    self.started[each] = each.name()
                    self.listening |= {c.laddr.ip for c in each.net_connections("inet") if c.status == psutil.CONN_LISTEN}


@pytest.fixture
def own_cluster(recipe_file: Path, api: str, environment: dict[str, str], tmp_path: Path) -> Callable[..., Watched]:
    """A run that starts its own cluster, watched to its end; `ended_at`: with SIGTERM, once it has said this."""
    command = [str(Path(sys.executable).parent / "trlm"), "blend", str(recipe_file), "stage1_sft", "--runner", "ray"]
    set_here = {"PREFECT_API_URL": api, "RAY_AUTH_TOKEN": SECRET}  # Ray would write a token of its own into the home
    own = {name: value for name, value in {**environment, **os.environ, **set_here}.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}

    def run(ended_at: str | None = None) -> Watched:
        watched, said = Watched(), tmp_path / "said"
        with said.open("w") as out:
            process = subprocess.Popen([*command, "--store", str(tmp_path / "store")], env=own, stdout=out, stderr=out)
            while process.poll() is None:
                watched.look(process.pid)
                if ended_at is not None and ended_at in said.read_text():
                    process.terminate()
                    ended_at = None
                time.sleep(0.5)
        return dataclasses.replace(watched, code=process.returncode, said=said.read_text())

    return run


@pytest.mark.long
def test_without_an_address_a_run_has_a_cluster_of_its_own_on_loopback_that_ends_with_it(own_cluster: Callable[..., Watched]) -> None:
    run = own_cluster()
    assert run.code == 0, run.said[-3000:]
    assert "raylet" in run.started.values()
    assert {address.removeprefix("::ffff:") for address in run.listening} == {"127.0.0.1"}
    assert run.left() == []


@pytest.mark.long
def test_a_run_that_is_ended_while_its_cluster_reads_says_so_and_leaves_no_process(own_cluster: Callable[..., Watched]) -> None:
    run = own_cluster(ended_at="Using Ray cluster")
    assert (run.code, run.left()) == (-signal.SIGTERM, [])
    assert "aborted by a termination signal" in run.said


def test_a_folder_is_no_store_for_nodes_elsewhere(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ValueError, match=r"wanted an s3: address, which every node of the Ray cluster 10.0.0.1:6379 reaches, got a folder"):
        check_runner("ray", store)
    monkeypatch.delenv("RAY_ADDRESS")
    check_runner("ray", store)


def test_a_cluster_that_does_not_answer_is_named_at_once(s3_store: Store, api: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(ValueError, match=r"wanted a Ray cluster that answers at 127.0.0.1:9, got .*refused"):
        check_runner("ray", s3_store)


def test_nodes_elsewhere_want_a_server_that_they_reach(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with (
        temporary_settings(restore_defaults={PREFECT_API_URL}),
        pytest.raises(ValueError, match="PREFECT_API_URL: wanted a server that every node"),
    ):
        check_runner("ray", s3_store)


def test_without_the_extra_the_error_says_how_to_get_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(ValueError, match=r"wanted prefect-ray, got nothing installed; pip install 'trlm\[ray\]'"):
        check_runner("ray", store)
    check_runner("threads", store)
