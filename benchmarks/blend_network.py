"""How fast stage 2's blend comes over a network, and what it asks for: `python benchmarks/blend_network.py --json`.

Ours and the report's way (blend_baseline.py), in alternation, from the tests' Hub on this machine: 40 ms until an answer begins, 20 MB/s a
connection. speedup: the baseline's median seconds by ours. bytes_ratio: file bytes that ours reads, by those of the column chunks it needs:
`messages` and `source` in the row groups that hold the rows taken.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blend_speed import (
    Command,
    Run,
    baseline_command,
    dataset_folder,
    make_base,
    our_command,
    run_of,
    say,
    seconds_of,
    show,
    stage_sources,
    write_recipe,
)

from trlm_core.recipes.schema import HubSource

LATENCY_MS, MB_PER_S = 40, 20
COLUMNS = ("messages", "source")
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Transfer:
    run: Run
    requests: int
    bytes: int  # of files


@contextlib.contextmanager
def loopback_hub(root: Path) -> Iterator[str]:
    """Its endpoint, with ROOT/OWNER/NAME as datasets."""
    limits = ["--latency-ms", str(LATENCY_MS), "--mb-per-s", str(MB_PER_S)]
    command = [sys.executable, "-m", "tests.loopback_hub.server", "--root", str(root), *limits]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        told = server.stdout.readline()
        if not told:
            raise SystemExit(f"tests.loopback_hub.server: wanted its endpoint, got exit code {server.wait()}")
        try:
            yield json.loads(told)["endpoint"]
        finally:
            server.terminate()


def answer(endpoint: str, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{endpoint}{path}") as response:
        return json.load(response)


def transfer(name: str, command: Command, endpoint: str) -> Transfer:
    env = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    before = answer(endpoint, "/__counters")
    run = run_of(name, command, env)
    after = answer(endpoint, "/__counters")
    done = Transfer(run, after["requests"] - before["requests"], after["bytes"] - before["bytes"])
    say(f"{name}: {done.requests:,} requests, {done.bytes / 1e6:,.1f} MB")
    return done


def needed_bytes(dataset: Path, sources: Sequence[HubSource]) -> int:
    return sum(size for source in sources for size in _head_sizes(dataset, source))


def _head_sizes(dataset: Path, source: HubSource) -> Iterator[int]:
    """Of each row group that holds some of the rows taken: its needed columns, as they lie in the file."""
    import pyarrow.parquet as pq  # large: see blend_speed

    missing = source.num_examples
    for path in sorted((dataset / str(source.subset)).glob(f"{source.split}-*.parquet")):
        footer = pq.read_metadata(path)
        for group in map(footer.row_group, range(footer.num_row_groups)):
            if missing <= 0:
                return
            missing -= group.num_rows
            leaves = map(group.column, range(group.num_columns))
            yield sum(leaf.total_compressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] in COLUMNS)


def figures(root: Path, work: Path, repeats: int) -> dict[str, object]:
    sources = stage_sources()
    repo, dataset, bases = sources[0].repo, dataset_folder(root), make_base(work / "bases")
    with loopback_hub(dataset.parents[1]) as endpoint:
        commit = answer(endpoint, f"/api/datasets/{repo}/revision/main")["sha"]
        commands = {"ours": our_command(write_recipe(work / "recipe.yaml", repo, commit), bases), "baseline": baseline_command(repo)}
        done: dict[str, list[Transfer]] = {name: [] for name in commands}
        for number in range(repeats):
            say(f"round {number + 1} of {repeats}")
            for name, command in commands.items():
                done[name].append(transfer(name, command, endpoint))
    return _told(done, needed_bytes(dataset, sources))


def _told(done: dict[str, list[Transfer]], needed: int) -> dict[str, object]:
    ours, baseline = ([each.run for each in done[name]] for name in ("ours", "baseline"))
    read = statistics.median(each.bytes for each in done["ours"])
    return {
        "speedup": round(seconds_of(baseline) / seconds_of(ours), 2),
        "bytes_read": read,
        "bytes_needed": needed,
        "bytes_ratio": round(read / needed, 3),
        "seconds": {name: [round(each.run.seconds, 2) for each in transfers] for name, transfers in done.items()},
        "bytes": {name: [each.bytes for each in transfers] for name, transfers in done.items()},
        "requests": {name: [each.requests for each in transfers] for name, transfers in done.items()},
    }


def main(figures: Callable[[Path, Path, int], dict[str, object]], description: str | None) -> None:
    """The command line of a benchmark over the tests' Hub. figures: of the sources' folder, a folder to work in, the repeats."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sources", type=Path, help="folder that keeps the generated sources for the next time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.pop("HF_TOKEN", None)  # nobody's token is for this server
    with tempfile.TemporaryDirectory(prefix="blend-hub-") as temporary:
        work = Path(temporary)
        show(figures((arguments.sources or work / "sources").absolute(), work, arguments.repeats), arguments.json)


if __name__ == "__main__":
    main(figures, __doc__)
