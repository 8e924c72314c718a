"""The checkpoints of a TRM recipe's phases and controls: each trained in its workspace in the store, from where a killed process was.

checkpoints/trm-acceptance/phase2/: config.json, model.safetensors, tokenizer, history.jsonl
checkpoints/trm-acceptance/pause/:  pauses.safetensors, history.jsonl
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.split import seed_of
from trlm_core.metric_spool import UNDELIVERED, MetricSpool, deliver_or_keep
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.system_metrics import system_metrics
from trlm_core.tracking import RunAddress
from trlm_core.training.checkpoint import HISTORY
from trlm_core.training.job import METRICS
from trlm_core.trm.answers import longest_answer
from trlm_core.trm.controls import PauseModule, non_recursive_twin
from trlm_core.trm.direct_tuning import make_direct_tuned
from trlm_core.trm.interruptible import IsStopped, interruptible
from trlm_core.trm.latent_checkpoint import save_latent_checkpoint
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.material import Material, usable_device
from trlm_core.trm.phase1 import Phase1Module
from trlm_core.trm.phase2 import Phase2Module
from trlm_core.trm.phase2b import Phase2bModule
from trlm_core.trm.phase3 import Phase3Module
from trlm_core.trm.phase_models import base_of, config_of, new_model, with_adapter, with_recursion, without_depth
from trlm_core.trm.phase_module import PhaseModule
from trlm_core.trm.phase_rows import Latents, RowTable, latents_of
from trlm_core.trm.phase_trainer import PhaseProgress, PhaseRun, Precision, run_phase
from trlm_core.trm.specs import Control, Phase, control_spec, phase_before, phase_spec
from trlm_core.trm.states import CachedStates

PAUSES = "pauses.safetensors"
SECONDS_TO_DELIVER = 60.0  # metrics to MLflow, at the end of a phase
MOST_SAVE_SECONDS = 60.0  # a thinker is small: a save of it costs less than the steps that a kill would cost
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu", "mps": "mps"}  # Lightning's words
PRECISIONS: dict[str, Precision] = {"float32": "32-true", "bf16_mixed": "bf16-mixed"}
OnProgress = Callable[[PhaseProgress], None]


@dataclass(frozen=True)
class PhaseTraining:
    """One phase or control of a recipe, whose inputs are finished."""

    material: Material
    execution: Execution
    run: RunAddress | None  # where its metrics go
    on_progress: OnProgress

    @classmethod
    def of(
        cls,
        store: Store,
        recipe: TRMRecipe,
        made: Mapping[str, Manifest],
        execution: Execution,
        run: RunAddress | None,
        on_progress: OnProgress,
    ) -> "PhaseTraining":
        return cls(Material(store, recipe, made, usable_device(execution)), execution, run, on_progress)

    def phase(self, phase: Phase) -> Manifest:
        """Reused where its fingerprint is in the store. Interrupted (Ctrl-C, SIGTERM), it saves what is done before it ends.

        Raises BadStepError, StoppedError at a SIGTERM that nobody else handles, and what the store raises.
        """
        new_module = {"phase1": self._phase1, "phase2": self._phase2, "phase2b": self._phase2b, "phase3": self._phase3}[phase]
        spec = phase_spec(self.material.recipe, phase, self.material.made)
        return self._made(spec, new_module, self._write_model)

    def control(self, control: Control) -> Manifest:
        material, recipe = self.material, self.material.recipe
        if control == "direct_tuned":
            schedule = recipe.controls.direct_tuned
            assert schedule is not None
            made = material.made
            return make_direct_tuned(material.store, recipe, schedule, made["base"], made["thoughts"], material.device, self._on_step)
        spec = control_spec(recipe, control, material.made)
        if control == "nonrecursive":
            return self._made(spec, self._nonrecursive, self._write_model)
        return self._made(spec, self._pause, _write_pauses)

    # ------------------------------------------------------------------ what is trained

    def _phase1(self) -> PhaseModule:
        material, recipe = self.material, self.material.recipe
        base = base_of(material.store, recipe, material.made["base"], material.device)
        config = without_depth(config_of(recipe, base))
        model = new_model(base, config, material.tokens, self._seed("phase1/weights"))
        return Phase1Module(model, material.table("train"), self._states(), recipe.phase1, self._seed("phase1/order"))

    def _phase2(self) -> PhaseModule:
        model, table = self._before_phase2(), self.material.table("train")
        latents = self._latents(model, table, phase_spec(self.material.recipe, "phase2", self.material.made))
        return Phase2Module(model, table, latents, self.material.recipe.phase2, self._seed("phase2/order"))

    def _nonrecursive(self) -> PhaseModule:
        twin, table, recipe = non_recursive_twin(self._before_phase2()), self.material.table("train"), self.material.recipe
        latents = self._latents(twin, table, control_spec(recipe, "nonrecursive", self.material.made))
        how = recipe.phase2.model_copy(update={"training": recipe.controls.nonrecursive, "curriculum": ()})
        return Phase2Module(twin, table, latents, how, self._seed("nonrecursive/order"))

    def _pause(self) -> PhaseModule:
        schedule = self.material.recipe.controls.pause
        assert schedule is not None
        return PauseModule(self.material.model("phase1"), self.material.table("train"), schedule, self._seed("pause/order"))

    def _phase2b(self) -> PhaseModule:
        recipe = self.material.recipe
        assert recipe.phase2b is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed("phase2b/weights"))
            model = with_adapter(self.material.model("phase2"), recipe.phase2b.adapter)
        return Phase2bModule(model, self.material.table("train"), recipe.phase2b, self._seed("phase2b/order"))

    def _phase3(self) -> PhaseModule:
        material, recipe = self.material, self.material.recipe
        assert recipe.phase3 is not None
        model, table = material.model(phase_before(recipe, "phase3")), material.prompts(recipe.phase3)
        room = longest_answer(table.rows)
        return Phase3Module(model, table, material.is_well_formed(), recipe.phase3, room, self._seed("phase3/order"))

    def _before_phase2(self) -> LatentThoughtModel:
        """Phase 1's model with a new recursion: the same one for the TRM and for its twin without recursion."""
        phase1 = self.material.model("phase1")
        config = config_of(self.material.recipe, phase1.base)  # type: ignore[arg-type]
        return with_recursion(phase1, config, self._seed("phase2/weights"))

    def _latents(self, model: LatentThoughtModel, table: RowTable, spec: Spec) -> Latents:
        return latents_of(model, table, self._states(), folder=self.material.store.workspace(spec))

    def _states(self) -> Any:
        return CachedStates(self.material.folder("states")).read

    def _seed(self, name: str) -> int:
        return seed_of(self.material.recipe.seed, name)

    # ------------------------------------------------------------------ how

    def _made(self, spec: Spec, new_module: Callable[[], PhaseModule], write: Callable[[PhaseModule, Path], None]) -> Manifest:
        store = self.material.store

        def build(folder: Path) -> dict[str, Any]:
            module, workspace = new_module(), store.workspace(spec)
            history = self._run(module, workspace)
            module.to(self.material.device)  # Lightning has brought it back to the CPU
            module.finish()
            write(module, folder)
            shutil.copy(workspace / HISTORY, folder / HISTORY)
            trained = sum(weight.numel() for weight in module.trained.values())
            return {"steps": module.steps_done, "trained_parameters": trained, "loss": history[-1]["loss"]}

        return store.make(spec, build)

    def _run(self, module: PhaseModule, workspace: Path) -> list[dict[str, Any]]:
        spool = MetricSpool(workspace / METRICS, self.run)

        def on_progress(progress: PhaseProgress) -> None:
            spool.log(progress.metrics, progress.done)
            self.on_progress(progress)

        try:
            with system_metrics(spool):
                history = interruptible(lambda is_stopped: run_phase(module, self._how(workspace, on_progress, is_stopped)))
        finally:
            spool.close(SECONDS_TO_DELIVER)
        if self.run is not None:
            deliver_or_keep(workspace / METRICS, self.run, SECONDS_TO_DELIVER, self.material.store.root / UNDELIVERED)
        return history

    def _how(self, workspace: Path, on_progress: OnProgress, is_stopped: IsStopped) -> PhaseRun:
        return PhaseRun(
            workspace=workspace,
            save_steps=self.execution.save_steps,
            save_seconds=min(self.execution.save_seconds, MOST_SAVE_SECONDS),
            keep_saves=self.execution.keep_saves,
            log_steps=1,
            on_progress=on_progress,
            is_stopped=is_stopped,
            precision=PRECISIONS[self.material.recipe.precision],
            accelerator=ACCELERATORS[self.material.device],
        )

    def _write_model(self, module: PhaseModule, folder: Path) -> None:
        save_latent_checkpoint(module.model, self.material.tokenizer, folder)

    def _on_step(self, done: int, steps: int) -> None:
        self.on_progress(PhaseProgress(done, steps, 0, 0.0, None, {}))


def read_pauses(folder: Path) -> Tensor:
    """[1, M, D]"""
    return load_file(folder / PAUSES)["pauses_1MD"]


def _write_pauses(module: PhaseModule, folder: Path) -> None:
    assert isinstance(module, PauseModule)
    save_file({"pauses_1MD": module.pauses().detach().cpu().contiguous()}, folder / PAUSES)
