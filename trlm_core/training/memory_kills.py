"""Memory kills: how many processes the kernel has killed for their memory, in the file that counts them nearest to this process.

`/sys/fs/cgroup/memory.events` has a line `oom_kill 3`; so has version 1's `memory.oom_control`, and `/proc/vmstat` for the whole machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

CGROUPS = Path("/sys/fs/cgroup")
MACHINE = Path("/proc/vmstat")
NAME = "oom_kill"


@dataclass(frozen=True)
class KillCounter:
    path: Path | None  # None: this system has none

    @classmethod
    def nearest(cls) -> Self:
        """Of this process's cgroup, which a process that it starts is in too; else of the machine."""
        return cls(next((path for path in _candidates() if _count(path) is not None), None))

    def count(self) -> int:
        return (_count(self.path) if self.path else None) or 0


def _candidates(groups: Path = Path("/proc/self/cgroup")) -> Iterator[Path]:
    """From near to far. A container may see its own cgroup at the root, under whatever path it has outside."""
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from (CGROUPS / path[1:] / "memory.events", CGROUPS / "memory.events")
        elif "memory" in controllers.split(","):
            yield from (CGROUPS / "memory" / path[1:] / "memory.oom_control", CGROUPS / "memory" / "memory.oom_control")
    yield MACHINE


def _count(path: Path) -> int | None:
    """None where the file is not there or does not count them."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(count) for name, count in (line.split()[:2] for line in lines) if name == NAME), None)
