"""Routes of the loopback Hub: what it replies at each address. Those of other services (the dataset viewer, xet) are not found."""

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tests.loopback_hub.access import check_writer, readable
from tests.loopback_hub.listings import info, paths_info, tree
from tests.loopback_hub.replies import Call, Denied, FilePart, Reply, file_reply, json_reply
from tests.loopback_hub.repositories import BRANCH, Commit, Repository
from tests.loopback_hub.uploads import checked_card, committed, created, upload_modes

if TYPE_CHECKING:
    from tests.loopback_hub.server import LoopbackHub


def reply_to(hub: "LoopbackHub", call: Call) -> Reply:
    """Raises Denied."""
    match call.request.method, call.parts:
        case _, ["api", *rest]:
            return _api(hub, call, rest)
        case "PUT", ["lfs", oid]:
            return hub.large_files.put(oid, call.body)
        case "POST", [*_, "info", "lfs", "objects", "batch"]:
            check_writer(hub.repositories, call.token)
            return hub.large_files.batch(json.loads(call.body), hub.endpoint)
        case "GET" | "HEAD", ["datasets", owner, name, "resolve", revision, *path]:
            return _file(readable(hub.repositories, f"{owner}/{name}", "dataset", call.token), revision, "/".join(path), call)
        case "GET" | "HEAD", [owner, name, "resolve", revision, *path]:
            return _file(readable(hub.repositories, f"{owner}/{name}", "model", call.token), revision, "/".join(path), call)
    raise Denied(404, "Not found")


def _api(hub: "LoopbackHub", call: Call, parts: Sequence[str]) -> Reply:
    match call.request.method, parts:
        case "GET", ["whoami-v2"]:
            check_writer(hub.repositories, call.token)
            return json_reply({"type": "user", "name": "tester", "fullname": "Tester", "email": "t@example.org", "orgs": [], "auth": {}})
        case "POST", ["repos", "create"]:
            check_writer(hub.repositories, call.token)
            return created(hub.repositories, call, hub.endpoint)
        case "POST", ["validate-yaml"]:
            return checked_card(call)
        case _, [("datasets" | "models") as kinds, owner, name, *rest]:
            repository = readable(hub.repositories, f"{owner}/{name}", kinds.removesuffix("s"), call.token)
            return _read(hub, call, repository, rest) if call.request.method == "GET" else _posted(hub, call, repository, rest)
    raise Denied(404, "Not found")


def _read(hub: "LoopbackHub", call: Call, repository: Repository, parts: Sequence[str]) -> Reply:
    match parts:
        case []:
            return json_reply(info(repository, _commit(repository, BRANCH), _asks_for(call, "blobs")))
        case ["revision", revision]:
            return json_reply(info(repository, _commit(repository, revision), _asks_for(call, "blobs")))
        case ["auth-check"]:
            return json_reply({})
        case ["auth-check", "write"]:
            check_writer(hub.repositories, call.token, "RepoNotFound")
            return json_reply({})
        case ["tree", revision, *below]:
            return _tree_page(hub, call, _commit(repository, revision), "/".join(below))
    raise Denied(404, "Not found")


def _posted(hub: "LoopbackHub", call: Call, repository: Repository, parts: Sequence[str]) -> Reply:
    match parts:
        case ["paths-info", revision]:
            asked = urllib.parse.parse_qs(call.body.decode()).get("paths", [])
            return json_reply(paths_info(_commit(repository, revision), asked))
        case ["preupload" | "commit" as step, revision]:
            check_writer(hub.repositories, call.token, "RepoNotFound")
            if revision != BRANCH:
                raise _no_revision(revision)
            return upload_modes(repository, call) if step == "preupload" else committed(repository, call, hub.large_files, hub.endpoint)
    raise Denied(404, "Not found")


def _tree_page(hub: "LoopbackHub", call: Call, commit: Commit, below: str) -> Reply:
    """So many entries a page, with a link to the next."""
    entries = tree(commit, below, _asks_for(call, "recursive"))
    if below and not entries:
        raise _no_entry(below, commit)
    start = int(call.query.get("cursor", ["0"])[0])
    end = start + hub.page_size
    return json_reply(entries[start:end], headers=_next_page(hub.endpoint, call, end) if end < len(entries) else {})


def _next_page(endpoint: str, call: Call, cursor: int) -> Mapping[str, str]:
    path = "/".join(urllib.parse.quote(part, safe="") for part in call.parts)
    query = urllib.parse.urlencode({**call.query, "cursor": [cursor]}, doseq=True)
    return {"Link": f'<{endpoint}/{path}?{query}>; rel="next"'}


def _file(repository: Repository, revision: str, path: str, call: Call) -> Reply:
    commit = _commit(repository, revision)
    file = commit.files.get(path)
    if file is None:
        raise _no_entry(path, commit)
    if call.request.range is None:
        return file_reply(FilePart(file, 0, file.size, repository.name), commit.sha, ranged=False)
    first, end = call.request.range
    start = max(0, file.size + first) if first < 0 else first
    if start >= file.size:
        return json_reply({"error": "Range not satisfiable"}, 416, {"Content-Range": f"bytes */{file.size}"})
    return file_reply(FilePart(file, start, min(end, file.size), repository.name), commit.sha, ranged=True)


def _commit(repository: Repository, revision: str) -> Commit:
    commit = repository.at(revision)
    if commit is None:
        raise _no_revision(revision)
    return commit


def _asks_for(call: Call, name: str) -> bool:
    return call.query.get(name, [""])[0].lower() == "true"


def _no_revision(revision: str) -> Denied:
    return Denied(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def _no_entry(path: str, commit: Commit) -> Denied:
    return Denied(404, f"{path} does not exist", "EntryNotFound", commit.sha)
