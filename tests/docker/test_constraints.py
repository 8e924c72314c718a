"""The pins resolve for each Python that the project names, beside a torch that the image brings; asks the package index.

pip's `--python-version` alone would not do: it chooses wheels for another Python but still evaluates markers for the one that runs, and
refuses every package that has only an sdist. So each Python resolves for itself, in an environment of its own, where it is on the machine.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RESOLVER = "pip==25.3"  # the first pips that resolve from metadata alone; before, a dry run downloads every wheel
IMAGE_TORCH = "2.10.0+rocm7.2.4.git94c6e04"
PYTHONS = ["3.11", "3.12"]
# What torch asks for, but for CUDA's libraries and triton: the image brings its own.
TORCH_NEEDS = ["filelock", "typing-extensions>=4.10.0", "setuptools>=77.0.3", "sympy>=1.13.3", "networkx>=2.5.1", "jinja2", "fsspec>=0.8.5"]

pytestmark = pytest.mark.long


def interpreter(version: str) -> Path:
    """A Python of this version on the path or among pyenv's; skips where there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(f"python{version}")
    for candidate in [*([Path(on_path)] if on_path else []), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]:
        answer = subprocess.run([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True)
        if answer.stdout.strip() == version:
            return candidate
    pytest.skip(f"Python {version}: none on the path nor in {pyenv}")


@pytest.fixture(scope="module", params=PYTHONS)
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a virtual environment of one Python whose only package beside pip is a torch as AMD's image has it, without its code."""
    folder = tmp_path_factory.mktemp(f"python{request.param}")
    subprocess.run([interpreter(request.param), "-m", "venv", folder], check=True)
    upgrade = subprocess.run([folder / "bin/pip", "install", "--quiet", RESOLVER], capture_output=True, text=True)
    if upgrade.returncode:
        pytest.skip(f"the package index is not reached: {upgrade.stderr.strip().splitlines()[-1]}")
    site = next(folder.glob("lib/python3*/site-packages"))
    information = site / f"torch-{IMAGE_TORCH}.dist-info"
    information.mkdir()
    needs = "".join(f"Requires-Dist: {need}\n" for need in TORCH_NEEDS)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {IMAGE_TORCH}\n{needs}")
    (information / "RECORD").write_text("")
    return folder


@pytest.fixture(scope="module")
def resolved(environment: Path) -> dict[str, str]:
    """Name to version of everything that pip would install, every extra included."""
    pins, report = environment / "pins", environment / "report.json"
    subprocess.run([environment / "bin/python", "docker/pins.py", pins, *PROJECT["optional-dependencies"]], cwd=ROOT, check=True)
    command = [environment / "bin/pip", "install", "--quiet", "--dry-run", "--report", report, "-c", pins / "constraints.txt"]
    done = subprocess.run([*command, "-r", pins / "requirements.txt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    installs = json.loads(report.read_text())["install"]
    return {canonical(item["metadata"]["name"]): item["metadata"]["version"] for item in installs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned() -> dict[str, str]:
    lines = [line.partition(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def test_pip_finds_a_set_that_keeps_the_image_s_torch(resolved: dict[str, str]) -> None:
    assert len(resolved) > 100
    assert "torch" not in resolved
    reads_the_driver = "nvidia-ml-py"  # of the extra `nvidia`; none of CUDA's libraries
    assert not [name for name in resolved if (name.startswith("nvidia-") and name != reads_the_driver) or name == "triton"]


def test_everything_that_pip_would_install_is_pinned(resolved: dict[str, str]) -> None:
    assert {name: version for name, version in resolved.items() if pinned().get(name) != version} == {}


@pytest.mark.parametrize("version", PYTHONS)
def test_the_pinned_torch_has_a_wheel_for_this_python(version: str, environment: Path, tmp_path: Path) -> None:
    command = [environment / "bin/pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", "--target", tmp_path]
    done = subprocess.run(
        [*command, "--python-version", version, "--only-binary=:all:", f"torch=={pinned()['torch']}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1000:]
