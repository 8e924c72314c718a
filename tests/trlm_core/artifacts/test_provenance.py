"""Provenance: versions, commit and machine as they are here."""

import importlib.metadata
import re

from trlm_core.artifacts.provenance import git_commit, installed_version, machine, package_versions


def test_versions_are_those_of_the_installed_packages():
    assert package_versions()["trl"] == importlib.metadata.version("trl")


def test_a_package_that_is_not_installed_has_no_version():
    assert installed_version("no-such-package-anywhere") is None


def test_the_commit_is_a_hash_marked_where_tracked_files_differ_or_unknown_outside_a_checkout():
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)


def test_the_machine_is_described_by_words_only():
    described = machine()
    assert set(described) == {"python", "system", "cpu", "cores", "memory"}
    assert int(described["cores"]) >= 1
    assert re.fullmatch(r"\d+\.\d GiB", described["memory"])
