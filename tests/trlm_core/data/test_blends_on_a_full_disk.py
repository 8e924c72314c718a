"""A blend whose disk fills, wherever it is by then: one clear error, what is finished stays whole, and with more room it goes on from there."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.loopback_hub.blends import copied_store
from tests.loopback_hub.report_blend import BLEND, STAGE, ReportBlend, Undisturbed, artifacts_of
from trlm_core.artifacts.store import Store
from trlm_core.data import checks
from trlm_core.recipes.load import load_recipe

ENOUGH = 256 << 20
ROOM = {  # over the base: of the sources' and of the blend's bytes; and what does not fit
    "while sources are read": (0.5, 0.0, "datasets/sources/"),
    "while the rows are dealt": (1.25, 0.0, BLEND),
    "while the shards are written": (1.53, 0.5, BLEND),
}
LONG = ("while the rows are dealt",)


@pytest.mark.parametrize("when", [pytest.param(when, marks=pytest.mark.long if when in LONG else ()) for when in ROOM])
def test_a_full_disk_is_one_clear_error_and_the_rerun_goes_on(
    when: str, report_blend: ReportBlend, undisturbed: Undisturbed, small_disk: Callable[[int], Path]
) -> None:
    of_sources, of_blend, begun = ROOM[when]
    disk = small_disk(ENOUGH)
    store = copied_store(report_blend.base_store, disk / "store")
    room = of_sources * size_of(undisturbed, "datasets/sources/") + of_blend * size_of(undisturbed, BLEND)
    small_disk(shutil.disk_usage(disk).used + int(room))
    failed = report_blend.run(store)
    assert failed.get("kind") == "FullDiskError", failed
    for words in (f"{store}: wanted more room for {begun}", "No space left on device", "--store"):
        assert words in failed["error"]
    kept = artifacts_of(store)
    assert kept == {address: undisturbed.artifacts[address] for address in kept}, "what is finished is whole"
    assert {str(path.relative_to(store)) for path in store.glob("*/*/*/*")} == kept.keys(), "and nothing else is there"

    small_disk(ENOUGH)
    assert report_blend.run(store).get("fingerprint") == undisturbed.fingerprint
    assert artifacts_of(store) == undisturbed.artifacts


def test_checks_that_find_no_room_for_what_their_memory_cannot_hold_say_so(
    report_blend: ReportBlend, undisturbed: Undisturbed, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Store.open(report_blend.home / "undisturbed")
    (blend,) = opened.manifests_at(opened.finished(BLEND))
    stage, rows = (
        load_recipe(str(report_blend.recipe)).stage(STAGE),
        {name: each["train"] for name, each in blend.counts["sources"].items()},
    )
    monkeypatch.setattr(checks, "MEMORY", "16MB")
    near = small_disk(1 << 20)
    with pytest.raises(OSError) as raised:
        checks.run_checks(opened.folder(blend), stage, rows, near)
    assert (raised.value.errno, Path(raised.value.filename).parent) == (errno.ENOSPC, near)
    assert not list(near.iterdir())
    recorded = json.loads((opened.folder(blend) / "checks.json").read_text())
    made = checks.run_checks(opened.folder(blend), stage, rows, small_disk(ENOUGH))
    assert [each.model_dump() for each in made] == recorded[: len(made)]


def size_of(undisturbed: Undisturbed, below: str) -> int:
    return sum(size for address, size in undisturbed.sizes.items() if address.startswith(below))
