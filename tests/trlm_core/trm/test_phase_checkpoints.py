"""Every phase and control of a recipe as an artifact: what each takes over, what it leaves, and that it goes on where it was interrupted."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trlm_core.conftest import BuiltTRM
from tests.trlm_core.trm.tiny_recipe import made_of, phase_training, tiny_trm_recipe
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.training.checkpoint import read_history
from trlm_core.training.errors import BadStepError
from trlm_core.training.saves import SAVES, newest_step
from trlm_core.trm.latent_checkpoint import load_latent_checkpoint
from trlm_core.trm.phase_checkpoints import PhaseTraining, read_pauses
from trlm_core.trm.phase_trainer import PhaseProgress
from trlm_core.trm_lineage import TRMLineage

PHASES = ["phase1", "phase2", "phase2b", "phase3"]
FROZEN_IN_PHASE_2 = ("trm.compressor.", "trm.norm.", "expander.", "projector.")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_what_is_made_is_what_the_lineage_foretold(built_trm: BuiltTRM):
    foretold = {role: spec.fingerprint for role, spec in TRMLineage(built_trm.recipe).specs.items()}
    assert {role: manifest.fingerprint for role, manifest in built_trm.made.items()} == foretold


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_leaves_a_model_that_loads_its_history_and_no_base_weights(built_trm: BuiltTRM, phase: str):
    model = load_latent_checkpoint(built_trm.folder(phase))
    assert not [name for name in weights(built_trm.folder(phase)) if "base" in name]
    assert len(read_history(built_trm.folder(phase))) == getattr(built_trm.recipe, phase).training.steps
    assert (model.config.lora is not None) == (phase in ("phase2b", "phase3"))


def test_phase_2_takes_over_phase_1_and_changes_the_recursion_alone(built_trm: BuiltTRM):
    before, after = weights(built_trm.folder("phase1")), weights(built_trm.folder("phase2"))
    kept = [name for name in after if name.startswith(FROZEN_IN_PHASE_2)]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert load_latent_checkpoint(built_trm.folder("phase2")).config.states.recursion.n_latent_steps == 2


def test_the_twin_without_recursion_has_the_sizes_of_the_trm(built_trm: BuiltTRM):
    trm, twin = weights(built_trm.folder("phase2")), weights(built_trm.folder("nonrecursive"))
    assert {name: each.shape for name, each in trm.items()} == {name: each.shape for name, each in twin.items()}
    assert load_latent_checkpoint(built_trm.folder("nonrecursive")).config.eval_steps == 1


def test_phase_3_moves_the_thinker_and_leaves_the_adapters(built_trm: BuiltTRM):
    before, after = built_trm.folder("phase2b"), built_trm.folder("phase3")
    adapters = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (before, after)]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    assert any(not torch.equal(each, weights(after)[name]) for name, each in weights(before).items())


def test_pauses_are_one_thought_for_every_prompt(built_trm: BuiltTRM):
    model = built_trm.recipe.model
    assert read_pauses(built_trm.folder("pause")).shape == (1, model.num_latents, 16)


def test_the_same_recipe_gives_the_same_weights_in_another_store(built_trm: BuiltTRM, tmp_path: Path):
    recipe = tiny_trm_recipe(phase2b=None, phase3=None)
    made = made_of(Store.open(tmp_path / "store"), recipe)
    folder = Store.open(tmp_path / "store").folder(made["phase2"])
    assert all(torch.equal(each, weights(folder)[name]) for name, each in weights(built_trm.folder("phase2")).items())


ABLATIONS: dict[str, dict[str, Any]] = {
    "another depth": {"model.n_latent_steps": 4, "model.n_deep_recursions": 2},
    "pre-norm": {"model.norm": "pre"},
    "without statistics of latents": {"model.latent_norm": False},
    "without slot embeddings": {"model.slot_embeddings": False},
}


@pytest.mark.parametrize("case", ABLATIONS)
def test_phase_1_is_reused_for_what_phase_2_alone_has(built_trm: BuiltTRM, case: str, caplog: pytest.LogCaptureFixture):
    made = {role: built_trm.made[role] for role in ("thoughts", "base", "states")}
    with caplog.at_level("INFO"):
        assert phase_training(built_trm.store, tiny_trm_recipe(**ABLATIONS[case]), made).phase("phase1") == built_trm.made["phase1"]
    assert "reused" in caplog.text


@pytest.mark.parametrize("case", ABLATIONS)
def test_an_ablated_phase_2_begins_with_the_same_weights_and_another_loss(built_trm: BuiltTRM, case: str, tmp_path: Path):
    store, recipe = Store.open(tmp_path / "store"), tiny_trm_recipe(**ABLATIONS[case])
    made = {role: built_trm.made[role] for role in ("thoughts", "base", "states", "phase1")}
    copy_store(built_trm.store, store, made)
    whole, ablated = phase_training(store, built_trm.recipe, made), phase_training(store, recipe, made)
    begins = [training._before_phase2().thinker.state_dict() for training in (whole, ablated)]
    assert all(torch.equal(each, begins[1][name]) for name, each in begins[0].items())
    first = [read_history(folder)[0] for folder in (built_trm.folder("phase2"), store.folder(ablated.phase("phase2")))]
    assert first[0]["loss"] != pytest.approx(first[1]["loss"], rel=1e-4)


def test_a_phase_2_that_blows_up_ends_with_the_step_and_leaves_no_checkpoint(built_trm: BuiltTRM, tmp_path: Path):
    deep = {"model.n_latent_steps": 6, "model.n_deep_recursions": 3, "model.n_supervision_steps": 16, "phase2.min_steps": 16}
    store, recipe = Store.open(tmp_path / "store"), tiny_trm_recipe(**deep, **ABLATIONS["pre-norm"])
    made = {role: built_trm.made[role] for role in ("thoughts", "base", "states", "phase1")}
    copy_store(built_trm.store, store, made)
    with pytest.raises(BadStepError, match=r"Phase2Module, step \d+: wanted a .* that is finite, got (inf|nan)"):
        phase_training(store, recipe, made).phase("phase2")
    assert not [each for each in store.manifests() if each.name == "phase2"]


@pytest.mark.parametrize(("precision", "lightnings"), [("float32", "32-true"), ("bf16_mixed", "bf16-mixed")])
def test_a_phase_is_trained_in_the_recipe_s_precision_on_any_device(built_trm: BuiltTRM, tmp_path: Path, precision: str, lightnings: str):
    recipe, store = tiny_trm_recipe(precision=precision), Store.open(tmp_path / "store")
    made = {role: built_trm.made[role] for role in ("thoughts", "base", "states")}
    copy_store(built_trm.store, store, made)
    training = phase_training(store, recipe, made)
    assert training._how(tmp_path, training.on_progress, lambda: False).precision == lightnings
    history = read_history(store.folder(training.phase("phase1")))
    assert history[0]["loss"] == pytest.approx(read_history(built_trm.folder("phase1"))[0]["loss"], rel=0.05)


class StoppedHereError(Exception):
    pass


def test_an_interrupted_phase_goes_on_to_the_same_weights(built_trm: BuiltTRM, tmp_path: Path):
    store, recipe = Store.open(tmp_path / "store"), tiny_trm_recipe(phase2b=None, phase3=None)
    made = {role: built_trm.made[role] for role in ("thoughts", "base", "states", "phase1")}
    copy_store(built_trm.store, store, made)
    began: list[int] = []

    def interrupt(progress: PhaseProgress) -> None:
        began.append(progress.done_before)
        if progress.done == 7 and progress.done_before == 0:
            raise StoppedHereError

    whole = phase_training(store, recipe, made, save_steps=3)
    training = PhaseTraining(whole.material, whole.execution, None, interrupt)
    with pytest.raises(StoppedHereError):
        training.phase("phase2")
    finished = training.phase("phase2")
    assert began[-1] == 6, "it went on from its save"
    assert [line["step"] for line in read_history(store.folder(finished))] == list(range(1, 13))
    expected = weights(built_trm.folder("phase2"))
    assert all(torch.equal(each, expected[name]) for name, each in weights(store.folder(finished)).items())


CHILD = """
import signal, sys, time
from tests.trlm_core.trm.tiny_recipe import CPU, tiny_trm_recipe
from trlm_core.artifacts.store import Store
from trlm_core.trm.phase_checkpoints import PhaseTraining
from trlm_core.trm_lineage import TRMLineage
signal.signal(signal.SIGINT, signal.default_int_handler)
store, recipe = Store.open(sys.argv[1]), tiny_trm_recipe(phase2b=None, phase3=None)
PhaseTraining.of(store, recipe, TRMLineage(recipe).made(store), CPU, None, lambda progress: time.sleep(0.2)).phase("phase2")
"""


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGTERM, "StoppedError: asked to stop by SIGTERM"), (signal.SIGINT, "KeyboardInterrupt")]
)
def test_a_process_that_is_told_to_end_saves_its_step_and_the_next_goes_on_behind_it(
    built_trm: BuiltTRM, tmp_path: Path, number: signal.Signals, ends: str
):
    store, recipe = Store.open(tmp_path / "store"), tiny_trm_recipe(phase2b=None, phase3=None)
    made = {role: built_trm.made[role] for role in ("thoughts", "base", "states", "phase1")}
    copy_store(built_trm.store, store, made)
    workspace = store.workspace(TRMLineage(recipe).specs["phase2"])
    said = _run_and_tell(store, workspace, number)
    assert ends in said
    done = len(read_history(workspace))
    assert 0 < done < 12, "it ended before its last step"
    assert newest_step(workspace / SAVES) == done, "the last step that was made is the one that is saved"

    began: list[int] = []
    whole = phase_training(store, recipe, made)
    finished = PhaseTraining(whole.material, whole.execution, None, lambda progress: began.append(progress.done)).phase("phase2")
    assert began == list(range(done + 1, 13))
    expected = weights(built_trm.folder("phase2"))
    assert all(torch.equal(each, expected[name]) for name, each in weights(store.folder(finished)).items())


def _run_and_tell(store: Store, workspace: Path, number: signal.Signals) -> str:
    """Start a training, send it the signal once it has made some steps, and wait for its end; what it said on standard error."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(store.root)], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (workspace / "history.jsonl").exists() or len(read_history(workspace)) < 3:
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)
    child.send_signal(number)
    return child.communicate(timeout=60)[1]


def copy_store(source: Store, target: Store, made: dict[str, Manifest]) -> None:
    for manifest in made.values():
        shutil.copytree(source.folder(manifest), target.root / manifest.address)
