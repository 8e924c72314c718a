"""Verification: any flipped byte, lost or added file, false field or false count is found, and a whole artifact has no objection."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from trlm_core.artifacts.errors import StoreError
from trlm_core.artifacts.manifest import Manifest, file_entries
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.shards import write_shards
from trlm_core.verify import artifacts_below, objections

ROWS = pa.table({"messages": ["What is 4 + 3?", "What is 2 * 5?", "Sort: 3, 1"]})
FLIPS = 12  # a file
HISTORY = [{"step": 1, "loss": 2.5, "useful_tokens": 40}, {"step": 2, "loss": 2.25, "useful_tokens": 60}]


def write_dataset(folder: Path) -> dict[str, Any]:
    write_shards(folder, "train", ROWS)
    write_shards(folder, "held_out", ROWS.slice(0, 1))
    return {"train": 3, "held_out": 1, "dropped": {"seen": 2}}


def write_checkpoint(folder: Path) -> dict[str, Any]:
    (folder / "model.safetensors").write_bytes(bytes(range(64)))
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in HISTORY))
    return {"steps": 2, "useful_tokens": 100}


BUILDS: dict[str, tuple[Spec, Callable[[Path], dict[str, Any]]]] = {
    "dataset": (Spec("datasets", "sources", "chain_sum-trace", {"seed": 1}, {}), write_dataset),
    "checkpoint": (Spec("checkpoints", "trlm-tiny", "stage1_sft", {"learning_rate": 0.001}, {"dataset": "aa" * 32}), write_checkpoint),
}


@pytest.fixture(params=BUILDS)
def made(request: pytest.FixtureRequest, store: Store) -> Manifest:
    spec, build = BUILDS[request.param]
    return store.make(spec, build)


def reseal(folder: Path, **changes: Any) -> None:
    """A manifest that is sealed but says something false."""
    manifest = Manifest.model_validate(json.loads((folder / "manifest.json").read_text())).model_copy(update=changes).sealed()
    (folder / "manifest.json").write_text(manifest.text)


def test_a_whole_artifact_has_no_objection(store: Store, made: Manifest):
    assert objections(store, made.address) == []


def test_any_flipped_byte_is_found(store: Store, made: Manifest):
    for path in sorted(file for file in (store.root / made.address).rglob("*") if file.is_file()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            for bit in (0x01, 0x80):
                path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
                assert objections(store, made.address), f"byte {place} of {path.name}, bit {bit:#x}"
        path.write_bytes(whole)
    assert objections(store, made.address) == []


@pytest.mark.parametrize("kind", BUILDS)
def test_a_whole_remote_artifact_has_no_objection_and_any_flipped_byte_of_it_is_found(kind: str, s3_store: Store):
    spec, build = BUILDS[kind]
    made = s3_store.make(spec, build)
    assert s3_store.remote is not None
    assert objections(s3_store, made.address) == []
    draw = random.Random(20251125)
    for key in s3_store.remote.sizes(made.address):
        whole = s3_store.remote.read(key)
        for place in {0, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(FLIPS))}:
            flipped = bytes([whole[place] ^ (1 << draw.randrange(8))])
            s3_store.remote.write(key, whole[:place] + flipped + whole[place + 1 :])
            assert objections(s3_store, made.address), f"byte {place} of {key}"
        s3_store.remote.write(key, whole)
    assert objections(s3_store, made.address) == []


def test_what_is_verified_is_the_remote_and_not_the_cache(s3_store: Store):
    spec, build = BUILDS["checkpoint"]
    made = s3_store.make(spec, build)
    assert s3_store.remote is not None
    (s3_store.folder(made) / "model.safetensors").write_bytes(b"damaged in the cache")
    assert objections(s3_store, made.address) == []
    s3_store.remote.delete([f"{made.address}/model.safetensors"])
    assert objections(s3_store, made.address) == [f"{s3_store.location(made)}/model.safetensors: missing"]
    assert list(s3_store.root.glob(".verified-*")) == [], "the copies are gone"


def test_a_damaged_manifest_is_not_reused(store: Store):
    spec, build = BUILDS["checkpoint"]
    folder = store.folder(store.make(spec, build))
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(
        text.replace('"steps": 2', '"steps": 3') if '"steps": 2' in text else text.replace('"steps":2', '"steps":3')
    )
    assert store.find(spec) is None


@pytest.mark.parametrize("change", ["lost", "added", "longer"])
def test_a_lost_added_or_longer_file_is_named(change: str, store: Store):
    spec, build = BUILDS["checkpoint"]
    folder = store.folder(store.make(spec, build))
    name = "notes.txt" if change == "added" else "model.safetensors"
    if change == "lost":
        (folder / name).unlink()
    else:
        with (folder / name).open("ab") as file:
            file.write(b"more")
    (reason,) = objections(store, str(folder.relative_to(store.root)))
    assert name in reason


FALSE = {
    "counts": ({"counts": {"steps": 3, "useful_tokens": 100}}, "steps: the manifest says 3, the files 2"),
    "fingerprint": ({"fingerprint": "bb" * 32}, "fingerprint: wanted"),
    "identity": ({"identity": {"learning_rate": 0.002}}, "fingerprint: wanted"),
    "name": ({"name": "stage2_sft_think"}, "address: wanted checkpoints/trlm-tiny/stage1_sft/"),
}


@pytest.mark.parametrize("field", FALSE)
def test_a_sealed_but_false_field_is_found(field: str, store: Store):
    changes, words = FALSE[field]
    spec, build = BUILDS["checkpoint"]
    folder = store.folder(store.make(spec, build))
    reseal(folder, **changes)
    assert words in " ".join(objections(store, str(folder.relative_to(store.root))))


def test_a_false_count_of_rows_is_found(store: Store):
    spec, build = BUILDS["dataset"]
    folder = store.folder(store.make(spec, build))
    reseal(folder, counts={"train": 4, "held_out": 1, "dropped": {"seen": 2}})
    (reason,) = objections(store, str(folder.relative_to(store.root)))
    assert "train: the manifest says 4, the files 3" in reason


def test_a_sealed_manifest_over_changed_files_is_found_by_its_counts(store: Store):
    spec, build = BUILDS["checkpoint"]
    folder = store.folder(store.make(spec, build))
    (folder / "history.jsonl").write_text(json.dumps(HISTORY[0]) + "\n")
    reseal(folder, files={name: entry for name, entry in file_entries(folder).items() if name != "manifest.json"})
    assert "steps: the manifest says 2, the files 1" in " ".join(objections(store, str(folder.relative_to(store.root))))


def test_a_file_of_the_tracker_that_is_called_like_a_manifest_is_no_artifact(store: Store):
    spec, build = BUILDS["checkpoint"]
    made = store.make(spec, build)
    logged = store.root / "mlflow-artifacts/1/0f3c/manifest.json"
    logged.parent.mkdir(parents=True)
    shutil.copy(store.folder(made) / "manifest.json", logged)
    assert artifacts_below(store, "") == [made.address]


def test_an_address_names_one_artifact_or_all_below_it(store: Store):
    first, second = (store.make(spec, build) for spec, build in BUILDS.values())
    assert artifacts_below(store, first.address) == [first.address]
    assert set(artifacts_below(store, "")) == {first.address, second.address}
    with pytest.raises(StoreError, match="at or below evals, got none"):
        artifacts_below(store, "evals")


def test_a_copied_artifact_is_at_the_wrong_address(store: Store):
    spec, build = BUILDS["checkpoint"]
    folder = store.folder(store.make(spec, build))
    elsewhere = folder.parent / "002-0123456789ab"
    shutil.copytree(folder, elsewhere)
    assert "address: wanted" in " ".join(objections(store, str(elsewhere.relative_to(store.root))))
