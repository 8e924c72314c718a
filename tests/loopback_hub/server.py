"""The loopback Hub: a real HTTP server that speaks the Hub's protocol to the real `huggingface_hub` and `datasets` clients.

Serve a folder of datasets, one commit each: `python -m tests.loopback_hub.server --root DIR --latency-ms 40 --mb-per-s 20`.
"""

import argparse
import base64
import contextlib
import json
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.loopback_hub.faults import Fault, Request
from tests.loopback_hub.repositories import (
    Commit,
    Content,
    Repositories,
    Repository,
    blob_id,
    is_large,
    read_range,
    sha256_of,
    size_of,
)

PIECE = 64 << 10
TOKEN = "hf_loopback_token"  # that may write


@dataclass
class LoopbackHub:
    """`with LoopbackHub() as hub`: hub.repositories, hub.endpoint, hub.requests, hub.faults."""

    latency_seconds: float = 0.0
    bytes_per_second: float | None = None  # of a connection
    repositories: Repositories = field(default_factory=Repositories)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)  # LFS objects by their sha256
    sent: Counter[str] = field(default_factory=Counter)  # bytes of files, by repository
    guard: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> "LoopbackHub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def asked(self, request: Request) -> Fault | None:
        with self.guard:
            self.requests.append(request)
            return next((fault for fault in self.faults if fault.applies(request)), None)

    def counted(self, repository: str, count: int) -> None:
        with self.guard:
            self.sent[repository] += count

    def data_requests(self) -> list[Request]:
        return [request for request in self.requests if request.is_data]


class _Answered(Exception):  # noqa: N818
    """The request has had its answer."""


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_request(self, *_: Any) -> None:
        """Nobody reads it."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        split = urllib.parse.urlsplit(self.path)
        self._route, self._query = urllib.parse.unquote(split.path), urllib.parse.parse_qs(split.query)
        length = int(self.headers.get("Content-Length") or 0)
        self._body = self.rfile.read(length) if length else self._chunked() if self.headers.get("Transfer-Encoding") else b""
        self._fault = self.hub.asked(Request(self.command, self._route, self._range(), "Authorization" in self.headers))
        time.sleep(self.hub.latency_seconds)
        with contextlib.suppress(_Answered, BrokenPipeError, ConnectionResetError):
            if self._fault is not None and self._fault.first is not None:
                self._fault.first()
            if self._fault is not None and self._fault.status is not None:
                self._json({"error": f"a fault: {self._fault.status}"}, self._fault.status, self._fault.headers)
            self._routed()
            self._json({"error": "not found"}, 404)

    def _chunked(self) -> bytes:
        pieces = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _range(self) -> tuple[int, int] | None:
        told = self.headers.get("Range", "")
        if not told.startswith("bytes="):
            return None
        first, _, last = told.removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1 if last else 1 << 62

    def _routed(self) -> None:
        parts = self._route.strip("/").split("/")
        if self._route == "/__counters":
            self._json({"requests": len(self.hub.requests), "bytes": sum(self.hub.sent.values()), "bytes_by_repo": dict(self.hub.sent)})
        if self._route == "/api/whoami-v2":
            self._writer()
            self._json({"type": "user", "name": "tester", "fullname": "Tester", "email": "t@example.org", "orgs": [], "auth": {}})
        if self._route == "/api/repos/create":
            self._create(json.loads(self._body))
        if parts[0] == "lfs" and self.command == "PUT":
            self.hub.uploads[parts[1]] = self._body
            self._json({})
        if parts[0] == "datasets" and self._route.endswith(".git/info/lfs/objects/batch"):
            self._lfs_batch(json.loads(self._body))
        if parts[0] == "api" and parts[1] in {"datasets", "models"} and len(parts) >= 4:
            self._api(self._repository("/".join(parts[2:4]), parts[1][:-1]), parts[4:])
        kind = "dataset" if parts[0] == "datasets" else "model"
        place = parts[1:] if kind == "dataset" else parts
        if len(place) > 3 and place[2] == "resolve":
            repository = self._repository("/".join(place[:2]), kind)
            self._file(repository, self._commit(repository, place[3]), "/".join(place[4:]))

    def _repository(self, name: str, kind: str) -> Repository:
        found = self.hub.repositories.get(name, kind)
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if found is None or (found.token is not None and shown != found.token):
            status = 401 if not shown or found is not None else 404
            self._json(
                {"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        assert found is not None
        return found

    def _commit(self, repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            self._json({"error": f"Invalid rev id: {revision}"}, 404, {"X-Error-Code": "RevisionNotFound"})
        assert commit is not None
        return commit

    def _api(self, repository: Repository, rest: list[str]) -> None:
        if not rest or rest[0] == "revision":
            self._json(_info(repository, self._commit(repository, rest[1] if rest else "main")))
        if rest[0] == "tree":
            self._json(_tree(self._commit(repository, rest[1]), "/".join(rest[2:]), "true" in self._query.get("recursive", [])))
        if rest[0] == "paths-info":
            asked = urllib.parse.parse_qs(self._body.decode()).get("paths", [])
            self._json(_paths_info(self._commit(repository, rest[1]), asked))
        if rest[0] == "preupload":
            self._writer()
            self._json({"files": [_preupload(repository, each) for each in json.loads(self._body)["files"]]})
        if rest[0] == "commit":
            self._writer()
            self._new_commit(repository)

    def _writer(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid credentials"}, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})

    def _create(self, asked: dict[str, Any]) -> None:
        self._writer()
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        existed = self.hub.repositories.get(name, asked.get("type", "model")) is not None
        repository = self.hub.repositories.made(name, asked.get("type", "model"))
        if not repository.commits:
            repository.commit({".gitattributes": b"*.parquet filter=lfs\n"})
        url = f"{self.hub.endpoint}/datasets/{name}"
        self._json({"url": url, "id": name, **({"error": "You already created this repo"} if existed else {})}, 409 if existed else 200)

    def _lfs_batch(self, asked: dict[str, Any]) -> None:
        self._writer()
        objects = [
            {"oid": each["oid"], "size": each["size"]}
            | ({} if each["oid"] in self.hub.uploads else {"actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}}})
            for each in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _new_commit(self, repository: Repository) -> None:
        changes: dict[str, Content | None] = {}
        for line in self._body.splitlines():
            told = json.loads(line)
            value = told["value"]
            if told["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            if told["key"] == "lfsFile":
                changes[value["path"]] = self.hub.uploads[value["oid"]]
            if told["key"] == "deletedFile":
                changes[value["path"]] = None
        sha = repository.commit(changes)
        url = f"{self.hub.endpoint}/datasets/{repository.name}/commit/{sha}"
        self._json({"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})

    def _file(self, repository: Repository, commit: Commit, path: str) -> None:
        content = commit.files.get(path)
        if content is None:
            self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        assert content is not None
        size = size_of(content)
        asked = None if self._fault is not None and self._fault.body == "whole" else self._range()
        start, end = (asked[0], min(asked[1], size)) if asked else (0, size)
        if self._fault is not None and self._fault.body == "fewer":
            end = max(start, end - self._fault.at)
        headers = {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.send_response(206 if asked else 200)
        for name, value in {**headers, "Content-Length": str(end - start), "Content-Type": "application/octet-stream"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._send_body(repository.name, content, start, end)
        raise _Answered

    def _send_body(self, name: str, content: Content, start: int, end: int) -> None:
        began, sent = time.monotonic(), 0
        for piece in _pieces(content, start, end):
            piece = self._spoilt(piece, sent)
            self.wfile.write(piece)
            sent += len(piece)
            if self.hub.bytes_per_second:
                time.sleep(max(0.0, sent / self.hub.bytes_per_second - (time.monotonic() - began)))
        self.hub.counted(name, sent)

    def _spoilt(self, piece: bytes, sent: int) -> bytes:
        """The fault's doing, once the body reaches its byte."""
        fault = self._fault
        if fault is None or fault.body in {None, "fewer", "whole"} or not sent <= fault.at < sent + len(piece):
            return piece
        cut = fault.at - sent
        if fault.body == "damaged":
            return piece[:cut] + bytes(255 - byte for byte in piece[cut : cut + 64]) + piece[cut + 64 :]
        self.wfile.write(piece[:cut])
        self.wfile.flush()
        if fault.body == "stalled":
            time.sleep(fault.seconds)
        if fault.body == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        if fault.body == "reset":
            self.connection.close()
        raise _Answered

    def _json(self, told: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        raise _Answered


def _pieces(content: Content, start: int, end: int) -> Iterator[bytes]:
    for place in range(start, end, PIECE):
        yield read_range(content, place, min(end, place + PIECE))


def _info(repository: Repository, commit: Commit) -> dict[str, Any]:
    readme = commit.files.get("README.md", b"")
    text = (readme if isinstance(readme, bytes) else readme.read_bytes()).decode()
    card = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    return {
        "id": repository.name,
        "author": repository.name.split("/")[0],
        "sha": commit.sha,
        "private": repository.token is not None,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "cardData": card,
        "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
    }


def _tree(commit: Commit, below: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{below}/" if below else ""
    inside = [path for path in sorted(commit.files) if path.startswith(prefix)]
    folders = sorted({path[: place.start()] for path in inside for place in _slashes(path) if place.start() >= len(prefix)})
    entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders]
    entries += [_file_entry(path, commit.files[path]) for path in inside]
    return [entry for entry in entries if recursive or "/" not in entry["path"].removeprefix(prefix)]


def _slashes(path: str) -> Iterator[Any]:
    import re

    return re.finditer("/", path)


def _paths_info(commit: Commit, asked: list[str]) -> list[dict[str, Any]]:
    files = [_file_entry(path, commit.files[path]) for path in asked if path in commit.files]
    folders = [path for path in asked if path not in commit.files and any(each.startswith(f"{path}/") for each in commit.files)]
    return files + [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders]


def _file_entry(path: str, content: Content) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob_id(content), "size": size_of(content), "path": path}
    if isinstance(content, bytes) and (is_large(content) or path.endswith(".parquet")):
        entry["lfs"] = {"oid": sha256_of(content), "size": size_of(content), "pointerSize": 134}
    return entry


def _preupload(repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
    large = file["size"] > 1 << 20 or file["path"].endswith(".parquet")
    kept = repository.commits[-1].files.get(file["path"]) if repository.commits else None
    return {
        "path": file["path"],
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": False,
        "oid": None if kept is None else sha256_of(kept) if large else blob_id(kept),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with <owner>/<name>/ below, a dataset each")
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--mb-per-s", type=float, default=None, help="of a connection")
    asked = parser.parse_args()
    hub = LoopbackHub(asked.latency_ms / 1000, asked.mb_per_s and asked.mb_per_s * 1e6)
    for folder in sorted(path for path in asked.root.glob("*/*") if path.is_dir()):
        hub.repositories.add_folder(folder.relative_to(asked.root).as_posix(), folder)
    with hub:
        print(json.dumps({"endpoint": hub.endpoint}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
