"""Whether a TRM recipe can run here, told before anything expensive. Imports nothing heavy, but where prompts have to be drawn."""

import importlib.util
import shutil

from trlm_core.artifacts.store import Store
from trlm_core.base_model import check_base
from trlm_core.plan import GIB, PlanError
from trlm_core.recipes.schema import HubBase
from trlm_core.recipes.trm_schema import CheckpointBase, OwnTraces, Sudoku4Prompts, TrainedLlamaBase, TRMRecipe

PACKAGES = {"peft": "peft", "pytorch_lightning": "pytorch-lightning"}  # import -> distribution: the extra `trm`
DISK_GIB = 1.0  # states, saves and checkpoints of the small recipes; a large base's states are more, and are told when they are cached


def check_installed() -> None:
    """Raises PlanError where the extra `trm` is not installed. Before any module of the TRM's is imported."""
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise PlanError(f"trm: wanted the packages {', '.join(missing)}, got none installed; pip install 'trlm[trm]'")


def check_trm(recipe: TRMRecipe, store: Store) -> None:
    """Raises the first reason, a ValueError, for which no run of this recipe can come to its report."""
    check_installed()
    _check_base(recipe, store)
    if isinstance(recipe.data, OwnTraces):
        _check_families(recipe.data)
    if recipe.phase3 is not None and recipe.phase3.prompts is not None:
        _check_prompts(recipe.phase3.prompts)
    free = shutil.disk_usage(store.root).free / GIB
    if free < DISK_GIB:
        raise PlanError(f"disk of {store.root}: wanted {DISK_GIB} GiB free for {recipe.name}, got {free:.1f}; choose another --store")


def _check_base(recipe: TRMRecipe, store: Store) -> None:
    base = recipe.base
    if isinstance(base, TrainedLlamaBase):
        if base.hidden_size % (2 * base.num_attention_heads):
            wanted = f"wanted a multiple of {2 * base.num_attention_heads} ({base.num_attention_heads} heads of even size)"
            raise PlanError(f"base.hidden_size: {wanted}, got {base.hidden_size}")
        return
    from trlm_core.trm_lineage import origin

    spec = origin(recipe)
    assert spec is not None
    if store.find(spec) is not None:
        return
    if isinstance(base, HubBase):
        check_base(base)
    elif isinstance(base, CheckpointBase):
        overlays = "".join(f" --{name} {value}" for name, value in (("variant", base.variant), ("budget", base.budget)) if value)
        raise PlanError(
            f"base: wanted the finished checkpoint {spec.place} with fingerprint {spec.fingerprint[:12]} in {store.address}, got none; "
            f"run `trlm run {base.recipe}{overlays}` on this store first"
        )


def _check_prompts(prompts: Sudoku4Prompts) -> None:
    """They are needed hours after the first phase began, and drawn in a second."""
    from trlm_core.trm.sudoku_thoughts import drawn_prompts

    drawn_prompts(prompts)


def _check_families(data: OwnTraces) -> None:
    from trlm_core.data.generated.families import FAMILIES

    if unknown := sorted(data.families.keys() - FAMILIES.keys()):
        raise PlanError(f"data.families: wanted some of {', '.join(sorted(FAMILIES))}, got {', '.join(unknown)}")
