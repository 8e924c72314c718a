"""How fast stage 2's blend is made, and in how much memory: `python benchmarks/blend_speed.py --json`.

Ours (blend_ours.py), the report's way (blend_baseline.py) and a bare copy of the same 78,000 rows by DuckDB, in alternation, each as a
process of its own with empty folders; medians. speedup: the baseline's seconds by ours. duckdb_ratio: our seconds by DuckDB's. Peaks are of
resident memory, in MB of 10^6 bytes, mapped files and all. growth_ratio: our peak with four times the rows, by our peak.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from trlm_core.data.revisions import files_revision
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import HubSource

# Linux counts this process's own memory into a child's peak until the child runs its program: nothing large is imported here.
BENCHMARKS = Path(__file__).parent
OURS = BENCHMARKS / "blend_ours.py"
RECIPE, VARIANT, STAGE = "trlm-135m", "report", "stage2_sft_think"
PACKAGED = "trlm-135m-local"  # the recipe whose base needs no Hub
GROWTH = 4
DUCKDB = "import duckdb, sys; duckdb.execute(sys.argv[1])"

Command = Callable[[Path], list[str]]  # of the folder that it may write to


@dataclass(frozen=True)
class Run:
    seconds: float
    cpu_seconds: float
    peak_mb: float


def stage_sources() -> list[HubSource]:
    """As the recipe has them, from the Hub."""
    return [source for source in load_recipe(RECIPE, variant=VARIANT).stage(STAGE).blend.sources if isinstance(source, HubSource)]


def write_recipe(path: Path, repo: str, revision: str, scale: int = 1) -> Path:
    """Stage 2 alone, on the base, with all its sources in one repository or folder and `scale` times their counts."""
    recipe = load_recipe(RECIPE, variant=VARIANT)
    stage = recipe.stage(STAGE).model_dump(mode="json")
    for source in stage["blend"]["sources"]:
        source.update(repo=repo, revision=revision, num_examples=source["num_examples"] * scale)
    tree = {**recipe.model_dump(mode="json"), "stages": [{**stage, "parent": "base"}]}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def dataset_folder(root: Path, scale: int = 1) -> Path:
    """The stand-in's, written where it is not there yet."""
    folder = root / f"times-{scale}" / stage_sources()[0].repo
    if not (folder / "README.md").is_file():
        say(f"writing the sources, {scale} times the rows")
        command = [sys.executable, str(BENCHMARKS / "stage2_stand_in.py"), str(root / f"times-{scale}"), "--scale", str(scale)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


def our_command(recipe: Path, bases: Path) -> Command:
    """`bases`: a store that keeps the base between runs; on the file system of the temporary folders."""
    return lambda folder: [sys.executable, str(OURS), str(recipe), STAGE, str(folder / "store"), str(bases)]


def make_base(bases: Path) -> Path:
    """Before anything is timed."""
    say("making the base")
    code = "; ".join(
        [
            "import sys",
            "from trlm_core.artifacts.store import Store",
            "from trlm_core.base_model import make_base",
            "from trlm_core.recipes.load import load_recipe",
            f"make_base(Store.open(sys.argv[1]), load_recipe({PACKAGED!r}).base)",
        ]
    )
    subprocess.run([sys.executable, "-c", code, str(bases)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return bases


def baseline_command(dataset: str) -> Command:
    return lambda folder: [sys.executable, str(BENCHMARKS / "blend_baseline.py"), dataset, str(folder / "blend")]


def duckdb_command(dataset: Path) -> Command:
    heads = [
        f"(SELECT messages, source FROM read_parquet('{dataset}/{source.subset}/{source.split}-*.parquet') LIMIT {source.num_examples})"
        for source in stage_sources()
    ]
    joined = " UNION ALL ".join(heads)
    return lambda folder: [sys.executable, "-c", DUCKDB, f"COPY ({joined}) TO '{folder}/copy.parquet' (FORMAT parquet, COMPRESSION zstd)"]


def run_of(name: str, command: Command, env: Mapping[str, str]) -> Run:
    """One process, in empty folders that are gone afterwards. SystemExit with its last words where it fails."""
    with tempfile.TemporaryDirectory(prefix="blend-") as temporary:
        folder = Path(temporary)
        os.sync()  # what an earlier run has left to write is not this one's
        with (folder / "output.txt").open("wb") as output:
            began = time.monotonic()
            environment = {**os.environ, **env, "HF_HOME": str(folder / "hf")}
            process = subprocess.Popen(command(folder), stdout=output, stderr=subprocess.STDOUT, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = (folder / "output.txt").read_text(errors="replace")[-2_000:]
            raise SystemExit(f"{name}: wanted exit code 0, got {process.returncode}:\n{last}")
    run = Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6)
    say(f"{name}: {run.seconds:.1f} s ({run.cpu_seconds:.1f} s of a core), peak {run.peak_mb:,.0f} MB")
    return run


def alternated(commands: Mapping[str, Command], repeats: int, env: Mapping[str, str]) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(repeats):
        say(f"round {number + 1} of {repeats}")
        for name, command in commands.items():
            runs[name].append(run_of(name, command, env))
    return runs


def seconds_of(runs: Sequence[Run]) -> float:
    return statistics.median(run.seconds for run in runs)


def peak_of(runs: Sequence[Run]) -> float:
    return statistics.median(run.peak_mb for run in runs)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def figures(sources: Path, work: Path, repeats: int, growth: bool) -> dict[str, object]:
    runs = _runs(sources, work, repeats, growth)
    ours, baseline, duckdb, grown = (runs[name] for name in ("ours", "baseline", "duckdb", "grown"))
    return {
        "speedup": round(seconds_of(baseline) / seconds_of(ours), 2),
        "peak_mb": round(peak_of(ours)),
        "baseline_peak_mb": round(peak_of(baseline)),
        "duckdb_ratio": round(seconds_of(ours) / seconds_of(duckdb), 2),
        "growth_ratio": round(peak_of(grown) / peak_of(ours), 2) if grown else None,
        "seconds": {name: [round(run.seconds, 2) for run in each] for name, each in runs.items()},
        "cpu_seconds": {name: [round(run.cpu_seconds, 2) for run in each] for name, each in runs.items()},
        "peaks_mb": {name: [round(run.peak_mb) for run in each] for name, each in runs.items()},
    }


def _runs(sources: Path, work: Path, repeats: int, growth: bool) -> dict[str, list[Run]]:
    env = {"HF_HUB_OFFLINE": "1"}
    dataset = dataset_folder(sources)
    # The revision reads every file, so that each run finds them in the page cache.
    recipe = write_recipe(work / "recipe.yaml", str(dataset), files_revision(f"{dataset}/**/*"))
    commands = {
        "ours": our_command(recipe, make_base(work / "bases")),
        "baseline": baseline_command(str(dataset)),
        "duckdb": duckdb_command(dataset),
    }
    runs = alternated(commands, repeats, env)
    return {**runs, "grown": _grown(sources, work, repeats, env) if growth else []}


def _grown(sources: Path, work: Path, repeats: int, env: Mapping[str, str]) -> list[Run]:
    dataset = dataset_folder(sources, GROWTH)
    recipe = write_recipe(work / "grown.yaml", str(dataset), files_revision(f"{dataset}/**/*"), GROWTH)
    return alternated({"grown": our_command(recipe, work / "bases")}, repeats, env)["grown"]


def show(told: Mapping[str, object], as_json: bool) -> None:
    print(json.dumps(told) if as_json else "\n".join(f"{name}: {value}" for name, value in told.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, help="folder that keeps the generated sources for the next time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="also ours with four times the rows, which takes four times as long")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="blend-speed-") as temporary:
        work = Path(temporary)
        sources = (arguments.sources or work / "sources").absolute()
        show(figures(sources, work, arguments.repeats, arguments.growth), arguments.json)


if __name__ == "__main__":
    main()
