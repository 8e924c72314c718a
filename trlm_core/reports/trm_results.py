"""What a TRM run leaves, as manifests: its report's only input."""

from collections.abc import Mapping
from dataclasses import dataclass

from trlm_core.artifacts.manifest import Manifest
from trlm_core.recipes.trm_schema import TRMRecipe


@dataclass(frozen=True)
class TRMResults:
    recipe: TRMRecipe
    made: Mapping[str, Manifest]  # role -> artifact, in the order in which they were made; "evaluation" among them
    ablations: Mapping[str, Manifest]  # what was changed -> the evaluation of that run
