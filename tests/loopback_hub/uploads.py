"""Uploads to the loopback Hub: a repository is created, large files are sent, then one commit names all that is new."""

import base64
import hashlib
import json
from typing import Any

import yaml

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.listings import front_matter, preupload
from tests.loopback_hub.replies import Call, Denied, Reply, json_reply
from tests.loopback_hub.repositories import Content, Repositories, Repository


class LargeFiles:
    """Contents that have been sent, by their sha256."""

    def __init__(self) -> None:
        self._sent: dict[str, bytes] = {}

    def put(self, oid: str, content: bytes) -> Reply:
        """Raises Denied where the bytes are others than named."""
        if hashlib.sha256(content).hexdigest() != oid:
            raise Denied(400, f"wanted the bytes with the sha256 {oid}, got {len(content)} others")
        self._sent[oid] = content
        return json_reply({})

    def batch(self, asked: dict[str, Any], endpoint: str) -> Reply:
        """Where to send each file; those that are here need not be sent."""
        objects = [{"oid": each["oid"], "size": each["size"], **self._action(each["oid"], endpoint)} for each in asked["objects"]]
        return json_reply({"transfer": "basic", "objects": objects})

    def content(self, oid: str, repository: Repository) -> Content:
        """Of a file that was sent, or that the repository has already."""
        known = {file.sha256: file.content for file in repository.head.files.values()}
        found = self._sent.get(oid, known.get(oid))
        if found is None:
            raise Denied(400, f"wanted the large file {oid} to be sent before the commit")
        return found

    def _action(self, oid: str, endpoint: str) -> dict[str, Any]:
        return {} if oid in self._sent else {"actions": {"upload": {"href": f"{endpoint}/lfs/{oid}"}}}


def created(repositories: Repositories, call: Call, endpoint: str) -> Reply:
    """409 with its address where it exists."""
    asked = json.loads(call.body)
    name, kind = f"{asked.get('organization') or 'tester'}/{asked['name']}", asked.get("type", "model")
    told = {"url": f"{endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}", "id": name}
    if repositories.get(name, kind) is not None:
        return json_reply({**told, "error": f"You already created this {kind} repo: {name}"}, 409)
    repository = repositories.made(name, kind)
    repository.token = TOKEN if asked.get("visibility") == "private" else None
    repository.commit({".gitattributes": b"*.parquet filter=lfs diff=lfs merge=lfs -text\n"})
    return json_reply(told)


def upload_modes(repository: Repository, call: Call) -> Reply:
    return json_reply({"files": [preupload(repository.head, file) for file in json.loads(call.body)["files"]]})


def committed(repository: Repository, call: Call, large: LargeFiles, endpoint: str) -> Reply:
    """Raises Denied where another commit than the one it builds on is the last."""
    lines = [json.loads(line) for line in call.body.splitlines()]
    parent = lines[0]["value"].get("parentCommit")
    if parent not in {None, repository.head.sha}:
        raise Denied(412, "A commit has happened since. Please refresh and try again.")
    changes: dict[str, Content | None] = {}
    for line in lines[1:]:
        changes |= _changes(line["key"], line["value"], repository, large)
    sha = repository.commit(changes, lines[0]["value"]["summary"])
    url = f"{endpoint}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.name}/commit/{sha}"
    return json_reply({"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})


def checked_card(call: Call) -> Reply:
    """Of a README.md that is about to be committed."""
    try:
        front_matter(json.loads(call.body)["content"])
    except yaml.YAMLError as error:
        return json_reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return json_reply({"errors": [], "warnings": []})


def _changes(key: str, value: dict[str, Any], repository: Repository, large: LargeFiles) -> dict[str, Content | None]:
    """One line of a commit."""
    if key == "file":
        return {value["path"]: base64.b64decode(value["content"])}
    if key == "lfsFile":
        return {value["path"]: large.content(value["oid"], repository)}
    if key == "deletedFile":
        return {value["path"]: None}
    if key == "deletedFolder":
        return {path: None for path in repository.head.files if path.startswith(f"{value['path'].strip('/')}/")}
    raise Denied(400, f"wanted file, lfsFile, deletedFile or deletedFolder, got {key}")
