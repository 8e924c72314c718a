"""What makes the fingerprint of every artifact of a TRM recipe: its own part of the recipe, and what it is made from.

    thoughts, base -> states -> phase1 -> nonrecursive, pause, direct_tuned -> phase2 -> phase2b -> phase3 -> evaluation

Gates are in no checkpoint's identity: a threshold that moves retrains nothing. They are in a measurement's, whose counts have the verdict.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Literal

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.store import Spec
from trlm_core.recipes.trm_schema import OwnTraces, Schedule, Sudoku4Thoughts, TrainedLlamaBase, TRMRecipe
from trlm_core.trm.base_llama import base_llama_spec
from trlm_core.trm.config import RecursionConfig, net_alone
from trlm_core.trm.direct_tuning import direct_tuned_spec
from trlm_core.trm.own_traces import own_traces_spec
from trlm_core.trm.phase_models import recursion_of
from trlm_core.trm.states import states_spec
from trlm_core.trm.sudoku_thoughts import sudoku_thoughts_spec

Made = Mapping[str, Fingerprinted]  # role -> manifest, or the spec of what is not built yet
Phase = Literal["phase1", "phase2", "phase2b", "phase3"]
Control = Literal["nonrecursive", "pause", "direct_tuned"]
PHASES: tuple[Phase, ...] = ("phase1", "phase2", "phase2b", "phase3")
# Of the recursion, which phase 1 does not touch; width and heads are the compressor's too.
RECURSION = {each.name for each in fields(RecursionConfig)} - {"width", "n_heads"}
NOT_OF_PHASE_1 = RECURSION | {"latent_norm", "slot_embeddings"}  # whatever these are, phase 1 is the same


def phases_of(recipe: TRMRecipe) -> tuple[Phase, ...]:
    """Those that the recipe has, in order."""
    return tuple(phase for phase in PHASES if getattr(recipe, phase) is not None)


def controls_of(recipe: TRMRecipe) -> tuple[Control, ...]:
    """Those that the recipe trains, in order."""
    return tuple(name for name, schedule in recipe.controls if schedule is not None)  # type: ignore[misc]


def last_phase(recipe: TRMRecipe) -> Phase:
    """Whose checkpoint is evaluated and talked to."""
    return phases_of(recipe)[-1]


def phase_before(recipe: TRMRecipe, phase: Phase) -> Phase:
    phases = phases_of(recipe)
    return phases[phases.index(phase) - 1]


def trm_specs(recipe: TRMRecipe, origin: Spec | None) -> dict[str, Spec]:
    """Every artifact but the report by its role, in the order in which they are made. origin: the base, where it is not trained here."""
    made = _material(recipe, origin)
    made["states"] = states_spec(recipe, made["base"], made["thoughts"], "train")
    made["phase1"] = phase_spec(recipe, "phase1", made)
    made |= {control: control_spec(recipe, control, made) for control in controls_of(recipe)}
    for phase in phases_of(recipe)[1:]:
        made[phase] = phase_spec(recipe, phase, made)
    measured = {measured_role(phase): measure_spec(recipe, phase, made) for phase in phases_of(recipe)}
    return {**made, **measured, "evaluation": evaluation_spec(recipe, made)}


def measured_role(phase: Phase) -> str:
    return f"{phase}-measured"


def phase_spec(recipe: TRMRecipe, phase: Phase, made: Made) -> Spec:
    part = getattr(recipe, phase).model_dump(mode="json", exclude={"gate", "oracle_over_text"})
    sizes = recipe.model.model_dump(mode="json", exclude=NOT_OF_PHASE_1 if phase == "phase1" else set())
    identity = {"made_by": f"{phase}/1", "model": sizes, "training": part, "seed": recipe.seed, "precision": recipe.precision}
    roles = ["base", "thoughts", *(["states"] if phase in ("phase1", "phase2") else [])]
    before = [] if phase == "phase1" else [phase_before(recipe, phase)]
    return _spec(recipe, "checkpoints", phase, identity, _inputs(made, *roles, *before))


def control_spec(recipe: TRMRecipe, control: Control, made: Made) -> Spec:
    schedule = getattr(recipe.controls, control)
    assert isinstance(schedule, Schedule)
    if control == "direct_tuned":
        return direct_tuned_spec(recipe, schedule, made["base"], made["thoughts"])
    identity: dict[str, Any] = {"made_by": f"{control}/1", "training": schedule.model_dump(mode="json"), "seed": recipe.seed}
    inputs = _inputs(made, "base", "thoughts", "phase1")
    if control == "nonrecursive":
        twin = net_alone(recursion_of(recipe.model))
        how = recipe.phase2.model_dump(mode="json", include={"ema_decay", "losses", "answer_share"})
        identity |= {"model": {**recipe.model.model_dump(mode="json", exclude=RECURSION), **asdict(twin)}, "phase2": how}
        inputs |= _inputs(made, "states")
    return _spec(recipe, "checkpoints", control, {**identity, "precision": recipe.precision}, inputs)


def measure_spec(recipe: TRMRecipe, phase: Phase, made: Made) -> Spec:
    """What a phase reached on the validation split, and whether its gate holds."""
    part = getattr(recipe, phase)
    gate = {"oracle_over_text": part.oracle_over_text} if phase == "phase1" else getattr(part, "gate", None) and part.gate.model_dump()
    steps = set() if phase == "phase1" else {"steps"}  # which phase 1 has none of
    asked = recipe.evaluation.model_dump(mode="json", include={"examples", "max_new_tokens", *steps})
    identity = {"made_by": "phase_measures/2", "phase": phase, "asked": asked, "gate": gate, "precision": recipe.precision}
    roles = ["base", "thoughts", phase]
    if phase == "phase2" and recipe.controls.nonrecursive is not None:
        roles.append("nonrecursive")
    if phase == "phase2b":
        roles.append("phase1")
    if phase == "phase3":
        identity |= {"rewards": part.model_dump(mode="json", include={"rewards", "temperature", "group_size"}), "seed": recipe.seed}
        roles.append(phase_before(recipe, phase))
    return _spec(recipe, "evals", phase, identity, _inputs(made, *roles))


def evaluation_spec(recipe: TRMRecipe, made: Made) -> Spec:
    identity = {"made_by": "evaluation/2", "evaluation": recipe.evaluation.model_dump(mode="json"), "precision": recipe.precision}
    earlier = [phase for phase in ("phase1", "phase2") if phase != last_phase(recipe)]
    inputs = _inputs(made, "base", "thoughts", *earlier, *controls_of(recipe)) | {"checkpoint": made[last_phase(recipe)].fingerprint}
    return _spec(recipe, "evals", "evaluation", identity, inputs)


def _material(recipe: TRMRecipe, origin: Spec | None) -> dict[str, Spec]:
    if isinstance(recipe.data, Sudoku4Thoughts):
        assert isinstance(recipe.base, TrainedLlamaBase)
        thoughts = sudoku_thoughts_spec(recipe, recipe.data)
        return {"thoughts": thoughts, "base": base_llama_spec(recipe, recipe.base, thoughts)}
    assert isinstance(recipe.data, OwnTraces)
    assert origin is not None
    return {"base": origin, "thoughts": own_traces_spec(recipe, recipe.data, origin)}


def _inputs(made: Made, *roles: str) -> dict[str, str]:
    return {role: made[role].fingerprint for role in roles}


def _spec(recipe: TRMRecipe, kind: Literal["checkpoints", "evals"], name: str, identity: dict[str, Any], inputs: dict[str, str]) -> Spec:
    return Spec(kind, recipe.name, name, identity, inputs, recipe.model_dump(mode="json"))
