"""A TRM recipe of every phase and control, built once: what its tests read."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.trlm_core.trm.tiny_recipe import made_of, tiny_trm_recipe
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.trm_schema import TRMRecipe


@dataclass(frozen=True)
class BuiltTRM:
    """Tests only read it."""

    store: Store
    recipe: TRMRecipe
    made: dict[str, Manifest]

    def folder(self, role: str) -> Path:
        return self.store.folder(self.made[role])


@pytest.fixture(scope="session")
def built_trm(tmp_path_factory: pytest.TempPathFactory) -> BuiltTRM:
    store, recipe = Store.open(tmp_path_factory.mktemp("built-trm") / "store"), tiny_trm_recipe()
    return BuiltTRM(store, recipe, made_of(store, recipe))
