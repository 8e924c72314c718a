"""A disk that fills while an artifact is built: one clear error, and the store as before. On a small file system of its own."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trlm_core.artifacts.full_disk import FullDiskError
from trlm_core.artifacts.store import Spec, Store

SIZE = 1 << 20
SPEC = Spec("datasets", "tests", "noise", {"made_by": "tests/1"}, {})
OTHER = Spec("datasets", "tests", "other", {"made_by": "tests/1"}, {})
NOISE = pa.table({"noise": [os.urandom(1000) for _ in range(100)]})


@pytest.fixture
def small_store(small_disk: Callable[[int], Path]) -> Store:
    return Store.open(small_disk(SIZE) / "store")


def by_python(folder: Path) -> dict[str, Any]:
    with (folder / "noise.bin").open("wb") as file:
        while True:
            file.write(os.urandom(1000))


def by_arrow(folder: Path) -> dict[str, Any]:
    writer = pa.ipc.new_file(pa.OSFile(str(folder / "noise.arrow"), "wb"), NOISE.schema)
    while True:
        writer.write_table(NOISE)


def by_parquet(folder: Path) -> dict[str, Any]:
    writer = pq.ParquetWriter(folder / "noise.parquet", NOISE.schema)
    while True:
        writer.write_table(NOISE)


def by_a_thread(folder: Path) -> dict[str, Any]:
    with ThreadPoolExecutor(2) as threads:
        under_way = [threads.submit(by_arrow, folder)]  # a frame that holds a future that holds the error that holds the frame
        for each in under_way:
            each.result()
    return {}


def to_the_last_byte(folder: Path) -> dict[str, Any]:
    """The build itself ends well: no byte is left for the manifest."""
    with (folder / "noise.bin").open("wb", buffering=0) as file:
        while free(folder):
            file.write(b"x" * min(4096, free(folder)))
    return {"rows": 1}


@pytest.mark.parametrize("fill", [by_python, by_arrow, by_parquet, by_a_thread, to_the_last_byte])
def test_a_full_disk_is_one_clear_error_and_leaves_the_store_as_before(small_store: Store, fill: Callable[[Path], dict[str, Any]]):
    kept = small_store.make(OTHER, a_little)
    before, room = files_below(small_store.root), free(small_store.root)
    with pytest.raises(FullDiskError) as raised:
        small_store.make(SPEC, fill)
    for words in (str(small_store.root), "wanted more room for datasets/tests/noise", "No space left on device", "--store"):
        assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert files_below(small_store.root) == before
    assert abs(free(small_store.root) - room) <= 4096, "its room is given back at once; a lease may have taken a page"
    assert small_store.make(SPEC, a_little).counts == {"rows": 1}, "and it can be built where there is room"
    assert small_store.find(OTHER) == kept


def test_a_lease_without_room_is_one_clear_error_and_is_not_kept(small_store: Store):
    to_the_last_byte(small_store.root)
    for _ in range(2):  # the second would wait for a lock that the first had kept
        with pytest.raises(ValueError, match=r"wanted to hold it, got .*No space left on device"):
            small_store.make(SPEC, a_little)
        with pytest.raises(ValueError, match=r"wanted to hold it, got .*No space left on device"), small_store.held():
            pass
    (small_store.root / "noise.bin").unlink()
    assert small_store.make(SPEC, a_little).counts == {"rows": 1}


def test_a_full_cache_of_a_remote_store_is_one_clear_error_and_nothing_is_finished(
    s3_address: str, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TRLM_CACHE", str(small_disk(SIZE)))
    store = Store.open(s3_address)
    with pytest.raises(FullDiskError, match="choose another with TRLM_CACHE"):
        store.make(SPEC, by_python)
    assert not store.finished()
    assert not list(store.root.glob("*/*/*/*"))
    made = store.make(SPEC, a_little)
    store.folder(made).joinpath("rows.txt").unlink()
    to_the_last_byte(store.root)
    with pytest.raises(ValueError, match=r"No space left on device.*choose another with"):
        store.folder(made)
    assert store.finished() == [made.address]


def test_another_error_keeps_what_was_begun_for_who_looks_into_it(small_store: Store):
    def failing(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("half")
        raise OSError("something else")

    with pytest.raises(OSError, match="something else"):
        small_store.make(SPEC, failing)
    assert [path.name for path in small_store.root.glob("datasets/tests/noise/*/*")] == ["half"]


def a_little(folder: Path) -> dict[str, Any]:
    (folder / "rows.txt").write_text("one")
    return {"rows": 1}


def files_below(root: Path) -> set[str]:
    """But the leases, which stay for the next who holds them."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.parent.name != ".leases"}


def free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
