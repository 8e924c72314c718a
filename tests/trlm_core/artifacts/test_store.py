"""The store: what is reused, what is built again, and why it says so."""

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trlm_core.artifacts.errors import StoreError
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store

SPEC = Spec("checkpoints", "trlm-tiny", "stage1_sft", {"training": {"learning_rate": 0.001}}, {"dataset": "aa" * 32})
FILES = {"model.safetensors": b"weights", "tokenizer/tokenizer.json": b"{}", "history.jsonl": b""}
HOLDER = """
import sys, time
from trlm_core.artifacts.store import Store
with Store.open(sys.argv[1]).held():
    print("held", flush=True)
    time.sleep(600)
"""


class Builder:
    """Writes FILES and counts how often it was asked to."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        assert list(folder.iterdir()) == [], "a build starts from an empty folder"
        for name, content in FILES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return {"steps": 12}


@pytest.fixture
def build() -> Builder:
    return Builder()


def test_the_manifest_says_what_was_built_with_a_hash_for_every_file(store: Store, build: Builder):
    manifest = store.make(replace(SPEC, recipe={"name": "trlm-tiny"}), build)
    assert manifest.address == f"checkpoints/trlm-tiny/stage1_sft/001-{SPEC.fingerprint[:12]}"
    assert (manifest.identity, manifest.inputs, manifest.recipe) == (SPEC.identity, SPEC.inputs, {"name": "trlm-tiny"})
    assert manifest.counts == {"steps": 12}
    assert {name: entry.size for name, entry in manifest.files.items()} == {
        "history.jsonl": 0,
        "model.safetensors": 7,
        "tokenizer/tokenizer.json": 2,
    }
    assert manifest.files["tokenizer/tokenizer.json"].sha256 == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert manifest.packages["torch"].startswith("2.")
    assert Manifest.model_validate_json((store.folder(manifest) / "manifest.json").read_text()) == manifest


def test_the_same_fingerprint_is_reused(store: Store, build: Builder, caplog: pytest.LogCaptureFixture):
    first = store.make(SPEC, build)
    with caplog.at_level(logging.INFO):
        assert store.make(SPEC, build) == first
    assert build.calls == 1
    assert f"reused {first.address}" in caplog.text


def test_the_recipe_is_a_record_and_no_part_of_the_fingerprint(store: Store, build: Builder):
    first = store.make(SPEC, build)
    assert store.make(replace(SPEC, recipe={"description": "other words"}), build) == first
    assert build.calls == 1


@pytest.mark.parametrize("name", list(FILES))
def test_one_damaged_byte_of_any_file_is_noticed_and_built_again(name: str, store: Store, build: Builder, caplog: pytest.LogCaptureFixture):
    path = store.folder(store.make(SPEC, build)) / name
    content = bytearray(path.read_bytes() or b"?")
    content[0] ^= 1
    path.write_bytes(content)
    manifest = store.make(SPEC, build)
    assert build.calls == 2
    assert (store.folder(manifest) / name).read_bytes() == FILES[name]
    assert "damaged" in caplog.text
    assert str(path) in caplog.text


@pytest.mark.parametrize("name", list(FILES))
def test_a_missing_file_is_noticed_and_built_again(name: str, store: Store, build: Builder):
    path = store.folder(store.make(SPEC, build)) / name
    path.unlink()
    store.make(SPEC, build)
    assert build.calls == 2
    assert path.read_bytes() == FILES[name]


def test_an_artifact_without_a_manifest_is_unfinished_and_built_again(store: Store, build: Builder):
    first = store.make(SPEC, build)
    (store.folder(first) / "manifest.json").unlink()
    (store.folder(first) / "left-over.tmp").write_text("half")
    again = store.make(SPEC, build)
    assert build.calls == 2
    assert set(again.files) == set(FILES)


def test_a_manifest_that_cannot_be_read_is_named(store: Store, build: Builder):
    path = store.folder(store.make(SPEC, build)) / "manifest.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(StoreError, match="wanted a manifest") as raised:
        store.make(SPEC, build)
    assert str(path) in str(raised.value)


def test_a_changed_identity_is_a_new_version_and_the_log_names_the_field(store: Store, build: Builder, caplog: pytest.LogCaptureFixture):
    first = store.make(SPEC, build)
    changed = replace(SPEC, identity={"training": {"learning_rate": 0.0005}}, inputs={"dataset": "bb" * 32})
    with caplog.at_level(logging.INFO):
        second = store.make(changed, build)
    assert (first.version[:4], second.version[:4]) == ("001-", "002-")
    assert "training.learning_rate: 0.001 -> 0.0005" in caplog.text
    assert f'inputs.dataset: "{"aa" * 32}" -> "{"bb" * 32}"' in caplog.text
    assert store.make(SPEC, build) == first, "the older version stays and is found again"
    assert store.manifests() == [first, second]


def test_a_build_that_raises_leaves_no_manifest_and_the_next_one_works(store: Store, build: Builder):
    def fails(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        store.make(SPEC, fails)
    assert store.find(SPEC) is None
    assert list(store.root.rglob("manifest.json*")) == []
    manifest = store.make(SPEC, build)
    assert (store.folder(manifest) / "model.safetensors").read_bytes() == b"weights"
    assert [path.name for path in store.folder(manifest).parent.iterdir()] == [manifest.version]


def test_the_manifest_appears_after_every_file_that_it_names(store: Store):
    def looks(folder: Path) -> dict[str, Any]:
        (folder / "a").write_text("a")
        assert not (folder / "manifest.json").exists()
        return {}

    folder = store.folder(store.make(SPEC, looks))
    assert sorted(path.name for path in folder.iterdir()) == ["a", "manifest.json"]


def test_manifests_lists_only_what_is_finished(store: Store, build: Builder):
    finished = store.make(SPEC, build)
    store.make(replace(SPEC, name="stage3_dpo"), build)
    (store.root / "checkpoints/trlm-tiny/stage3_dpo").rename(store.root / "aside")
    (store.root / "checkpoints/trlm-tiny/stage2_sft_think/001-0123456789ab").mkdir(parents=True)
    assert store.manifests() == [finished]


def test_a_second_holder_in_another_process_is_told_of_the_first_and_a_killed_holder_frees_the_store(store: Store):
    holder = _holder(store)
    try:
        with pytest.raises(StoreError, match=rf"process {holder.pid} on \S+ since \d{{4}}-.*--store"), store.held():
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with store.held():
        pass


def test_a_hold_ends_with_its_block(store: Store):
    with store.held():
        pass
    with store.held(), pytest.raises(StoreError, match="wanted it free"), Store.open(store.root).held():
        pass


def test_a_file_in_the_way_is_a_store_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "runs").write_text("a file")
    for address in (tmp_path / "runs", tmp_path / "runs/below"):
        with pytest.raises(StoreError, match=f"store {address}: wanted a folder that can be written.*--store"):
            Store.open(address)


def test_an_unknown_scheme_is_named():
    with pytest.raises(StoreError, match=r"store ftp://host/runs: wanted a folder, a file: or an s3: address, got the scheme 'ftp'"):
        Store.open("ftp://host/runs")


def test_the_address_opens_the_same_store_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = Store.open("runs")
    monkeypatch.chdir("/")
    assert store.address == str(tmp_path / "runs")
    assert Store.open(store.address) == store


def test_looking_whether_a_store_exists_makes_none(tmp_path: Path):
    assert not Store.exists(tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []
    assert Store.exists(tmp_path)


@pytest.mark.parametrize("form", [str, lambda path: f"file:{path}", lambda path: f"file://{path}"])
def test_a_path_and_both_forms_of_a_file_address_open_the_same_store(form: Callable[[Path], str], tmp_path: Path):
    store = Store.open(form(tmp_path / "runs"))
    assert store.root == tmp_path / "runs"
    assert list(store.root.iterdir()) == [], "opening leaves nothing behind"


@pytest.mark.parametrize("name", list(FILES))
def test_the_folder_of_a_damaged_artifact_is_not_given_away(name: str, store: Store, build: Builder):
    made = store.make(SPEC, build)
    folder = store.folder(made)
    (folder / name).write_bytes(b"damaged")
    with pytest.raises(StoreError, match=rf"{folder}: wanted it as it was built, got {name}: wanted .* got .*; run the recipe again"):
        store.folder(made)


@pytest.mark.parametrize("name", ["../above.txt", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_names_files_outside_its_folder_is_refused(name: str, store: Store, build: Builder):
    path = store.folder(store.make(SPEC, build)) / "manifest.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "files": {name: tree["files"]["model.safetensors"]}}))
    with pytest.raises(StoreError, match="wanted files below the artifact's folder"):
        store.find(SPEC)


def test_a_manifest_of_an_unknown_field_is_refused(store: Store, build: Builder):
    path = store.folder(store.make(SPEC, build)) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(StoreError, match="wanted a manifest of this version of trlm"):
        store.manifests()


def _holder(store: Store) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(store.root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process
