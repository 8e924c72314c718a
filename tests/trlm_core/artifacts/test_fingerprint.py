"""Fingerprints: hashes of identity, whatever the order of its keys; and the words for what changed."""

from pathlib import Path

import pytest

from trlm_core.artifacts.fingerprint import canonical_json, changed_fields, file_sha256, fingerprint

IDENTITY = {
    "made_by": "training/1",
    "training": {"learning_rate": 0.001, "epochs": 3, "loss_type": "dft"},
    "faults": ["misread", "miscount"],
}


def test_a_fingerprint_is_the_sha256_of_the_canonical_json():
    assert canonical_json({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert fingerprint({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"


def test_the_order_of_keys_does_not_change_a_fingerprint():
    turned = {
        "faults": ["misread", "miscount"],
        "training": {"loss_type": "dft", "epochs": 3, "learning_rate": 0.001},
        "made_by": "training/1",
    }
    assert fingerprint(turned) == fingerprint(IDENTITY)


@pytest.mark.parametrize(
    "changed",
    [
        {**IDENTITY, "made_by": "training/2"},
        {**IDENTITY, "training": {"learning_rate": 0.0011, "epochs": 3, "loss_type": "dft"}},
        {**IDENTITY, "training": {"learning_rate": 0.001, "epochs": 3, "loss_type": None}},
        {**IDENTITY, "training": {"learning_rate": 0.001, "epochs": 3}},
        {**IDENTITY, "faults": ["miscount", "misread"]},
        {**IDENTITY, "more": None},
    ],
)
def test_a_changed_leaf_changes_the_fingerprint(changed: dict):
    assert fingerprint(changed) != fingerprint(IDENTITY)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("a")])
def test_what_json_cannot_hold_has_no_fingerprint(value: object):
    with pytest.raises((TypeError, ValueError)):
        fingerprint({"value": value})


def test_changed_fields_are_named_with_both_values():
    before = {"training": {"learning_rate": 0.001, "epochs": 1}, "faults": ["misread"], "inputs": {"dataset": "aa"}}
    after = {"training": {"learning_rate": 0.0005, "epochs": 1}, "faults": ["misread", "miscount"], "inputs": {}}
    assert changed_fields(before, after) == [
        'faults.1: absent -> "miscount"',
        'inputs.dataset: "aa" -> absent',
        "training.learning_rate: 0.001 -> 0.0005",
    ]


def test_null_and_absent_are_told_apart():
    assert changed_fields({"beta": None}, {}) == ["beta: null -> absent"]


def test_equal_identities_have_no_changed_fields():
    assert changed_fields(IDENTITY, {**IDENTITY}) == []


def test_a_file_is_hashed_whole_and_not_only_its_first_block(tmp_path: Path):
    path = tmp_path / "weights"
    path.write_bytes(b"\0" * ((1 << 20) + 1))
    first = file_sha256(path)
    path.write_bytes(b"\0" * (1 << 20) + b"\1")
    assert first != file_sha256(path)
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
