"""A blend: its sources joined, shuffled once with the recipe's seed, written as shards, checked with DuckDB, described by a card."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.card import dataset_card
from trlm_core.data.checks import Check, run_checks
from trlm_core.data.shards import read_shards, write_shards
from trlm_core.data.split import seed_of
from trlm_core.recipes.schema import Recipe, Stage


class BlendError(ValueError):
    """The blend is not what the recipe asks for."""


def blend_spec(recipe: Recipe, stage: Stage, sources: Sequence[Fingerprinted]) -> Spec:
    identity = {"made_by": "blend/1", "blend": stage.blend.model_dump(mode="json")}
    inputs = {source.name: source.fingerprint for source in sources}
    return Spec("datasets", recipe.name, stage.name, identity, inputs, recipe.model_dump(mode="json"))


def assemble(store: Store, recipe: Recipe, stage: Stage, sources: Sequence[Manifest]) -> Manifest:
    """Sources -> blend. Raises BlendError where a check fails; nothing finished is left then."""

    def build(folder: Path) -> dict[str, Any]:
        for split in ("train", "held_out"):
            joined = pa.concat_tables(read_shards(store.folder(source), split) for source in sources)
            write_shards(folder, split, _shuffled(joined, seed_of(stage.blend.seed, split)))
        checks = run_checks(folder, stage)
        _require(checks)
        counts = {manifest.name: manifest.counts for manifest in sources}
        (folder / "checks.json").write_text(json.dumps([{**check.model_dump(), "passed": check.passed} for check in checks], indent=1))
        (folder / "README.md").write_text(dataset_card(recipe, stage, counts, checks))
        return {"rows": sum(count["train"] for count in counts.values()), "sources": counts, "checks_passed": len(checks)}

    return store.make(blend_spec(recipe, stage, sources), build)


def _shuffled(table: pa.Table, seed: int) -> pa.Table:
    return table.take(pa.array(np.random.default_rng(seed).permutation(table.num_rows)))


def _require(checks: Sequence[Check]) -> None:
    failed = [f"{check.name}: wanted {check.wanted}, got {check.got}" for check in checks if not check.passed]
    if failed:
        raise BlendError("the blend fails its checks: " + "; ".join(failed))
