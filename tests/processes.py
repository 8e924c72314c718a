"""Processes that run a module of ours, found by their command though they may end while they are looked at."""

import contextlib
from collections.abc import Iterable

import psutil


def running(module: str, among: Iterable[psutil.Process] | None = None) -> list[psutil.Process]:
    """Those of `among` (by default all that this process has started) that run `python -m module`; not torchrun, which starts them
    and names the module too."""
    candidates = psutil.Process().children(recursive=True) if among is None else among
    return [process for process in candidates if _runs(process, module)]


def variable_of(process: psutil.Process, name: str) -> str | None:
    """A variable of its environment; None if it has none or is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.environ().get(name)
    return None


def _runs(process: psutil.Process, module: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        words = process.cmdline()
        return module in words and words[words.index(module) - 1] == "-m" and "torch.distributed.run" not in words
    return False
