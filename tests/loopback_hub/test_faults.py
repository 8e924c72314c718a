"""The loopback Hub's faults: what each does, and what the real clients do about it. The waits between their tries make these slow."""

import http.client

import pytest

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.clients import Client, connected, got
from tests.loopback_hub.faults import GATED, MISSING, REFUSED, Fault, burst, calls, data
from tests.loopback_hub.letters import LETTERS, NAME, address
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.server import LoopbackHub


@pytest.mark.parametrize(
    ("fault", "first"),
    [
        (Fault(data(), status=503), (503, len('{"error": "a fault: 503"}'))),
        (Fault(data(), body="reset", at=200), (206, 200)),
        (Fault(data(), body="short", at=200), (206, 200)),
        (Fault(data(), body="stalled", at=10, seconds=3), (206, 10)),
    ],
    ids=["503", "reset", "short", "stalled"],
)
def test_a_range_is_tried_again(hub: LoopbackHub, letters: Repository, client: Client, fault: Fault, first: tuple[int, int]):
    hub.faults.append(fault)
    assert bytes(client("tell(range_of(1000, 1300))", HF_HUB_DOWNLOAD_TIMEOUT="1")) == LETTERS[1000:1300]
    told = [(answer.status, answer.sent) for answer in hub.answers if answer.request.is_data]
    assert told == [first, (206, 300)]


def test_a_stream_goes_on_where_it_was_read_to(hub: LoopbackHub, letters: Repository, client: Client):
    hub.faults.append(Fault(calls("a.parquet", "GET"), body="reset", at=1000))
    told = client("""
with fs.open(PATH, block_size=0) as file:
    tell([list(file.read(10)), list(file.read())])""")
    assert [bytes(each) for each in told] == [LETTERS[:10], LETTERS[10:]]
    ranges = [request.range for request in hub.requests if "/resolve/" in request.path]
    assert [each and each[0] for each in ranges] == [None, 10]


def test_a_download_goes_on_after_an_early_end_but_not_after_a_reset(hub: LoopbackHub, letters: Repository, client: Client):
    hits = calls("a.parquet", "GET")
    hub.faults += [Fault(hits, body="reset", at=1000), Fault(hits, body="short", at=1000)]
    told = client("""
def download():
    return open(api.hf_hub_download(NAME, "data/a.parquet", repo_type="dataset"), "rb").read()
tell([failure(download), list(download())])""")
    assert told[0] == ["ReadError", None]
    assert bytes(told[1]) == LETTERS


def test_retry_after_is_waited_for(hub: LoopbackHub, letters: Repository, client: Client):
    hub.faults.append(Fault(data(), status=429, headers={"Retry-After": "1"}))
    assert bytes(client("tell(range_of(1000, 1300))")) == LETTERS[1000:1300]
    refused, answered = [answer for answer in hub.answers if answer.request.is_data]
    assert (refused.status, answered.status) == (429, 206)
    assert 2.0 <= answered.at - refused.at < 6.0, "the clients add a second"


@pytest.mark.parametrize(
    ("fault", "wanted"),
    [
        (Fault(data(), body="fewer", at=50), LETTERS[1000:1250]),
        (Fault(data(), body="whole"), LETTERS),
        (
            Fault(data(), body="damaged", at=20),
            LETTERS[1000:1020] + bytes(255 - each for each in LETTERS[1020:1084]) + LETTERS[1084:1300],
        ),
    ],
    ids=["fewer", "whole", "damaged"],
)
def test_a_wrong_body_is_taken_for_the_range(hub: LoopbackHub, letters: Repository, client: Client, fault: Fault, wanted: bytes):
    hub.faults.append(fault)
    assert bytes(client("tell(range_of(1000, 1300))")) == wanted
    assert len(hub.data_requests()) == 1


def test_a_refusal_is_an_error_at_once(hub: LoopbackHub, letters: Repository, client: Client):
    refusals = [(401, REFUSED), (403, GATED), (403, {}), (404, MISSING)]
    hub.faults += [Fault(data(), status=status, headers=headers) for status, headers in refusals]
    assert client("tell([failure(lambda: range_of(0, 9)) for _ in range(4)])") == [
        ["HfHubHTTPError", 401],
        ["GatedRepoError", 403],
        ["HfHubHTTPError", 403],
        ["RemoteEntryNotFoundError", 404],
    ]
    assert len(hub.data_requests()) == 4


def test_of_the_calls_only_the_tree_is_tried_again(hub: LoopbackHub, letters: Repository, client: Client):
    parts = (f"/api/datasets/{NAME}", "/paths-info/", "/commit/", "/tree/")
    hub.faults += [Fault(calls(part, method), status=502) for part, method in zip(parts, ("GET", "POST", "POST", "GET"), strict=True)]
    told = client(
        """
tell([failure(lambda: api.dataset_info(NAME)), failure(lambda: api.get_paths_info(NAME, ["z.txt"], repo_type="dataset")),
      failure(lambda: api.delete_file("z.txt", NAME, repo_type="dataset")),
      failure(lambda: list(api.list_repo_tree(NAME, repo_type="dataset")))])""",
        HF_TOKEN=TOKEN,
    )
    assert told == [["HfHubHTTPError", 502]] * 3 + [None]


def test_a_commit_arrives_between_listing_and_reading(hub: LoopbackHub, letters: Repository, client: Client):
    first = letters.head.sha
    hub.faults.append(Fault(data(), first=lambda: letters.commit({"data/a.parquet": LETTERS[::-1]})))
    assert bytes(client("tell(range_of(0, 9))")) == LETTERS[::-1][:9], "of main, which moved"
    assert bytes(client(f'PATH = PATH.replace("@main", "@{first}")\ntell(range_of(0, 9))')) == LETTERS[:9]


def test_a_burst_gives_its_statuses_in_turn(hub: LoopbackHub, letters: Repository):
    hub.faults += burst(calls("/resolve/"), 500, 502, 503)
    with connected(hub) as connection:
        assert [got(connection, address("z.txt"), {})[0].status for _ in range(4)] == [500, 502, 503, 200]


def test_a_fault_can_wait_for_its_turn_and_hit_one_method_only(hub: LoopbackHub, letters: Repository):
    hub.faults.append(Fault(calls("z.txt", "GET"), times=2, after=1, status=404))
    with connected(hub) as connection:
        methods = ("GET", "HEAD", "GET", "GET", "GET")
        assert [got(connection, address("z.txt"), {}, method)[0].status for method in methods] == [200, 200, 404, 404, 200]


def test_a_reset_is_a_reset_and_a_short_body_an_early_end(hub: LoopbackHub, letters: Repository):
    hub.faults += [Fault(data(), body="reset", at=200), Fault(data(), body="short", at=200)]
    with connected(hub) as connection, pytest.raises(ConnectionResetError):
        got(connection, address("data/a.parquet"), {"Range": "bytes=0-999"})
    with connected(hub) as connection, pytest.raises(http.client.IncompleteRead) as cut:
        got(connection, address("data/a.parquet"), {"Range": "bytes=0-999"})
    assert cut.value.partial == LETTERS[:200]


def test_a_body_that_ends_before_its_fault_is_whole(hub: LoopbackHub, letters: Repository):
    hub.faults.append(Fault(data(), body="reset", at=200))
    with connected(hub) as connection:
        assert got(connection, address("data/a.parquet"), {"Range": "bytes=0-99"})[1] == LETTERS[:100]
