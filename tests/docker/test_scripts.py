"""The scripts that the images run: pins, the look at torch, the guard of the GPU's worker."""

import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
IMAGE_TORCH = "2.10.0+rocm7.2.4.git94c6e04"


def script(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docker" / name))


def test_an_installed_torch_takes_the_place_of_every_line_that_names_torch_and_of_no_other() -> None:
    lines = [
        "numpy==2.4.6",
        "torch==2.13.0",
        "torch",
        "torch>=2.6",
        "torch[opt-einsum]==2.13.0",
        "torchvision==0.29.1",
        "torch-geometric==2.9",
    ]
    kept = f"torch=={IMAGE_TORCH}"
    assert script("pins.py")["with_torch"](lines, IMAGE_TORCH) == [
        "numpy==2.4.6", kept, kept, kept, kept, "torchvision==0.29.1", "torch-geometric==2.9",
    ]  # fmt: skip
    assert script("pins.py")["with_torch"](lines, None) == lines


def test_requirements_are_the_project_s_and_those_of_the_extras_asked_for() -> None:
    project = {"dependencies": ["a==1", "torch==2"], "optional-dependencies": {"server": ["b"], "dev": ["c"]}}
    assert script("pins.py")["requirements"](project, ["server"]) == ["a==1", "torch==2", "b"]


def test_pins_of_this_environment_name_its_torch_once_each(tmp_path: Path) -> None:
    from importlib.metadata import version

    subprocess.run([sys.executable, "docker/pins.py", str(tmp_path), "server"], cwd=ROOT, check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, count in (
        ("requirements.txt", len(project["dependencies"]) + len(project["optional-dependencies"]["server"])),
        ("constraints.txt", len((ROOT / "constraints.txt").read_text().splitlines())),
    ):
        lines = (tmp_path / name).read_text().splitlines()
        assert len(lines) == count
        assert [line for line in lines if line.startswith("torch=")] == [f"torch=={version('torch')}"]


@pytest.mark.parametrize(
    ("installed", "imported", "hip", "reasons"),
    [
        (IMAGE_TORCH, IMAGE_TORCH, "7.2.53211", []),
        ("2.13.0", "2.13.0+cu130", None, ["replaced", "another copy", "ROCm build"]),
        (IMAGE_TORCH, "2.13.0", "7.2.53211", ["another copy"]),
        (IMAGE_TORCH, IMAGE_TORCH, None, ["ROCm build"]),
        ("2.10.0+cpu", IMAGE_TORCH, "7.2.53211", ["replaced"]),
    ],
)
def test_a_torch_that_is_not_the_image_s_own_is_named(installed: str, imported: str, hip: str | None, reasons: list[str]) -> None:
    objections = script("kept_torch.py")["objections"](
        f"numpy==2.4.6\ntorch=={IMAGE_TORCH}\n", installed=installed, imported=imported, hip=hip
    )
    assert len(objections) == len(reasons)
    assert all(reason in objection for reason, objection in zip(reasons, objections, strict=True))


def test_the_look_at_torch_fails_on_this_machine_s_cpu_build(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "docker/pins.py", str(tmp_path)], cwd=ROOT, check=True)
    done = subprocess.run([sys.executable, "docker/kept_torch.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "wanted a ROCm build" in done.stderr


def test_without_a_gpu_the_gpu_s_worker_says_why_and_does_not_start() -> None:
    done = subprocess.run([sys.executable, "docker/with_gpu.py", "echo", "started"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "RENDER_GID" in done.stderr
    assert "Traceback" not in done.stderr  # it ended on purpose


def test_with_a_gpu_it_becomes_the_command(tmp_path: Path) -> None:
    fake = "class cuda:\n    is_available = device_count = staticmethod(lambda: 1)\n    get_device_name = staticmethod(lambda index: 'MI300X')\n"
    (tmp_path / "torch.py").write_text(fake)
    command = [sys.executable, str(ROOT / "docker" / "with_gpu.py"), "echo", "started"]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "started\n", "GPU: 1 x MI300X\n")
