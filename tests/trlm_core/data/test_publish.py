"""A blend to the loopback Hub, through the real clients in a process of its own: what one commit leaves, and what every fault leaves."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.clients import told_by_client
from tests.loopback_hub.faults import Fault, calls
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.server import LoopbackHub
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.errors import PublishConnectionError
from trlm_core.data.repository import _asked

ROOT = Path(__file__).parents[3]
REPO = "tester/blend"
SECRET_FOLDER = "/home/somebody/rows.jsonl"
ROWS = [{"messages": [{"role": "user", "content": f"What is {number} + 1?"}], "_source_row": number} for number in range(6)]
OURS = {"README.md", "held_out-00000-of-00001.parquet", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet"}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def blended(store: Store) -> Callable[..., str]:
    """Address of a finished blend: of parquet in two shards, or of JSON lines."""

    def make(rows: list[dict[str, Any]] = ROWS, kind: str = "parquet") -> str:
        def build(folder: Path) -> dict[str, Any]:
            write = _write_parquet if kind == "parquet" else _write_json
            patterns = write(folder, rows)
            listed = "".join(f"  - {{split: {split}, path: '{pattern}'}}\n" for split, pattern in patterns.items())
            card = f"---\nlicense: apache-2.0\ntags: [trlm, stage1_sft]\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n# A blend\n"
            (folder / "README.md").write_text(card)
            (folder / "checks.json").write_text("[]")
            (folder / "origins.json").write_text(json.dumps({"mine": {"files": [SECRET_FOLDER]}}))
            return {"rows": len(rows)}

        return store.make(Spec("datasets", "tiny", "stage1_sft", {"rows": rows, "kind": kind}, {}), build).address

    return make


@pytest.fixture
def publish(hub: LoopbackHub, store: Store, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(address: str, repo: str = REPO, *seconds: str, **environment: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.loopback_hub.publish_once", store.address, address, repo, *seconds]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        hubs = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        environment = clean | hubs | {"HF_TOKEN": TOKEN} | environment
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=ROOT, env=environment)
        assert done.stdout, done.stderr[-3000:]
        token = environment["HF_TOKEN"].split("ü")[0]
        assert not token or token not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def loaded(hub: LoopbackHub, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    def run(split: str = "train") -> list[dict[str, Any]]:
        code = f'import datasets\ntell(datasets.load_dataset("{REPO}", split="{split}").to_list())'
        return told_by_client(hub, tmp_path / f"read-{len(hub.requests)}", code, {"HF_TOKEN": TOKEN})

    return run


@pytest.mark.parametrize(
    ("kind", "files"), [("parquet", OURS), ("json", {"README.md", "train.jsonl", "held_out.jsonl"})], ids=["parquet", "json"]
)
def test_data_and_card_are_one_commit_that_load_dataset_reads(
    hub: LoopbackHub, blended: Callable, publish: Callable, loaded: Callable, kind: str, files: set[str]
):
    made = publish(blended(kind=kind))
    repository = _repository(hub)
    first, ours = repository.commits
    assert set(ours.files) == set(first.files) | files
    assert made == {"repo": REPO, "commit": ours.sha, "url": f"{hub.endpoint}/datasets/{REPO}/commit/{ours.sha}", "is_new": True}
    assert loaded() == ROWS
    assert not [path for path, file in ours.files.items() if SECRET_FOLDER.encode() in b"".join(file.pieces(0, file.size))]


def test_a_new_repository_is_private_and_an_old_one_as_it_was(hub: LoopbackHub, blended: Callable, publish: Callable):
    hub.repositories.made("tester/open").commit({".gitattributes": b""})
    assert publish(blended())["is_new"]
    assert publish(blended(), "tester/open")["is_new"]
    assert [_repository(hub, name).token for name in (REPO, "tester/open")] == [TOKEN, None]


def test_again_nothing_is_sent_and_nothing_committed(hub: LoopbackHub, blended: Callable, publish: Callable):
    made = publish(blended())
    hub.requests.clear()
    assert publish(blended()) == {**made, "is_new": False}
    assert len(_repository(hub).commits) == 2
    assert not [request for request in hub.requests if any(part in request.path for part in ("/commit", "/preupload", "/lfs"))]


def test_a_later_blend_takes_the_place_of_the_older_one_and_leaves_what_others_added(
    hub: LoopbackHub, blended: Callable, publish: Callable, loaded: Callable
):
    publish(blended())
    added = {"LICENSE": b"Apache", "data/train-00000-of-00001.parquet": b"of others", "train-notes.txt": b"notes"}
    _repository(hub).commit(added)
    later = [{**row, "_source_row": row["_source_row"] + 100} for row in ROWS[:4]]
    made = publish(blended(later, kind="json"))
    assert made["is_new"]
    assert len(_repository(hub).commits) == 4
    assert set(_repository(hub).head.files) == {".gitattributes", "README.md", "train.jsonl", "held_out.jsonl", *added}
    assert loaded() == later


def test_only_what_differs_is_sent(hub: LoopbackHub, blended: Callable, publish: Callable):
    publish(blended())
    hub.requests.clear()
    later = [*ROWS[:5], {**ROWS[5], "_source_row": 7}]
    assert publish(blended(later))["is_new"]
    assert len([request for request in hub.requests if request.method == "PUT"]) == 1, "the second shard"


@pytest.mark.parametrize(
    ("repo", "environment", "said"),
    [
        (REPO, {"HF_TOKEN": "hf_wrong_0123456789"}, ["tester/blend: wanted a token that may write it", "401", "set HF_TOKEN"]),
        (REPO, {"HF_TOKEN": "hf_reader_0123456789"}, ["tester/blend: wanted a token that may write it", "403", "set HF_TOKEN"]),
        (REPO, {"HF_TOKEN": ""}, ["tester/blend: wanted a token that may write it", "got none", "set HF_TOKEN"]),
        (REPO, {"HF_TOKEN": "hf_pasted_with_ü"}, ["tester/blend: wanted a token that may write it", "characters that no token has"]),
        (REPO, {"HF_HUB_OFFLINE": "1"}, ["tester/blend: wanted the Hub, got HF_HUB_OFFLINE set; unset it"]),
        ("blend", {}, ["wanted owner/name of a dataset repository, got 'blend'"]),
        ("datasets/tester/blend", {}, ["wanted owner/name of a dataset repository, got 'datasets/tester/blend'"]),
        ("tester/bl end", {}, ["wanted owner/name of a dataset repository, got 'tester/bl end'"]),
    ],
    ids=["wrong token", "reader's token", "no token", "no header", "offline", "no owner", "three parts", "blank"],
)
@pytest.mark.parametrize("exists", [False, True])
def test_who_cannot_write_gets_one_clear_line_and_changes_nothing(
    hub: LoopbackHub, blended: Callable, publish: Callable, repo: str, environment: dict[str, str], said: list[str], exists: bool
):
    hub.repositories.made("owner/private").token = "hf_reader_0123456789"
    if exists:
        hub.repositories.made(REPO).commit({".gitattributes": b""})
    told = publish(blended(), repo, **environment)
    assert told["kind"] == "PublishError"
    assert len(told["error"].splitlines()) == 1
    assert all(words in told["error"] for words in said), told["error"]
    assert not [request for request in hub.requests if "/preupload" in request.path], "the check alone has found it"
    found = hub.repositories.get(REPO)
    assert len(found.commits) == 1 if found is not None else not exists


def test_an_upload_that_breaks_leaves_no_commit_and_goes_on_from_what_was_sent(
    hub: LoopbackHub, blended: Callable, publish: Callable, loaded: Callable
):
    hub.faults.append(Fault(calls("/lfs/", "PUT"), after=1, status=400))
    told = publish(blended())
    assert told["kind"] == "PublishConnectionError"
    assert "Error while uploading" in told["error"]
    assert "publish again" in told["error"]
    assert len(_repository(hub).commits) == 1
    hub.requests.clear()
    assert publish(blended())["is_new"]
    assert len([request for request in hub.requests if request.method == "PUT"]) == 1, "of three, two had been sent"
    assert loaded() == ROWS


@pytest.mark.parametrize("part", ["/api/repos/create", "/auth-check/write", "/api/datasets/tester/blend", "/commit/main"])
def test_a_server_s_error_is_one_clear_line_and_a_repeat_succeeds(hub: LoopbackHub, blended: Callable, publish: Callable, part: str):
    hub.faults.append(Fault(lambda request: request.path.endswith(part), status=502))
    told = publish(blended())
    assert told == {"error": f"{REPO}: wanted an answer of the Hub, got 502; publish again", "kind": "PublishConnectionError"}
    assert publish(blended())["is_new"]
    assert len(_repository(hub).commits) == 2


def test_a_commit_whose_answer_is_lost_is_found_by_the_repeat(hub: LoopbackHub, blended: Callable, publish: Callable):
    hub.faults.append(Fault(calls("/commit/main"), body="reset", at=5))
    assert publish(blended())["kind"] == "PublishConnectionError"
    assert not publish(blended())["is_new"]
    assert len(_repository(hub).commits) == 2


def test_a_hub_that_says_nothing_is_waited_for_a_bounded_time(hub: LoopbackHub, blended: Callable, publish: Callable):
    hub.faults.append(Fault(calls("/api/repos/create"), first=lambda: time.sleep(20)))
    told = publish(blended(), REPO, "1")
    assert told == {"error": f"{REPO}: wanted an answer of the Hub, got ReadTimeout; publish again", "kind": "PublishConnectionError"}


def test_a_commit_that_comes_between_is_never_built_over_unseen(hub: LoopbackHub, blended: Callable, publish: Callable):
    hub.faults.append(Fault(calls("/commit/main"), first=lambda: _repository(hub).commit({"LICENSE": b"Apache"})))
    told = publish(blended())
    assert told["kind"] == "PublishConnectionError"
    assert told["error"] == f"{REPO}: wanted to build on its last commit, got another one meanwhile; publish again"
    assert set(_repository(hub).head.files) == {".gitattributes", "LICENSE"}
    assert publish(blended())["is_new"]
    assert set(_repository(hub).head.files) == {".gitattributes", "LICENSE", *OURS}


@pytest.mark.parametrize("data", ["train.jsonl", "data/train-00000-of-00001.parquet", "rows.csv"])
@pytest.mark.parametrize("tags", ["", "tags: not-trlm-data\n", "tags: [other]\n"])
def test_data_of_others_is_never_replaced(hub: LoopbackHub, blended: Callable, publish: Callable, data: str, tags: str):
    repository = hub.repositories.made(REPO)
    repository.commit({data: b"{}\n", "README.md": f"---\nlicense: mit\n{tags}---\n".encode()})
    told = publish(blended())
    assert told["error"] == f"{REPO}: wanted no data but a blend's, got {data} and no tag trlm on the card; choose another repository"
    assert len(repository.commits) == 1


def test_files_that_the_repository_ignores_are_missed(hub: LoopbackHub, blended: Callable, publish: Callable):
    hub.repositories.made(REPO).commit({".gitignore": b"*-00001-of-*\n"})
    told = publish(blended())
    assert told["kind"] == "PublishError"
    assert "got others for train-00001-of-00002.parquet; is there a .gitignore?" in told["error"]


def test_a_card_that_the_hub_refuses_is_one_clear_line(hub: LoopbackHub, blended: Callable, publish: Callable):
    hub.faults.append(Fault(calls("/api/validate-yaml"), status=400))
    assert publish(blended()) == {"error": f"{REPO}: Invalid metadata in README.md.", "kind": "PublishError"}
    assert len(_repository(hub).commits) == 1


def test_a_gateway_s_page_instead_of_json_may_be_gone_at_the_next_try():
    with pytest.raises(PublishConnectionError, match="tester/blend: wanted an answer of the Hub, got JSONDecodeError; publish again"):
        _asked(lambda: json.loads("<html>Bad gateway</html>"), REPO)


def test_a_damaged_blend_is_not_published(hub: LoopbackHub, store: Store, blended: Callable, publish: Callable):
    address = blended()
    (store.root / address / "train-00000-of-00002.parquet").write_bytes(b"damaged")
    assert "train-00000-of-00002.parquet" in publish(address)["error"]
    assert len(_repository(hub).commits) == 1


def _repository(hub: LoopbackHub, name: str = REPO) -> Repository:
    found = hub.repositories.get(name)
    assert found is not None
    return found


def _write_parquet(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    half = len(rows) // 2
    for number, some in enumerate((rows[:half], rows[half:])):
        pq.write_table(pa.Table.from_pylist(some), folder / f"train-{number:05d}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1]), folder / "held_out-00000-of-00001.parquet")
    return {"train": "train-*.parquet", "held_out": "held_out-*.parquet"}


def _write_json(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held_out.jsonl").write_text("")
    return {"train": "train.jsonl"}
