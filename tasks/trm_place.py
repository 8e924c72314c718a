"""The place of a TRM run, and the run itself: checks before anything expensive, the store held, one MLflow run for all of it."""

import contextlib
from collections.abc import Iterator

from tasks.place import AnyPlace, Where, addresses
from tasks.runs import held_run
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.trm_lineage import TRMLineage
from trlm_core.trm_plan import check_trm


class TRMPlace(AnyPlace):
    recipe: TRMRecipe

    @classmethod
    def of(cls, recipe: TRMRecipe, where: Where) -> "TRMPlace":
        """Raises ValueErrors that say what to do, before any work."""
        place = cls(recipe=recipe, **addresses(where))
        check_trm(recipe, place.store)
        return place

    @property
    def lineage(self) -> TRMLineage:
        return TRMLineage(self.recipe)


@contextlib.contextmanager
def trm_run(recipe: TRMRecipe, where: Where) -> Iterator[TRMPlace]:
    place = TRMPlace.of(recipe, where)
    with held_run(place, recipe.name, recipe.model_dump(mode="json"), {"trlm.track": "trm"}) as run:
        yield place.model_copy(update={"run": run})
