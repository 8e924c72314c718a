"""Stage 2's blend as trlm makes it, by the core alone: `python benchmarks/blend_ours.py RECIPE STAGE STORE BASES`.

BASES is a store with the packaged base, whose tokenizer counts, and nothing else: its files are linked into STORE.
What the flow does beyond this is Prefect's: task runs, and a server to tell them to.
"""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.base_model import make_base
from trlm_core.data.blend import assemble
from trlm_core.data.sources import check_inputs, read_source
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import Recipe, Stage

PACKAGED = "trlm-135m-local"  # the recipe whose base needs no Hub


def blend(store: Store, recipe: Recipe, stage: Stage) -> Manifest:
    with ThreadPoolExecutor(len(stage.blend.sources)) as threads:
        fetched = threads.submit(make_base, store, load_recipe(PACKAGED).base)
        check_inputs(store, stage)
        base = fetched.result()
        read = [threads.submit(read_source, store, recipe, stage, source, base) for source in stage.blend.sources]
        return assemble(store, recipe, stage, [each.result() for each in read], base)


def link_base(bases: Path, store: Path) -> None:
    (base,) = Store.open(bases).finished()
    shutil.copytree(bases / base, store / base, copy_function=os.link)


def main() -> None:
    name, stage, address, bases = sys.argv[1:]
    link_base(Path(bases), Path(address))
    recipe = load_recipe(name)
    print(blend(Store.open(address), recipe, recipe.stage(stage)).counts)


if __name__ == "__main__":
    main()
