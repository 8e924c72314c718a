"""Replies of the loopback Hub, before they go over a connection: a status, headers, and bytes or a part of a file."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tests.loopback_hub.faults import Request
from tests.loopback_hub.repositories import PIECE, StoredFile


@dataclass(frozen=True)
class Call:
    """A request with all that a reply can depend on."""

    request: Request
    parts: list[str]  # of the path
    query: dict[str, list[str]]
    token: str | None
    body: bytes


@dataclass(frozen=True)
class FilePart:
    file: StoredFile
    start: int
    end: int
    repository: str  # that its bytes are counted for


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes | FilePart
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.body) if isinstance(self.body, bytes) else self.body.end - self.body.start

    def pieces(self) -> Iterator[bytes]:
        if isinstance(self.body, FilePart):
            return self.body.file.pieces(self.body.start, self.body.end)
        return (self.body[place : place + PIECE] for place in range(0, len(self.body), PIECE))


class Denied(Exception):  # noqa: N818
    """The Hub's errors: their kind is in the header X-Error-Code, if they have one."""

    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        plain = " ".join(message.encode("ascii", "replace").decode().split())  # a header takes no other
        named = {"X-Error-Code": code, "X-Repo-Commit": commit, "X-Error-Message": plain}
        self.reply = json_reply({"error": message}, status, {name: value for name, value in named.items() if value is not None})


def json_reply(told: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(told).encode(), {"Content-Type": "application/json", **(headers or {})})


def file_reply(part: FilePart, commit: str, ranged: bool) -> Reply:
    """206 for a range, 200 for the whole. An LFS file is sent from here too: the Hub itself would redirect to its storage."""
    headers = {"ETag": f'"{part.file.etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if part.file.sha256 is not None:
        headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(part.file.size)}
    if ranged:
        headers["Content-Range"] = _content_range(part)
    return Reply(206 if ranged else 200, part, headers)


def with_fewer_bytes(reply: Reply, missing: int) -> Reply:
    """The same range with a later end, as if it had been asked for."""
    part = reply.body
    if not isinstance(part, FilePart):
        return reply
    shorter = replace(part, end=max(part.start + 1, part.end - missing))
    return replace(reply, body=shorter, headers={**reply.headers, "Content-Range": _content_range(shorter)})


def _content_range(part: FilePart) -> str:
    return f"bytes {part.start}-{part.end - 1}/{part.file.size}"
