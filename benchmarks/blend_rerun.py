"""How long a blend takes whose sources have not changed, and what it asks of the Hub: `python benchmarks/blend_rerun.py --json`.

`trlm blend RECIPE stage2_sft_think --latest` from the tests' Hub on this machine, whose revision `main` is resolved anew each time: once to
build it, then again, in processes of their own. seconds: the median of the reruns, Python's start and imports included. bytes_read: file
bytes that the Hub gave to them, wanted none.
"""

import statistics
import sys
from pathlib import Path

import yaml
from blend_network import Transfer, loopback_hub, main, transfer
from blend_speed import PACKAGED, STAGE, dataset_folder, stage_sources, write_recipe

from trlm_core.recipes.load import load_recipe

PART = 100
TRLM = Path(sys.executable).with_name("trlm")


def recipe_at(path: Path, repo: str) -> Path:
    """A hundredth of stage 2 from `main`, on the base that needs no Hub: what is measured does not depend on the rows."""
    tree = yaml.safe_load(write_recipe(path, repo, "main").read_text())
    for source in tree["stages"][0]["blend"]["sources"]:
        source.update(num_examples=source["num_examples"] // PART)
    path.write_text(yaml.safe_dump({**tree, "base": load_recipe(PACKAGED).base.model_dump(mode="json")}, sort_keys=False))
    return path


def figures(root: Path, work: Path, repeats: int) -> dict[str, object]:
    dataset = dataset_folder(root)
    repo = stage_sources()[0].repo
    recipe, store = recipe_at(work / "recipe.yaml", repo), work / "store"
    command = [str(TRLM), "blend", str(recipe), STAGE, "--latest", "--store", str(store)]
    with loopback_hub(dataset.parents[1]) as endpoint:
        first = transfer("first", lambda _: command, endpoint)
        built = _finished(store)
        again = [transfer("again", lambda _: command, endpoint) for _ in range(repeats)]
    if _finished(store) != built:
        raise SystemExit(f"wanted nothing new in the store, got {sorted(_finished(store) - built)}")
    return _told(first, again)


def _finished(store: Path) -> set[str]:
    return {str(path.parent.relative_to(store)) for path in store.glob("*/*/*/*/manifest.json")}


def _told(first: Transfer, again: list[Transfer]) -> dict[str, object]:
    return {
        "seconds": round(statistics.median(each.run.seconds for each in again), 2),
        "bytes_read": max(each.bytes for each in again),
        "requests": max(each.requests for each in again),
        "every": [round(each.run.seconds, 2) for each in again],
        "first_seconds": round(first.run.seconds, 2),
        "first_bytes": first.bytes,
    }


if __name__ == "__main__":
    main(figures, __doc__)
