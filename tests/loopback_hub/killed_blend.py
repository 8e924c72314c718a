"""A blend that ends itself with SIGKILL at one of its calls: `python -m tests.loopback_hub.killed_blend "assembling card" 12 RECIPE STAGE STORE`.

The calls into each module of the core and each function of it are counted, those before the sources are joined apart from those after it.
Number 0 kills at none; the last line is then the counts: {"reading taken": 402, "reading taken.take": 6, "assembling card": 144}.
"""

import itertools
import json
import os
import signal
import sys
import threading
from collections import defaultdict
from types import FrameType

from tests.loopback_hub import blend_once

CORE = "trlm_core."
JOINS = "assemble"  # the function that begins to join the sources


class Calls:
    """A profiler of every thread. Counters that step in C count each call once, whichever thread makes it."""

    def __init__(self, at: str, number: int) -> None:
        self._at, self._number = at, number
        self._counters: defaultdict[str, itertools.count[int]] = defaultdict(lambda: itertools.count(1))
        self._part = "reading"

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        module = frame.f_globals.get("__name__", "")
        if event != "call" or not module.startswith(CORE):
            return
        if frame.f_code.co_name == JOINS:
            self._part = "assembling"
        place = f"{self._part} {module.rsplit('.', 1)[-1]}"
        for each in (place, f"{place}.{frame.f_code.co_name}"):
            if next(self._counters[each]) == self._number and each == self._at:
                os.kill(os.getpid(), signal.SIGKILL)

    def counts(self) -> dict[str, int]:
        return {place: next(counter) - 1 for place, counter in self._counters.items()}


def main() -> None:
    calls = Calls(sys.argv.pop(1), int(sys.argv.pop(1)))
    threading.setprofile(calls)
    sys.setprofile(calls)
    blend_once.main()
    sys.setprofile(None)
    print(json.dumps(calls.counts()))


if __name__ == "__main__":
    main()
