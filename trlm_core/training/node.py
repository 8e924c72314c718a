"""A further machine of a training: it works on its part of every step and keeps nothing.

The first machine has the MLflow run, the saves, the store's lease, the checkpoint and what is published. The others read stage dataset,
start and reference log-probs from the store, wait for what the first still makes of them, join each of its tries, and end with it.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.recipes.execution import Execution, check_group
from trlm_core.recipes.schema import Recipe, Stage
from trlm_core.training.errors import RendezvousError, TrainingFailedError
from trlm_core.training.job import TrainingJob
from trlm_core.training.launch import SECONDS_TO_MEET, run_training
from trlm_core.training.reference import reference_spec
from trlm_core.training.specs import checkpoint_spec, start_spec
from trlm_core.training.watch import ProcessAddress, Progress

logger = logging.getLogger(__name__)

POLL_SECONDS = 2.0
REMIND_SECONDS = 60.0
SECONDS_TO_WRITE = SECONDS_TO_MEET / 2  # the checkpoint: so that the first node, where it tries again, still waits for this one
# What is left of the first node's try: its torchrun holds the meeting's store for the 30 s that it gives its processes, and who came
# sooner would join a group that is dead.
SECONDS_BETWEEN_TRIES = 40.0


@dataclass(frozen=True)
class Node:
    """What a further machine takes part in."""

    store: Store
    recipe: Recipe
    stage: Stage
    dataset: Manifest
    parent: Manifest
    execution: Execution
    on_progress: Callable[[Progress], None]

    def take_part(self) -> None:
        """Until the checkpoint is finished: this node joins every try of the first one.

        Raises ValueError for a group that cannot meet or does not agree, FullDiskError, RendezvousError where the first node does not come.
        """
        check_group(self.execution, self.stage.training.sequences_per_step)
        start = self._start()
        spec = checkpoint_spec(self.recipe, self.stage, self.dataset, start)
        last: TrainingFailedError | None = None
        while self.store.find(spec) is None:
            reference = self._reference(start) if self.stage.training.trainer == "dpo" else None
            try:
                self._run(spec, start, reference)
                self._await_checkpoint(spec)
            except RendezvousError as error:
                if self.store.find(spec) is None:
                    raise error from last
            except TrainingFailedError as error:  # most often the first node's process is gone; where it comes again, this one does
                last = error
                logger.warning("node %d joins the next try, since this one ended: %s", self.execution.node_rank, error)
                time.sleep(SECONDS_BETWEEN_TRIES)
        logger.info("%s is finished", spec.place)

    def _await_checkpoint(self, spec: Spec) -> None:
        """Where the first node is killed while it writes, it tries again, and waits for this one."""
        ended = time.monotonic()
        while self.store.find(spec) is None and time.monotonic() - ended < SECONDS_TO_WRITE:
            time.sleep(POLL_SECONDS)

    def _start(self) -> Manifest:
        if self.stage.rendering.new_tokens is None:
            return self.parent
        return _awaited(self.store, start_spec(self.recipe, self.stage, self.dataset, self.parent))

    def _reference(self, start: Manifest) -> Path:
        return self.store.folder(_awaited(self.store, reference_spec(self.recipe, self.stage, self.dataset, start)))

    def _run(self, spec: Spec, start: Manifest, reference: Path | None) -> None:
        def make_job(scratch: Path) -> TrainingJob:
            return TrainingJob(
                fingerprint=spec.fingerprint,
                training=self.stage.training,
                execution=self.execution,
                reported_execution=self.stage.reported_execution,
                dataset=self.store.folder(self.dataset),
                parent=self.store.folder(start),
                reference=reference,
                asks_for="checkpoint",
                output=scratch,
                workspace=self.store.workspace(spec),  # the saves that the first node makes
                progress=scratch / "progress.json",
                error_files=scratch,
                run=None,
                launched_by=ProcessAddress.here(),
            )

        run_training(make_job, self.on_progress)


def _awaited(store: Store, spec: Spec) -> Manifest:
    """What the first node makes, for as long as that takes: the log says what is waited for, at once and then a line a minute."""
    told: float | None = None
    while (found := store.find(spec)) is None:
        if told is None or time.monotonic() - told > REMIND_SECONDS:
            logger.info("waiting for %s, which the first node makes", spec.place)
            told = time.monotonic()
        time.sleep(POLL_SECONDS)
    return found
