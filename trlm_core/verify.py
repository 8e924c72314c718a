"""Whether an artifact is what its manifest says: every byte, every field, and every count that its files can be counted for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from trlm_core.artifacts.fingerprint import fingerprint
from trlm_core.artifacts.manifest import MANIFEST_NAME, Manifest, damage
from trlm_core.artifacts.store import Store, StoreError, read_manifest
from trlm_core.data.stage_dataset import token_counts
from trlm_core.evals.harness import HELD_OUT, REPLIES, read_held_out, read_replies, summary
from trlm_core.training.checkpoint import HISTORY, history_counts, read_history

SPLITS = ("train", "held_out")


def artifacts_below(store: Store, address: str) -> list[Path]:
    """Folders of the finished artifacts at or below this address; "" is the whole store. Raises StoreError where there is none."""
    folders = sorted(path.parent for path in (store.root / address).rglob(MANIFEST_NAME))
    if not folders:
        raise StoreError(
            f"store {store.root}: wanted an artifact at or below {address or 'it'}, got none; `trlm store ls` lists what there is"
        )
    return folders


def objections(store: Store, folder: Path) -> list[str]:
    """What is wrong with the artifact, in words; empty when nothing is."""
    try:
        manifest = read_manifest(folder / MANIFEST_NAME)
    except StoreError as error:
        return [str(error)]
    reasons = [*damage(manifest, folder), *_wrong_fields(store, manifest, folder)]
    return reasons or _wrong_counts(manifest, folder)  # files that are damaged are not counted


def _wrong_fields(store: Store, manifest: Manifest, folder: Path) -> list[str]:
    made = fingerprint({"identity": manifest.identity, "inputs": manifest.inputs})
    checks = {
        "fingerprint": (made, manifest.fingerprint),
        "address": (str(folder.relative_to(store.root)), manifest.address),
        "version": (f"{manifest.version[:3]}-{made[:12]}", manifest.version),
    }
    return [f"{folder / MANIFEST_NAME}: {name}: wanted {wanted}, got {got}" for name, (wanted, got) in checks.items() if wanted != got]


def _wrong_counts(manifest: Manifest, folder: Path) -> list[str]:
    counted = recounted(folder)
    return [
        f"{folder}: {name}: the manifest says {said}, the files {counted[name]}"
        for name, said in manifest.counts.items()
        if name in counted and not _same(said, counted[name])
    ]


def recounted(folder: Path) -> dict[str, Any]:
    """The counts of an artifact, from its files alone, under the names that its manifest uses."""
    counts: dict[str, Any] = {}
    for split in SPLITS:
        shards = sorted(folder.glob(f"{split}-*.parquet"))
        if shards:
            rows = sum(pq.read_metadata(shard).num_rows for shard in shards)
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
