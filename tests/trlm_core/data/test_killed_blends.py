"""SIGKILL at moments spread over a whole blend: the rerun leaves what an undisturbed one leaves, and reads no finished source again."""

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_hub.blends import copied_store
from tests.loopback_hub.faults import Fault, data
from tests.loopback_hub.report_blend import BLEND, ReportBlend, Undisturbed, artifacts_of
from trlm_core.artifacts.lease import LEASES, FileLease
from trlm_core.artifacts.manifest import MANIFEST_NAME, damage
from trlm_core.artifacts.store import Store

REQUESTS, SOURCES = "data requests", "finished sources"  # counted by the Hub; all other places are those of killed_blend
PLACES = {  # and how many of the twenty moments are drawn there, each from a stretch of its own
    REQUESTS: 4,
    SOURCES: 3,
    "reading taken": 1,
    "reading shelf.sync": 2,  # of a source's files before its manifest
    "assembling shuffle._pieces": 1,  # of the rows that are dealt
    "assembling shuffle._sorted": 1,
    "assembling shards.write": 2,  # of a shard's rows
    "assembling checks._scalar": 1,
    "assembling card": 1,
    "assembling shelf.sync": 4,  # of the blend's
}
FEW = ((REQUESTS, 2), (SOURCES, 1), ("assembling shards.write", 0), ("assembling shelf.sync", 3))
SEED = 20251126


@dataclass(frozen=True)
class Moment:
    place: str
    share: float  # of what happens there in an undisturbed blend

    def number(self, total: int) -> int:
        """From 1 on, before the last."""
        return 1 + int(self.share * (total - 1))


def trials() -> Iterator[Any]:
    draw = random.Random(SEED)
    for place, count in PLACES.items():
        for stretch in range(count):
            share = (stretch + draw.random()) / count
            marks = () if (place, stretch) in FEW else pytest.mark.long
            yield pytest.param(Moment(place, share), id=f"{place}, {share:.0%}", marks=marks)


@pytest.mark.parametrize("moment", trials())
def test_a_killed_blend_ends_as_an_undisturbed_one(
    moment: Moment, report_blend: ReportBlend, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    store = copied_store(report_blend.base_store, tmp_path / "store")
    report_blend.hub.requests.clear()
    code = killed(report_blend, moment, undisturbed, store)
    before = finished(store)
    assert code == -signal.SIGKILL, "it was killed, and by nothing else"
    assert not any(address.startswith(BLEND) for address in before), "unfinished work existed"
    assert moment.place == REQUESTS or moment.place.startswith("reading") or sources_among(before), "finished work existed"

    report_blend.hub.faults.clear()
    report_blend.hub.requests.clear()
    made = report_blend.run(store)
    assert made.get("fingerprint") == undisturbed.fingerprint, made
    assert artifacts_of(store) == undisturbed.artifacts
    after = finished(store)
    assert {address: after[address] for address in before} == before, "finished work was left as it was"
    assert not read_again(report_blend, sources_among(before)), "finished sources were not read again"
    assert_nothing_is_left_over(store)
    assert not list(report_blend.working.iterdir())


def test_the_moments_are_twenty_and_four_of_them_are_always_tried() -> None:
    drawn = list(trials())
    assert (len(drawn), len([trial for trial in drawn if not trial.marks])) == (20, 4)
    assert len({trial.id for trial in drawn}) == 20


def killed(blend: ReportBlend, moment: Moment, undisturbed: Undisturbed, store: Path) -> int:
    """Exit code of a blend that met its moment."""
    if moment.place == REQUESTS:
        return killed_by_hub(blend, store, Fault(data(), after=moment.number(undisturbed.data_requests) - 1))
    if moment.place == SOURCES:
        return killed_by_hub(blend, store, held_until(blend, store, moment.number(len(blend.splits))))
    number = moment.number(undisturbed.calls[moment.place])
    process = blend.start(store, moment.place, str(number), driver="killed_blend")
    process.communicate(timeout=120)
    return process.returncode


def killed_by_hub(blend: ReportBlend, store: Path, fault: Fault) -> int:
    """The process is killed when the fault has done what it does, its request unanswered."""
    process, wait = blend.start(store), fault.first

    def kill() -> None:
        if wait is not None:
            wait()
        process.kill()

    fault.first = kill
    blend.hub.faults.append(fault)  # the process is still importing
    process.communicate(timeout=120)
    return process.returncode


def held_until(blend: ReportBlend, store: Path, sources: int) -> Fault:
    """The largest split's last file is kept waiting until so many other sources are finished."""
    largest = max(blend.splits, key=blend.splits.__getitem__)

    def wait() -> None:
        until = time.monotonic() + 60
        while len(sources_among(finished(store))) < sources:
            assert time.monotonic() < until, f"{sources} sources were finished"
            time.sleep(0.005)

    return Fault(lambda request: blend.reads_rows(request, largest) and "-00001-of-" in request.path, first=wait)


def finished(store: Path) -> dict[str, int]:
    """Address -> when its manifest was written, ns."""
    return {str(path.parent.relative_to(store)): path.stat().st_mtime_ns for path in store.glob(f"*/*/*/*/{MANIFEST_NAME}")}


def sources_among(addresses: dict[str, int]) -> list[str]:
    return [address.split("/")[2] for address in addresses if address.startswith("datasets/sources/")]


def read_again(blend: ReportBlend, sources: list[str]) -> list[str]:
    """Requests for rows of these sources."""
    splits = [split for split in blend.splits if split.lower() in sources]
    assert len(splits) == len(sources)
    return [request.path for request in blend.hub.requests for split in splits if blend.reads_rows(request, split)]


def assert_nothing_is_left_over(store: Path) -> None:
    """Every file is a finished artifact's; every lease can be had."""
    opened = Store.open(store)
    manifests = opened.manifests()
    assert {str(path.relative_to(store)) for path in store.glob("*/*/*/*")} == {each.address for each in manifests}
    assert [reason for each in manifests for reason in damage(each, store / each.address)] == []
    beside = [path for depth in ("*", "*/*", "*/*/*") for path in store.glob(depth) if not path.is_dir() or path.name.startswith(".")]
    assert {path.relative_to(store).parts[0] for path in beside} == {LEASES}
    for path in (store / LEASES).iterdir():
        lease = FileLease(store, path.name)
        assert lease.take() is None, f"nobody holds {path.name}"
        lease.release()
