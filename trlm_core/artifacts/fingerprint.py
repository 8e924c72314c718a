"""A fingerprint is the sha256 of an identity's canonical JSON: {"a": 1} -> "015abd7f5cc57a2d..."."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol


class Fingerprinted(Protocol):
    """What another artifact can be made from: a manifest, or the spec of one that is not built yet."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no blanks: equal values, equal text. Raises TypeError or ValueError for what JSON cannot hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Hex sha256 of the identity."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fields that differ, with both values: `training.learning_rate: 0.001 -> 0.0005`."""
    old, new = dict(_leaves(before)), dict(_leaves(after))
    missing = object()
    return [
        f"{key}: {_shown(old.get(key, missing), missing)} -> {_shown(new.get(key, missing), missing)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, missing) != new.get(key, missing)
    ]


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else None
    if pairs is None:
        yield prefix, value
        return
    for key, inner in pairs:
        yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))


def _shown(value: Any, missing: object) -> str:
    return "absent" if value is missing else canonical_json(value)
