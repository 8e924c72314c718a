"""Stage 2's blend as trlm makes it, by the core alone: `python benchmarks/blend_ours.py RECIPE STAGE STORE BASES`.

BASES is a store that has the packaged base, whose tokenizer counts: it is made there where it is not, and its files are linked into STORE.
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
from trlm_core.data.sources import read_source
from trlm_core.data.taken import check_supply
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import Recipe, Stage

PACKAGED = "trlm-135m-local"  # the recipe whose base needs no Hub


def blend(store: Store, recipe: Recipe, stage: Stage, base: Manifest) -> Manifest:
    check_supply(stage)
    with ThreadPoolExecutor(len(stage.blend.sources)) as threads:
        read = [threads.submit(read_source, store, recipe, stage, source, base) for source in stage.blend.sources]
        return assemble(store, recipe, stage, [each.result() for each in read], base)


def main() -> None:
    name, stage, address, bases = sys.argv[1:]
    base = make_base(Store.open(bases), load_recipe(PACKAGED).base)
    shutil.copytree(Path(bases) / base.address, Path(address) / base.address, copy_function=os.link)
    recipe = load_recipe(name)
    print(blend(Store.open(address), recipe, recipe.stage(stage), base).counts)


if __name__ == "__main__":
    main()
