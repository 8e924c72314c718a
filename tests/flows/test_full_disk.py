"""A disk that fills under a blend's flow: one clear line, exit code 2, no retry; with more room it goes on from there."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ENOUGH = 64 << 20
KIB = 1 << 10


@pytest.mark.parametrize(
    ("room", "tracking", "words"),
    [
        pytest.param(80 * KIB, "elsewhere", ["No space left on device", "choose another with --store"], id="an artifact"),
        pytest.param(
            500 * KIB, "in the store", ["got a full disk", "database or disk is full"], id="the tracking database", marks=pytest.mark.long
        ),
    ],
)
def test_a_full_disk_ends_a_blend_with_one_clear_line(
    room: int,
    tracking: str,
    words: list[str],
    trlm: Any,
    tiny_recipe_file: Path,
    tiny_base: Path,
    small_disk: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """`room`: over the base, which the store has first."""
    store = small_disk(room + bytes_of(tiny_base)) / "store"
    address = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"] if tracking == "elsewhere" else []
    asked = ["blend", str(tiny_recipe_file), "stage1_sft", "--store", str(store), *address]
    done = trlm(*asked)
    assert done.code == 2, done.err[-3000:]
    (line,) = [line for line in done.err.splitlines() if line.startswith("trlm: ")]
    assert all(each in line for each in words), line
    assert "Retr" not in done.err
    small_disk(ENOUGH)
    assert trlm(*asked).code == 0


def bytes_of(folder: Path) -> int:
    """As they lie on a disk, in whole pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(-(-path.stat().st_size // page) * page for path in folder.iterdir())
