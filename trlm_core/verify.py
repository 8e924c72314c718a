"""Whether an artifact is what its manifest says: every byte, every field, and every count that its files can be counted for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trlm_core.artifacts.errors import StoreError
from trlm_core.artifacts.fingerprint import fingerprint
from trlm_core.artifacts.manifest import MANIFEST_NAME, Manifest, damage, misplaced, read_manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.blend import CHECKS
from trlm_core.data.checks import run_checks
from trlm_core.data.shards import count_rows, has_shards
from trlm_core.data.stage_dataset import token_counts
from trlm_core.evals.harness import HELD_OUT, REPLIES, read_held_out, read_replies, summary
from trlm_core.recipes.schema import Recipe
from trlm_core.training.checkpoint import HISTORY, history_counts, read_history

SPLITS = ("train", "held_out", "spare")


def artifacts_below(store: Store, address: str) -> list[str]:
    """Addresses of the finished artifacts at or below this one; "" is the whole store. Raises StoreError where there is none."""
    addresses = store.finished(address.strip("/"))
    if not addresses:
        raise StoreError(
            f"store {store.address}: wanted an artifact at or below {address or 'it'}, got none; `trlm store ls` lists what there is"
        )
    return addresses


def objections(store: Store, address: str) -> list[str]:
    """What is wrong with the artifact as the store holds it, in words; empty when nothing is."""
    with store.original(address) as folder:
        return [f"{store.address}/{address}/{reason}" for reason in _objections(folder, address)]


def _objections(folder: Path, address: str) -> list[str]:
    try:
        manifest = read_manifest((folder / MANIFEST_NAME).read_bytes(), MANIFEST_NAME)
    except StoreError as error:
        return [str(error)]
    reasons = [*damage(manifest, folder), *misplaced(manifest, address), *_wrong_fields(manifest)]
    return reasons or [*_wrong_counts(manifest, folder), *_failed_checks(manifest, folder)]  # files that are damaged are not counted


def _wrong_fields(manifest: Manifest) -> list[str]:
    made = fingerprint({"identity": manifest.identity, "inputs": manifest.inputs})
    checks = {
        "fingerprint": (made, manifest.fingerprint),
        "version": (f"{manifest.version[:3]}-{made[:12]}", manifest.version),
    }
    return [f"{MANIFEST_NAME}: {name}: wanted {wanted}, got {got}" for name, (wanted, got) in checks.items() if wanted != got]


def _wrong_counts(manifest: Manifest, folder: Path) -> list[str]:
    counted = recounted(folder)
    return [
        f"{name}: the manifest says {said}, the files {counted[name]}"
        for name, said in manifest.counts.items()
        if name in counted and not _same(said, counted[name])
    ]


def _failed_checks(manifest: Manifest, folder: Path) -> list[str]:
    """Of a blend: its DuckDB checks, run again over its shards."""
    if not (folder / CHECKS).is_file():
        return []
    stage = Recipe.model_validate_json(json.dumps(manifest.recipe)).stage(manifest.name)
    rows = {name: count["train"] for name, count in manifest.counts["sources"].items()}
    return [f"{check.name}: wanted {check.wanted}, got {check.got}" for check in run_checks(folder, stage, rows) if not check.passed]


def recounted(folder: Path) -> dict[str, Any]:
    """The counts of an artifact, from its files alone, under the names that its manifest uses."""
    counts: dict[str, Any] = {}
    for split in SPLITS:
        if has_shards(folder, split):
            rows = count_rows(folder, split)
            counts |= {split: rows, f"{split}_rows": rows} | ({"rows": rows} if split == "train" else {})
    if (folder / "tokenizer").is_dir():
        counts |= token_counts(folder)
    if (folder / HISTORY).is_file():
        counts |= history_counts(read_history(folder))
    if (folder / REPLIES).is_file():
        counts |= summary(read_replies(folder))
    if (folder / HELD_OUT).is_file():
        held_out = read_held_out(folder)
        counts |= {"rows": held_out.loss.rows, "loss": held_out.loss.loss, "loss_at_start": held_out.loss.loss_at_start}
    return counts


def _same(said: Any, counted: Any) -> bool:
    if isinstance(said, Mapping):
        return said.keys() == counted.keys() and all(_same(said[key], counted[key]) for key in said)
    if isinstance(said, float):
        return math.isclose(said, counted, rel_tol=1e-9) or json.dumps(said) == json.dumps(counted)  # NaN
    return said == counted
