"""trm-acceptance shrunk to a base and a thinker of some thousand weights and trainings of a few steps: every phase and control in seconds."""

from collections.abc import Mapping
from typing import Any

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.trm_load import load_trm_recipe, parse_trm_recipe
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.trm.material import make_base, make_thoughts
from trlm_core.trm.phase_checkpoints import PhaseTraining
from trlm_core.trm.phase_measures import make_measure
from trlm_core.trm.results import make_evaluation
from trlm_core.trm.specs import controls_of, measured_role, phases_of
from trlm_core.trm.states import make_states
from trlm_core.trm_lineage import TRMLineage

NAME = "trm-tiny"
CPU = Execution(device="cpu", threads=1)
QUICK = {"batch": 8, "warmup_steps": 1}


def tiny_trm_tree() -> dict[str, Any]:
    tree = load_trm_recipe("trm-acceptance").model_dump(mode="json")
    tree |= {"name": NAME, "gates": "report"}
    tree["base"] |= {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    tree["base"]["training"] |= {"steps": 6, **QUICK}
    tree["data"]["puzzles"] = {"train": 1_000, "validation": 10, "test": 10}
    tree["model"] |= {"num_latents": 4, "width": 16, "n_heads": 2, "n_layers": 1, "n_latent_steps": 2, "n_supervision_steps": 3}
    tree["phase1"] |= {"identity_steps": 2, "norm_examples": 1_000}
    tree["phase1"]["training"] |= {"steps": 5, **QUICK}
    tree["phase2"]["training"] |= {"steps": 12, **QUICK}
    tree["phase2b"] = {
        "training": {**tree["phase2"]["training"], "steps": 3},
        "adapter": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"]},
    }
    tree["phase3"]["training"] |= {"steps": 3, "batch": 2, "warmup_steps": 1}
    tree["phase3"] |= {
        "group_size": 3,
        "prompts": {"seed": 1, "givens": [5, 6], "puzzles": 20},
        "rewards": {"exact": 1.0, "well_formed": 0.1, "partial": 0.5},
    }
    for schedule in tree["controls"].values():
        schedule |= {"steps": 3, **QUICK}
    tree["evaluation"] |= {"examples": 10, "steps": [1, 2]}
    return tree


def tiny_trm_recipe(**changes: Any) -> TRMRecipe:
    """`tiny_trm_recipe(**{"phase2.training.steps": 20})`"""
    tree = tiny_trm_tree()
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = tree
        for part in parents:
            place = place[part]
        place[last] = value
    return parse_trm_recipe(tree, where="tiny")


def made_of(store: Store, recipe: TRMRecipe) -> dict[str, Manifest]:
    """All that the recipe leads to but its report, built in this process."""
    made: dict[str, Manifest] = {}
    made["thoughts"] = make_thoughts(store, recipe, made, CPU, lambda done, total: None)
    made["base"] = make_base(store, recipe, TRMLineage(recipe).specs["base"], made, CPU, lambda done, total: None)
    made["states"] = make_states(store, recipe, made["base"], made["thoughts"], "train", "cpu")
    made["phase1"] = phase_training(store, recipe, made).phase("phase1")
    for control in controls_of(recipe):
        made[control] = phase_training(store, recipe, made).control(control)
    for phase in phases_of(recipe)[1:]:
        made[phase] = phase_training(store, recipe, made).phase(phase)
    for phase in phases_of(recipe):
        made[measured_role(phase)] = make_measure(store, recipe, phase, made, CPU, lambda row, left: None)
    made["evaluation"] = make_evaluation(store, recipe, made, CPU, lambda row, left: None)
    return made


def phase_training(store: Store, recipe: TRMRecipe, made: Mapping[str, Manifest], **execution: Any) -> PhaseTraining:
    return PhaseTraining.of(store, recipe, made, CPU.model_copy(update=execution), None, lambda progress: None)
