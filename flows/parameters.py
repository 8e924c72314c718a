"""Parameters of the flows, as the run form of Prefect's page shows them: which recipe, which stage, what answers.

The form takes descriptions from models and from the `Args:` of a flow's docstring, not from annotations of its parameters.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.place import Where
from trlm_core.data.revisions import resolved
from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import Recipe

StageName = Literal["stage1_sft", "stage2_sft_think", "stage3_dpo"]
SubjectName = Literal["base", "base-few-shot", "stage1_sft", "stage2_sft_think-start", "stage2_sft_think", "stage3_dpo"]


class RecipeChoice(BaseModel):
    """Which recipe to build. All of it is identity: it changes what is built."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(
        default="trlm-135m-local",
        description="trlm-135m-local (offline, a laptop's size), trlm-135m (the report's, from the Hub), or the path of a YAML file.",
        examples=["trlm-135m-local", "trlm-135m"],
    )
    variant: Literal["report", "reference", "improved"] | None = Field(
        default=None, description="Overlay of trlm-135m: which of its variants."
    )
    budget: Literal["full"] | None = Field(default=None, description="Overlay of trlm-135m-local: a larger budget.")
    settings: tuple[str, ...] = Field(default=(), description="Overriding keys: stages.stage1_sft.training.learning_rate=1e-4")

    upstream: Literal["locked", "latest"] = Field(
        default="locked",
        description="Revisions that are names (main): as the recipe's lock has them, or what they mean when the run starts.",
    )
    pins: dict[str, str] = Field(default={}, description="What names of revisions mean; a run sets it for those that it starts.")

    def load(self) -> Recipe:
        """Raises RecipeError."""
        pins = self.pins if self.upstream == "latest" else None
        return load_recipe(self.name, variant=self.variant, budget=self.budget, settings=self.settings, pins=pins)

    def resolved(self) -> "RecipeChoice":
        """With every name among the revisions resolved, where they are to be followed. Raises RecipeError, SourceError."""
        if self.upstream == "locked" or self.pins:
            return self
        return self.model_copy(update={"pins": resolved(self.load())})

    @property
    def label(self) -> str:
        """`trlm-135m-local full`: the recipe's name with its overlays, for the names of runs."""
        name = Path(self.name).stem if self.name.endswith((".yaml", ".yml")) else self.name
        return " ".join(part for part in (name, self.variant, self.budget) if part)


DEFAULT_RECIPE = RecipeChoice()
WORKERS_OWN = Where()
