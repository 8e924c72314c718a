"""Flow `trm`: a thinker on a language model's hidden states, from its thoughts to its report, phase by phase."""

from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import BaseModel, ConfigDict, Field

from flows.parameters import WORKERS_OWN
from tasks.place import Where
from tasks.states import left
from tasks.trm import (
    check_gate,
    evaluate_thinker,
    material_of,
    measure_phase,
    publish_trm_report,
    train_control,
    train_phase,
)
from tasks.trm_place import TRMPlace, trm_run
from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.trm.material import Made
from trlm_core.trm.specs import Phase, controls_of, phases_of


class TRMChoice(BaseModel):
    """Which TRM recipe to build. All of it is identity: it changes what is built."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        default="trm-acceptance",
        description="trm-acceptance (4x4 Sudoku, 25 CPU-minutes), trm-smollm2-135m-laptop (an hour or two), trm-smollm2-135m, "
        "trm-smollm3-3b (a GPU), or the path of a YAML file.",
        examples=["trm-acceptance", "trm-smollm2-135m"],
    )
    settings: tuple[str, ...] = Field(default=(), description="Overriding keys: phase2.training.steps=4000")

    def load(self) -> TRMRecipe:
        """Raises RecipeError."""
        return load_trm_recipe(self.name, settings=self.settings)

    @property
    def label(self) -> str:
        return Path(self.name).stem if self.name.endswith((".yaml", ".yml")) else self.name


DEFAULT_TRM = TRMChoice()


@flow(name="trm", flow_run_name="{recipe.label}")
def trm(recipe: TRMChoice = DEFAULT_TRM, where: Where = WORKERS_OWN) -> State[None]:
    """Thoughts, base and states; phase 1; what the thinker is measured against; the other phases; evaluation and report.

    A phase whose gate does not hold ends the run, unless the recipe says `gates: report`.
    """
    with trm_run(recipe.load(), where) as place:
        first, *others = phases_of(place.recipe)
        made = trained_and_measured(place, first, material_of(place))
        made |= {control: train_control(place, control, made) for control in controls_of(place.recipe)}
        for phase in others:
            made = trained_and_measured(place, phase, made)
        return left(evaluate_thinker(place, made), publish_trm_report(place))


def trained_and_measured(place: TRMPlace, phase: Phase, made: Made) -> dict[str, Manifest]:
    """With the phase's checkpoint; its gate held."""
    made = {**made, phase: train_phase(place, phase, made)}
    check_gate(place, phase, measure_phase(place, phase, made))
    return made
