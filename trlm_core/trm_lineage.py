"""The lineage of a TRM recipe: the spec of every artifact that it leads to, known before anything is built."""

from dataclasses import dataclass
from functools import cached_property

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.base_model import base_spec
from trlm_core.lineage import Lineage, MissingArtifactError
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import HubBase
from trlm_core.recipes.trm_schema import CheckpointBase, TRMRecipe
from trlm_core.reports.trm_results import TRMResults
from trlm_core.trm.specs import trm_specs


@dataclass(frozen=True)
class TRMLineage:
    recipe: TRMRecipe

    @cached_property
    def specs(self) -> dict[str, Spec]:
        """By role, in the order in which they are made: see trm/specs.py."""
        return trm_specs(self.recipe, origin(self.recipe))

    def made(self, store: Store) -> dict[str, Manifest]:
        """What is finished of it, by role."""
        found = {role: store.find(spec) for role, spec in self.specs.items()}
        return {role: manifest for role, manifest in found.items() if manifest is not None}

    def results(self, store: Store, ablations: dict[str, "TRMLineage"] | None = None) -> TRMResults:
        """What its report reads. Raises MissingArtifactError where the run, or that of an ablation, is not finished."""
        others = {label: lineage.evaluation(store) for label, lineage in (ablations or {}).items()}
        made = self.made(store)
        _require(self.specs, made, store, self.recipe)
        return TRMResults(self.recipe, made, others)

    def evaluation(self, store: Store) -> Manifest:
        """Raises MissingArtifactError."""
        found = store.find(self.specs["evaluation"])
        _require({"evaluation": self.specs["evaluation"]}, {"evaluation": found} if found else {}, store, self.recipe)
        assert found is not None
        return found


def origin(recipe: TRMRecipe) -> Spec | None:
    """The base, where the recipe takes one that is there. Raises RecipeError and ValueError for a stage that there is not."""
    base = recipe.base
    if isinstance(base, HubBase):
        return base_spec(base)
    if isinstance(base, CheckpointBase):
        parent = load_recipe(base.recipe, variant=base.variant, budget=base.budget)
        names = [stage.name for stage in parent.stages]
        if base.stage not in names:
            raise ValueError(f"base.stage: wanted one of {', '.join(names)} of {base.recipe}, got {base.stage!r}")
        return Lineage(parent).checkpoint(parent.stage(base.stage))
    return None


def _require(wanted: dict[str, Spec], made: dict[str, Manifest], store: Store, recipe: TRMRecipe) -> None:
    missing = [f"{role} ({wanted[role].fingerprint[:12]})" for role in wanted if role not in made]
    if missing:
        raise MissingArtifactError(
            f"store {store.address}: wanted the finished run of {recipe.name}, got no {', '.join(missing)}; "
            "run `trlm trm run` with the same recipe and settings first"
        )
