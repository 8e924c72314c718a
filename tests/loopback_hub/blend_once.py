"""One blend by the core alone, as the flow calls it but without Prefect: `python -m tests.loopback_hub.blend_once RECIPE STAGE STORE`.

Ends with one line of JSON: the blend's folder, or the error that it ended with.
"""

import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.base_model import make_base
from trlm_core.data.blend import assemble
from trlm_core.data.errors import SourceConnectionError
from trlm_core.data.revisions import check_pinned
from trlm_core.data.sources import check_inputs, read_source
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import Recipe, Stage


def blend(store: Store, recipe: Recipe, stage: Stage) -> Manifest:
    check_pinned(recipe)
    check_inputs(store, stage)
    base = make_base(store, recipe.base)
    with ThreadPoolExecutor(len(stage.blend.sources)) as threads:
        read = [threads.submit(read_source, store, recipe, stage, source, base) for source in stage.blend.sources]
        return assemble(store, recipe, stage, [each.result() for each in read], base)


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    name, stage, address = sys.argv[1:]
    store, recipe = Store.open(address), load_recipe(name)
    try:
        made = blend(store, recipe, recipe.stage(stage))
    except (ValueError, SourceConnectionError) as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    else:
        print(json.dumps({"folder": str(store.folder(made)), "fingerprint": made.fingerprint, "counts": made.counts}))


if __name__ == "__main__":
    main()
