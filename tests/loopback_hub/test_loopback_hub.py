"""The loopback Hub as the real clients see it, each in a process of its own: what it serves and takes, to whom, how fast."""

import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.clients import Client, connected, got
from tests.loopback_hub.letters import LETTERS, NAME, address
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.server import LoopbackHub
from tests.loopback_hub.smoltalk2 import PREFERENCES, SMOLTALK2, conversation_row, pair_row, preferences, smoltalk2

ROOT = Path(__file__).parents[2]


def test_a_revision_is_the_last_commit_of_main_or_one_by_its_name(letters: Repository, client: Client):
    first = letters.head.sha
    last = letters.commit({"z.txt": b"changed", "data/b.txt": None})
    told = client(f"""
tell([api.dataset_info(NAME).sha, api.dataset_info(NAME, revision="{first}").sha, api.dataset_info(NAME).card_data.license,
      [each.rfilename for each in api.dataset_info(NAME).siblings],
      *(open(api.hf_hub_download(NAME, "z.txt", repo_type="dataset", revision=each)).read() for each in ("{first}", "main"))])""")
    assert told == [last, first, "mit", ["README.md", "data/a.parquet", "z.txt"], "z", "changed"]


def test_a_tree_comes_in_pages(hub: LoopbackHub, letters: Repository, client: Client):
    hub.page_size = 2
    told = client("""
tree = list(api.list_repo_tree(NAME, repo_type="dataset", recursive=True))
large = next(each for each in tree if each.path == "data/a.parquet")
tell([[each.path for each in tree], large.size, large.blob_id, large.lfs.sha256,
      [each.path for each in api.list_repo_tree(NAME, "data", repo_type="dataset")]])""")
    stored = letters.head.files["data/a.parquet"]
    assert told[0] == ["data", "README.md", "data/a.parquet", "data/b.txt", "z.txt"]
    assert told[1:] == [4096, stored.blob, stored.sha256, ["data/a.parquet", "data/b.txt"]]
    assert len([request for request in hub.requests if "/tree/" in request.path]) == 3 + 1


def test_paths_are_told_if_they_exist(letters: Repository, client: Client):
    told = client("""tell([[each.path, getattr(each, "size", None)]
        for each in api.get_paths_info(NAME, ["z.txt", "data", "none"], repo_type="dataset")])""")
    assert told == [["z.txt", 1], ["data", None]]


def test_what_is_missing_is_named_by_its_kind(letters: Repository, client: Client):
    told = client("""
tell([failure(lambda: api.dataset_info("owner/none")), failure(lambda: api.dataset_info(NAME, revision="none")),
      failure(lambda: api.hf_hub_download(NAME, "none", repo_type="dataset")),
      failure(lambda: list(api.list_repo_tree(NAME, "none", repo_type="dataset")))])""")
    missing = [["RepositoryNotFoundError", 401], ["RevisionNotFoundError", 404]]
    assert told == [*missing, ["RemoteEntryNotFoundError", 404], ["RemoteEntryNotFoundError", 404]]


def test_a_range_is_the_file_s_own_bytes(hub: LoopbackHub, letters: Repository, client: Client):
    assert bytes(client("tell(range_of(1000, 1300))")) == LETTERS[1000:1300]
    answer = hub.answers[-1]
    assert (answer.request.range, answer.status, answer.sent) == ((1000, 1300), 206, 300)


def test_a_connection_serves_many_requests(hub: LoopbackHub, letters: Repository):
    with connected(hub) as connection:
        statuses, local = [], set()
        for asked in ("bytes=0-9", "bytes=-6", "bytes=4090-9999", "bytes=4096-5000"):
            answer, body = got(connection, address("data/a.parquet"), {"Range": asked})
            local.add(connection.sock.getsockname())
            statuses.append((answer.status, answer.headers["Content-Range"], body if answer.status == 206 else b""))
    assert len(local) == 1
    assert statuses == [
        (206, "bytes 0-9/4096", LETTERS[:10]),
        (206, "bytes 4090-4095/4096", LETTERS[4090:]),
        (206, "bytes 4090-4095/4096", LETTERS[4090:]),
        (416, "bytes */4096", b""),
    ]


def test_a_head_says_what_a_get_would(hub: LoopbackHub, letters: Repository):
    with connected(hub) as connection:
        told = [got(connection, address(path), {}, "HEAD") for path in ("data/a.parquet", "z.txt")]
    assert [body for _, body in told] == [b"", b""]
    large, small = (answer.headers for answer, _ in told)
    stored = letters.head.files
    assert large["X-Linked-Size"] == large["Content-Length"] == "4096"
    assert large["X-Linked-ETag"] == large["ETag"] == f'"{stored["data/a.parquet"].sha256}"'
    assert small["ETag"] == f'"{stored["z.txt"].blob}"'
    assert small["X-Repo-Commit"] == large["X-Repo-Commit"] == letters.head.sha


def test_other_services_are_not_found(hub: LoopbackHub, letters: Repository):
    with connected(hub) as connection:
        for path in (f"/api/datasets/{NAME}/xet-read-token/main", f"/api/datasets/{NAME}/parquet", f"/parquet?dataset={NAME}"):
            assert got(connection, path, {})[0].status == 404


def test_a_subset_s_files_are_resolved_at_the_commit(hub: LoopbackHub, client: Client):
    sha = hub.repositories.made(SMOLTALK2).commit(smoltalk2(4))
    told = client(f"""
import datasets
config = datasets.load_dataset_builder("{SMOLTALK2}", "Mid").config
tell({{str(split): list(files) for split, files in config.data_files.items()}})""")
    stem = f"hf://datasets/{SMOLTALK2}@{sha}/Mid"
    assert list(told) == ["Llama_Nemotron_Post_Training_Dataset_reasoning_r1", "OpenThoughts3_1.2M"]
    assert told["OpenThoughts3_1.2M"] == [f"{stem}/OpenThoughts3_1.2M-0000{number}-of-00002.parquet" for number in (0, 1)]


def test_a_split_is_streamed_in_its_order(hub: LoopbackHub, client: Client):
    hub.repositories.made(SMOLTALK2).commit(smoltalk2(6, row_group=2))
    hub.repositories.made(PREFERENCES).commit(preferences(6))
    told = client(f"""
import datasets
tell([list(datasets.load_dataset("{SMOLTALK2}", "SFT", split="s1k_1.1_think", streaming=True)),
      list(datasets.load_dataset("{PREFERENCES}", split="train", streaming=True))])""")
    assert told[0] == [conversation_row("s1k_1.1_think", number) for number in range(6)]
    assert told[1] == [pair_row(number) for number in range(6)]


def test_small_and_large_files_are_read_back(hub: LoopbackHub, client: Client):
    told = client(
        """
api.create_repo(NAME, repo_type="dataset")
api.create_repo(NAME, repo_type="dataset", exist_ok=True)
large = bytes(range(256)) * 5000
add = CommitOperationAdd
def commit(*operations, **more):
    return api.create_commit(NAME, list(operations), commit_message="new", repo_type="dataset", **more).oid
first = commit(add("README.md", b"---\\nlicense: mit\\n---\\n"), add("large.bin", large), add("small.txt", b"small"))
last = commit(add("same.bin", large), CommitOperationDelete("small.txt"))
tell([first, last, fs.cat_file(f"datasets/{NAME}@{first}/small.txt").decode(), fs.cat_file(f"datasets/{NAME}/same.bin") == large,
      api.list_repo_files(NAME, repo_type="dataset"), api.whoami()["name"],
      failure(lambda: commit(add("late.txt", b"late"), parent_commit=first)),
      failure(lambda: commit(add("README.md", b"---\\nlicense: [\\n---\\n")))])""",
        HF_TOKEN=TOKEN,
    )
    repository = hub.repositories.made(NAME)
    assert told[:2] == [commit.sha for commit in repository.commits[1:]]
    assert told[2:6] == ["small", True, [".gitattributes", "README.md", "large.bin", "same.bin"], "tester"]
    assert told[6:] == [["HfHubHTTPError", 412], ["ValueError", None]]
    assert len([request for request in hub.requests if request.method == "PUT"]) == 1, "the same bytes are sent once"


def test_only_the_writer_s_token_writes(hub: LoopbackHub, letters: Repository, client: Client):
    hub.repositories.made("owner/private").token = "hf_reader"
    code = 'tell(failure(lambda: api.upload_file(path_or_fileobj=b"a", path_in_repo="a", repo_id=NAME, repo_type="dataset")))'
    assert client(code) == ["RepositoryNotFoundError", 401]
    assert client(code, HF_TOKEN="hf_wrong") == ["HfHubHTTPError", 401]
    assert client(code, HF_TOKEN="hf_reader") == ["HfHubHTTPError", 403]
    assert len(letters.commits) == 1


def test_who_may_write_can_be_asked(hub: LoopbackHub, letters: Repository, client: Client):
    letters.token = "hf_reader"
    code = 'tell([failure(lambda: api.auth_check(NAME, repo_type="dataset", write=write)) for write in (False, True)])'
    told = [client(code, HF_TOKEN=token) for token in (TOKEN, "hf_reader", "hf_wrong")]
    assert told == [[None, None], [None, ["HfHubHTTPError", 403]], [["HfHubHTTPError", 401]] * 2]


def test_what_a_gitignore_names_is_left_out_of_a_commit(hub: LoopbackHub, letters: Repository, client: Client):
    letters.commit({".gitignore": b"*.log\n"})
    client(
        """
add = CommitOperationAdd
tell(api.create_commit(NAME, [add("a.log", b"a"), add("a.txt", b"a")], commit_message="new", repo_type="dataset").oid)""",
        HF_TOKEN=TOKEN,
    )
    assert {"a.log", "a.txt"} & set(letters.head.files) == {"a.txt"}


def test_a_private_repository_wants_its_token(hub: LoopbackHub, letters: Repository, client: Client):
    letters.token = "hf_reader"
    hub.repositories.made("owner/other").token = "hf_other"
    told = client("""
tell([failure(lambda: HfApi(token=each).dataset_info(NAME)) for each in (False, "hf_wrong", "hf_other", "hf_reader")])""")
    assert told == [["RepositoryNotFoundError", 401], ["HfHubHTTPError", 401], ["RepositoryNotFoundError", 404], None]
    asked = [request.authorized for request in hub.requests if request.path == f"/api/datasets/{NAME}"]
    assert asked == [False, True, True, True]


def test_an_answer_waits_and_its_bytes_trickle(hub: LoopbackHub, letters: Repository):
    letters.commit({"megabyte.bin": bytes(1_000_000)})
    hub.latency_seconds, hub.bytes_per_second = 0.1, 4e6
    with connected(hub) as connection:
        began = time.monotonic()
        got(connection, address("z.txt"), {})
        waited = time.monotonic() - began
        got(connection, address("megabyte.bin"), {})
        trickled = time.monotonic() - began - waited
    assert 0.1 <= waited < 0.5
    assert 0.3 <= trickled < 1.0, "0.1 s, then a quarter less the last piece's wait"


def test_connections_are_paced_apart(hub: LoopbackHub, letters: Repository):
    letters.commit({"megabyte.bin": bytes(1_000_000)})
    hub.bytes_per_second = 4e6
    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        sizes = list(threads.map(lambda _: len(urllib.request.urlopen(hub.endpoint + address("megabyte.bin")).read()), range(8)))
    assert sizes == [1_000_000] * 8
    assert time.monotonic() - began < 1.5, "one after the other they would take two seconds"


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_folder_is_served_from_where_it_lies(tmp_path: Path):
    (tmp_path / "owner/name/data").mkdir(parents=True)
    with (tmp_path / "owner/name/data/large.parquet").open("wb") as file:
        file.truncate(200_000_000)
    command = [sys.executable, "-m", "tests.loopback_hub.server", "--root", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            endpoint = json.loads(server.stdout.readline())["endpoint"]
            with urllib.request.urlopen(endpoint + address("data/large.parquet")) as answer:
                read = sum(len(piece) for piece in iter(lambda: answer.read(1 << 20), b""))
            counters = json.load(urllib.request.urlopen(f"{endpoint}/__counters"))
            peak = int(Path(f"/proc/{server.pid}/status").read_text().split("VmHWM:")[1].split()[0])
        finally:
            server.terminate()
    assert read == 200_000_000
    assert counters == {"requests": 1, "bytes": 200_000_000, "bytes_by_repo": {"owner/name": 200_000_000}}
    assert peak < 100_000, "kB: the file is never in memory"
