"""The counter of memory kills: found where the kernel has it, and read as it writes it."""

from pathlib import Path

import pytest

from trlm_core.training.memory_kills import KillCounter, _candidates

EVENTS = "low 0\nhigh 0\nmax 512\noom 7\noom_kill 5\noom_group_kill 1\n"  # memory.events
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"  # memory.oom_control
MACHINE = "nr_free_pages 123\noom_kill 11\ndrop_pagecache 0\n"  # vmstat


@pytest.mark.parametrize(("text", "count"), [(EVENTS, 5), (CONTROL, 2), (MACHINE, 11), ("oom_kill_disable 1\n", 0), ("", 0)])
def test_kills_are_read_from_every_kind_of_counter(text: str, count: int, tmp_path: Path):
    (tmp_path / "counter").write_text(text)
    assert KillCounter(tmp_path / "counter").count() == count


def test_a_system_without_a_counter_counts_none(tmp_path: Path):
    assert KillCounter(None).count() == 0
    assert KillCounter(tmp_path / "gone").count() == 0


@pytest.mark.parametrize(
    ("groups", "paths"),
    [
        ("0::/user.slice/app\n", ["/sys/fs/cgroup/user.slice/app/memory.events", "/sys/fs/cgroup/memory.events", "/proc/vmstat"]),
        (
            "9:name=systemd:/\n4:cpu,memory:/docker/3f\n",
            ["/sys/fs/cgroup/memory/docker/3f/memory.oom_control", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"],
        ),
        (None, ["/proc/vmstat"]),
    ],
)
def test_counters_are_looked_for_from_the_own_cgroup_to_the_machine(groups: str | None, paths: list[str], tmp_path: Path):
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    assert [str(path) for path in _candidates(tmp_path / "cgroup")] == paths


@pytest.mark.skipif(not Path("/proc/vmstat").exists(), reason="only Linux counts them")
def test_this_system_has_a_counter_and_it_never_falls():
    counter = KillCounter.nearest()
    assert counter.path is not None
    assert 0 <= counter.count() <= counter.count()
