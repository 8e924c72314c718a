"""How long a rerun takes when nothing changed: `python benchmarks/rerun.py --store runs` after `make pipeline`.

Runs `trlm run RECIPE` three times on a store that holds its artifacts, and prints the seconds, their median and what was built, as JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

KINDS = ("datasets", "checkpoints", "evals", "reports")


def finished(store: Path) -> set[str]:
    return {str(path.parent.relative_to(store)) for kind in KINDS for path in store.glob(f"{kind}/*/*/*/manifest.json")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="trlm-135m-local")
    parser.add_argument("--store", type=Path, default=Path("runs"))
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    before, seconds = finished(arguments.store), []
    first = sum(json.loads((arguments.store / each / "manifest.json").read_text())["seconds"] for each in before)
    for _ in range(arguments.runs):
        began = time.monotonic()
        command = [str(Path(sys.executable).parent / "trlm"), "run", arguments.recipe, "--store", str(arguments.store)]
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(round(time.monotonic() - began, 1))
    median = statistics.median(seconds)
    built = sorted(finished(arguments.store) - before)
    print(
        json.dumps(
            {"seconds": seconds, "median": median, "built": built, "built_first_in": round(first), "speedup": round(first / median, 1)}
        )
    )


if __name__ == "__main__":
    main()
