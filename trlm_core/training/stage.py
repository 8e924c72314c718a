"""One stage trained: stage dataset and start checkpoint -> checkpoint in the store, and for DPO the reference log-probs before it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.metric_spool import UNDELIVERED, deliver_or_keep
from trlm_core.recipes.execution import Execution, check_group
from trlm_core.recipes.schema import Recipe, Stage
from trlm_core.tracking import RunAddress
from trlm_core.training.bad_steps import SKIPPED
from trlm_core.training.checkpoint import HISTORY, history_counts, read_history, read_lines
from trlm_core.training.job import METRICS, TrainingJob
from trlm_core.training.launch import OnSave, run_training
from trlm_core.training.reference import count_reference, reference_spec
from trlm_core.training.samples import SAMPLES
from trlm_core.training.specs import checkpoint_spec
from trlm_core.training.watch import ProcessAddress, Progress

SECONDS_TO_DELIVER = 60.0  # what the trainer could not: later, what is left is kept in the store for the next run


@dataclass(frozen=True)
class StageTraining:
    """What a stage's two jobs share."""

    store: Store
    recipe: Recipe
    stage: Stage
    dataset: Manifest
    start: Manifest
    execution: Execution
    run: RunAddress
    on_progress: Callable[[Progress], None]
    on_save: OnSave

    def checkpoint(self) -> Manifest:
        """Reused where its fingerprint is in the store; else trained, from where an earlier process was when it ended.

        Raises ValueError for a group that cannot share a step's sequences or meet, and what `run_training` raises.
        """
        check_group(self.execution, self.stage.training.sequences_per_step)
        if self.execution.node_rank:
            raise ValueError(f"node_rank: wanted 0, which holds the store, got {self.execution.node_rank}; others run `trlm train` alone")
        spec = checkpoint_spec(self.recipe, self.stage, self.dataset, self.start)

        def build(folder: Path) -> dict[str, Any]:
            reference = self._reference() if self.stage.training.trainer == "dpo" else None
            workspace = self.store.workspace(spec)
            self._run("checkpoint", spec, self.execution, folder, reference)
            deliver_or_keep(workspace / METRICS, self.run, SECONDS_TO_DELIVER, self.store.root / UNDELIVERED)
            for name in (HISTORY, SAMPLES, SKIPPED):
                if (workspace / name).exists():
                    shutil.copy(workspace / name, folder / name)
            return {**history_counts(read_history(folder)), "skipped_steps": len(read_lines(folder / SKIPPED))}

        return self.store.make(spec, build)

    def _reference(self) -> Path:
        spec = reference_spec(self.recipe, self.stage, self.dataset, self.start)

        def build(folder: Path) -> dict[str, Any]:
            self._run("reference", spec, on_this_node(self.execution), folder, None)  # the others wait for it
            return {"pairs": count_reference(folder)}

        return self.store.folder(self.store.make(spec, build))

    def _run(
        self, asks_for: Literal["checkpoint", "reference"], spec: Spec, execution: Execution, output: Path, reference: Path | None
    ) -> None:
        def make_job(scratch: Path) -> TrainingJob:
            return TrainingJob(
                fingerprint=spec.fingerprint,
                training=self.stage.training,
                execution=execution,
                reported_execution=self.stage.reported_execution,
                dataset=self.store.folder(self.dataset),
                parent=self.store.folder(self.start),
                reference=reference,
                asks_for=asks_for,
                output=output,
                workspace=self.store.workspace(spec),
                progress=scratch / "progress.json",
                error_files=scratch,
                run=self.run,
                launched_by=ProcessAddress.here(),
            )

        run_training(make_job, self.on_progress, self.on_save)


def on_this_node(execution: Execution) -> Execution:
    """What this node does alone: its processes can share the weights, one by itself has to hold them all."""
    sharding = execution.sharding if execution.processes > 1 else "none"
    return execution.model_copy(update={"nodes": 1, "rendezvous": None, "sharding": sharding})
