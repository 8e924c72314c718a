"""The store in a bucket: built through a cache, fetched by other machines, every byte checked; and what it says when it cannot."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import moto.settings
import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

from trlm_core.artifacts.errors import LeaseLostError, StoreError
from trlm_core.artifacts.lease import RUN, waited_for
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.remote import PART_BYTES, Remote, split_address
from trlm_core.artifacts.remote_lease import RemoteLease
from trlm_core.artifacts.store import Spec, Store

SPEC = Spec("checkpoints", "trlm-tiny", "stage1_sft", {"training": {"learning_rate": 0.001}}, {"dataset": "aa" * 32})
FILES = {"history.jsonl": b"", "model.safetensors": b"weights", "tokenizer/tokenizer.json": b"{}"}


def build(folder: Path) -> dict[str, Any]:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return {"steps": 12}


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError("it was to be reused")


def remote_of(store: Store) -> Remote:
    assert store.remote is not None
    return store.remote


def cached(store: Store, manifest: Manifest) -> dict[str, bytes]:
    folder = store.root / manifest.address
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def artifact_keys(store: Store) -> list[str]:
    return [key for key in remote_of(store).sizes() if not key.startswith(".leases/")]


def test_what_one_machine_built_another_reuses_and_fetches(s3_store: Store, other_machine: Store):
    made = s3_store.make(SPEC, build)
    assert artifact_keys(s3_store) == sorted(f"{made.address}/{name}" for name in (*FILES, "manifest.json"))
    assert other_machine.make(SPEC, never) == made
    assert cached(other_machine, made) == {}, "finding downloads no weights"
    folder = other_machine.folder(made)
    assert folder == other_machine.root / made.address
    assert cached(other_machine, made) == {**FILES, "manifest.json": made.text.encode()}
    assert other_machine.manifests() == s3_store.manifests() == [made]


def test_a_file_of_many_parts_comes_back_whole(s3_store: Store, other_machine: Store):
    content = bytes(range(256)) * (PART_BYTES // 128) + b"the end"

    def build_large(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_bytes(content)
        return {}

    made = s3_store.make(SPEC, build_large)
    assert made.size > 2 * PART_BYTES
    assert (other_machine.folder(made) / "model.safetensors").read_bytes() == content


def test_a_listing_of_many_pages_is_whole(s3_store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("trlm_core.artifacts.remote.PAGE_KEYS", 2)
    keys = [f"many/{number}" for number in range(5)]
    for key in keys:
        remote_of(s3_store).write(key, b"x")
    remote_of(s3_store).write("many-others", b"x")
    assert remote_of(s3_store).sizes("many") == dict.fromkeys(keys, 1)


@pytest.mark.parametrize("form", ["s3://{0}/runs", "s3:{0}/runs", "s3://{0}//runs/"])
def test_every_form_of_the_address_opens_the_same_store(form: str, s3_store: Store):
    bucket = remote_of(s3_store).bucket
    opened = Store.open(form.format(bucket))
    assert (opened.address, opened.root) == (f"s3://{bucket}/runs", s3_store.root)
    assert Store.open(opened.address).address == opened.address


def test_a_bucket_without_a_prefix_is_a_store(s3_store: Store):
    whole = Store.open(f"s3://{remote_of(s3_store).bucket}")
    made = whole.make(SPEC, build)
    assert whole.manifests() == [made]
    assert s3_store.manifests() == []
    assert whole.root != s3_store.root


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damaged", [None, b"damaged"])
def test_a_damaged_or_lost_file_of_the_cache_is_fetched_again(damaged: bytes | None, name: str, s3_store: Store):
    made = s3_store.make(SPEC, build)
    path = s3_store.folder(made) / name
    path.unlink() if damaged is None else path.write_bytes(damaged)
    assert (s3_store.folder(made) / name).read_bytes() == FILES[name]
    assert not list(s3_store.root.glob(".fetched/*"))


def test_a_damaged_remote_file_is_never_given_away_and_is_named(s3_store: Store, other_machine: Store):
    made = s3_store.make(SPEC, build)
    remote_of(s3_store).write(f"{made.address}/model.safetensors", b"WEIGHTS")
    words = rf"{s3_store.location(made)}/model.safetensors: wanted sha256 \w{{12}}, got \w{{12}}; remove its manifest.json and run"
    with pytest.raises(StoreError, match=words):
        other_machine.folder(made)
    assert "model.safetensors" not in cached(other_machine, made)
    assert s3_store.folder(made).is_dir(), "the cache that built it is whole"


@pytest.mark.parametrize("change", ["lost", "short", "added"])
def test_a_lost_short_or_added_remote_file_is_seen_without_a_download_and_built_again(
    change: str, s3_store: Store, other_machine: Store, caplog: pytest.LogCaptureFixture
):
    made = s3_store.make(SPEC, build)
    name = "notes.txt" if change == "added" else "model.safetensors"
    if change == "lost":
        remote_of(s3_store).delete([f"{made.address}/{name}"])
    else:
        remote_of(s3_store).write(f"{made.address}/{name}", b"weig")
    assert other_machine.find(SPEC) is None
    assert f"{made.address} is damaged and is built again: {s3_store.location(made)}/{name}: " in caplog.text
    assert f"{made.address}/manifest.json" not in artifact_keys(s3_store)
    again = other_machine.make(SPEC, build)
    assert again.address == made.address
    assert (s3_store.folder(again) / "model.safetensors").read_bytes() == b"weights"
    assert f"{made.address}/notes.txt" not in artifact_keys(s3_store)


def test_an_artifact_that_another_finished_meanwhile_is_taken(s3_store: Store, other_machine: Store, caplog: pytest.LogCaptureFixture):
    def overtaken(folder: Path) -> dict[str, Any]:
        theirs = replace(other_machine, remote=remote_of(s3_store))
        publish_without_a_lease(theirs)
        (folder / "model.safetensors").write_bytes(b"ours is another")
        return {}

    with caplog.at_level(logging.INFO):
        made = s3_store.make(SPEC, overtaken)
    assert made == other_machine.find(SPEC)
    assert "was finished by another process meanwhile" in caplog.text
    assert (s3_store.folder(made) / "model.safetensors").read_bytes() == b"weights"


def test_a_conditional_put_never_replaces_a_manifest(s3_store: Store):
    made = s3_store.make(SPEC, build)
    assert not remote_of(s3_store).create(f"{made.address}/manifest.json", b"{}")
    assert s3_store.find(SPEC) == made


def test_files_that_another_process_is_uploading_are_not_mixed_with_ours(s3_store: Store):
    def beside(folder: Path) -> dict[str, Any]:
        remote_of(s3_store).write(f"{SPEC.place}/{folder.name}/model.safetensors", b"theirs")
        return build(folder)

    with pytest.raises(LeaseLostError, match="got files of another process; run again"):
        s3_store.make(SPEC, beside)
    assert s3_store.find(SPEC) is None
    assert (s3_store.folder(s3_store.make(SPEC, build)) / "model.safetensors").read_bytes() == b"weights"


def test_two_machines_that_build_different_artifacts_of_one_place_at_once_do_not_clash(s3_store: Store, other_machine: Store):
    other = replace(SPEC, identity={"training": {"learning_rate": 0.0005}})
    third = replace(SPEC, identity={"training": {"learning_rate": 0.1}})

    def while_another_builds(folder: Path) -> dict[str, Any]:
        other_machine.make(other, build)
        return build(folder)

    first = s3_store.make(SPEC, while_another_builds)
    second = s3_store.find(other)
    assert second is not None
    assert (first.version[:4], second.version[:4]) == ("001-", "001-")
    assert first.address != second.address
    assert other_machine.make(third, build).version[:4] == "002-"


def test_a_run_that_holds_the_store_is_named_on_another_machine_and_its_end_frees_it(s3_store: Store, other_machine: Store):
    words = r"wanted it free, got a run that holds it \(process \d+ on \S+ since .*; wait or choose another --store"
    with waited_for(RemoteLease(remote_of(s3_store), s3_store.root, RUN, ttl=2), "run"):
        for store in (s3_store, other_machine):
            with pytest.raises(StoreError, match=words), store.held():
                pass
    with other_machine.held():
        pass


def test_a_build_that_raises_leaves_nothing_in_the_bucket(s3_store: Store):
    def fails(folder: Path) -> dict[str, Any]:
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        s3_store.make(SPEC, fails)
    assert artifact_keys(s3_store) == []
    assert s3_store.make(SPEC, build).version == f"001-{SPEC.fingerprint[:12]}"


def test_a_prefix_exists_when_there_is_something_below_it(s3_address: str):
    assert not Store.exists(s3_address)
    Store.open(s3_address).make(SPEC, build)
    assert Store.exists(s3_address)
    assert not Store.exists(f"{s3_address}/below")


def test_no_server_is_one_clear_line(s3_address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert_one_line(s3_address, "wanted an answer from http://127.0.0.1:9, got Could not connect.*; check AWS_ENDPOINT_URL")


def test_a_missing_bucket_is_one_clear_line(s3_address: str):
    assert_one_line("s3://no-such-bucket/runs", "wanted the bucket no-such-bucket at http://127.0.0.1:.*, got none; create it")


def test_an_address_without_a_bucket_is_one_clear_line():
    assert_one_line("s3://", "wanted s3://bucket/prefix, got no bucket")


def test_no_credentials_are_one_clear_line(s3_address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert_one_line(s3_address, "wanted credentials, got none; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def test_credentials_that_are_refused_are_one_clear_line(s3_address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key-that-nobody-gave-out")
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # the server's switch: from now on it looks at them
    assert_one_line(s3_address, "wanted leave to read and write at http://127.0.0.1:.*; check AWS_ACCESS_KEY_ID")


def test_a_service_that_ignores_conditions_is_refused(serve: Callable[..., Any], s3_address: str, monkeypatch: pytest.MonkeyPatch):
    service = DomainDispatcherApplication(create_backend_app)

    def careless(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        return service({key: value for key, value in environ.items() if key != "HTTP_IF_NONE_MATCH"}, start)

    with serve(careless) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert_one_line(s3_address, "wanted a service that honours If-None-Match, got one that ignores it")


@pytest.mark.parametrize(
    ("address", "parts"),
    [("s3://b/p", ("b", "p")), ("s3:b/p/q/", ("b", "p/q")), ("s3://b", ("b", "")), ("s3:/b//p", ("b", "p"))],
)
def test_an_address_is_a_bucket_and_a_prefix(address: str, parts: tuple[str, str]):
    assert split_address(address) == parts


def publish_without_a_lease(store: Store) -> None:
    """What a machine does that was stopped for so long that it lost its lease, and does not know yet."""
    folder = store.root / "aside"
    folder.mkdir()
    elsewhere = Store.open(folder)
    made = elsewhere.make(SPEC, build)
    for name in (*FILES, "manifest.json"):
        remote_of(store).write(f"{made.address}/{name}", (elsewhere.folder(made) / name).read_bytes())
    shutil.rmtree(folder)


def assert_one_line(address: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as raised:
        Store.open(address)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith(f"store {address}")
