"""Faults that the loopback Hub can be asked for: which requests they hit, how often, and what goes wrong.

A fault acts before the answer (a commit that arrives first), instead of it (an error's status) or on its body.
One fault hits a request: the first of the Hub's that applies.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

# The clients name an error by these headers. A bare 401 on a repository is "not found" to them from https, but not from this http.
REFUSED = {"X-Error-Message": "Invalid credentials in Authorization header"}  # with 401: a token that is no longer valid
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this dataset is restricted"}  # with 403
MISSING = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}  # with 404
DAMAGED_BYTES = 64


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # without the query
    range: tuple[int, int] | None  # first byte, byte behind the last; (-8, ...) begins 8 before the file's end
    authorized: bool

    @property
    def is_data(self) -> bool:
        """A range of a file."""
        return self.method == "GET" and self.range is not None and "/resolve/" in self.path


# reset: the connection, in mid-body. short: fewer bytes than announced. fewer: fewer than asked, and so announced.
# whole: the file, the range is ignored. stalled: nothing for some seconds, then the end. damaged: some bytes flipped.
Body = Literal["reset", "short", "fewer", "whole", "stalled", "damaged"]
BREAKING = ("reset", "short", "stalled")


@dataclass
class Fault:
    hits: Callable[[Request], bool]
    times: int = 1
    after: int = 0  # requests of this kind that pass before
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Body | None = None
    at: int = 100  # byte of the body from which it goes wrong; of fewer: how many are missing
    seconds: float = 0.0  # of a stall
    first: Callable[[], object] | None = None  # done before the request is answered

    def applies(self, request: Request) -> bool:
        """Counts down; called once a request."""
        if not self.times or not self.hits(request):
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True

    def breaks_off(self, length: int) -> bool:
        """Whether a body of this length ends where it goes wrong."""
        return self.body in BREAKING and self.at < length

    def spoilt(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """The body up to the byte where it breaks off, or with bytes flipped from there; any other as it is."""
        passed = 0
        for piece in pieces:
            cut = self.at - passed
            passed += len(piece)
            if self.body not in {*BREAKING, "damaged"} or not 0 <= cut < len(piece):
                yield piece
            elif self.body == "damaged":
                yield piece[:cut] + bytes(255 - byte for byte in piece[cut : cut + DAMAGED_BYTES]) + piece[cut + DAMAGED_BYTES :]
            else:
                yield piece[:cut]
                return


def data(suffix: str = "") -> Callable[[Request], bool]:
    """Ranges of files whose path ends so."""
    return lambda request: request.is_data and request.path.endswith(suffix)


def calls(part: str, method: str | None = None) -> Callable[[Request], bool]:
    """Requests whose path has this part, of one method or any."""
    return lambda request: part in request.path and method in {None, request.method}


def burst(hits: Callable[[Request], bool], *statuses: int) -> list[Fault]:
    """A fault for each status, one after the other: `hub.faults += burst(data(), 500, 502, 503)`."""
    return [Fault(hits, status=status) for status in statuses]
