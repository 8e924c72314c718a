"""Faults that the loopback Hub can be asked for: which requests they hit, how often, and what goes wrong.

A fault acts at once (an error's status, a commit that arrives first) or on the body that is being sent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # without the query
    range: tuple[int, int] | None  # first byte, byte behind the last
    authorized: bool

    @property
    def is_data(self) -> bool:
        """A range of a file."""
        return self.method == "GET" and self.range is not None and "/resolve/" in self.path


Body = Literal["reset", "short", "fewer", "whole", "stalled", "damaged"]


@dataclass
class Fault:
    hits: Callable[[Request], bool]
    times: int = 1
    after: int = 0  # requests of this kind that pass before
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Body | None = None
    at: int = 100  # byte of the body from which it goes wrong
    seconds: float = 0.0  # of a stall
    first: Callable[[], object] | None = None  # done before the request is answered

    def applies(self, request: Request) -> bool:
        """Counts down; called once a request."""
        if not self.hits(request) or not self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


def data(suffix: str = "") -> Callable[[Request], bool]:
    """Ranges of files whose path ends so."""
    return lambda request: request.is_data and request.path.endswith(suffix)


def calls(part: str) -> Callable[[Request], bool]:
    """Requests whose path has this part."""
    return lambda request: part in request.path
