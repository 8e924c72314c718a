"""The process that trains: `torchrun -m trlm_core.training.worker job.json`. One job, one artifact's folder."""

import faulthandler
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

import datasets
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trlm_core.artifacts.aside import write_aside
from trlm_core.artifacts.fingerprint import file_sha256
from trlm_core.data.shards import shard_paths
from trlm_core.metric_spool import MetricSpool
from trlm_core.recipes.schema import DPOTraining, SFTTraining, Training
from trlm_core.system_metrics import system_metrics
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.tracking import finish
from trlm_core.training.bad_steps import SKIPPED, BadSteps, origin_in
from trlm_core.training.batching import plan_steps
from trlm_core.training.checkpoint import HISTORY, append_line, load_model, read_history, read_lines, rewind, save_checkpoint
from trlm_core.training.dpo import StepDPOTrainer, pair_collator
from trlm_core.training.errors import Ending, GroupError, MicroBatchTooLargeError, StoppedError, write_ending
from trlm_core.training.group import agreed, is_first_of_machine, leave_group_of_one, share_of_this, told_by_first
from trlm_core.training.hardware import BUDGET, Hardware, detect_hardware, halve_budget, within_budget
from trlm_core.training.job import METRICS, TrainingJob
from trlm_core.training.layers import compile_layers
from trlm_core.training.reference import read_reference, write_reference
from trlm_core.training.samples import SAMPLES, Samples
from trlm_core.training.saver import Often, Saver
from trlm_core.training.saves import SAVE_NAME, Save, discard_after, newest_good, save_folder
from trlm_core.training.sft import StepSFTTrainer, sft_steps
from trlm_core.training.sharding import is_sharded, leave_to_shard, shard, whole_weights
from trlm_core.training.step_log import ProgressFile, StepLog
from trlm_core.training.step_trainer import StepTrainer
from trlm_core.training.trl_config import dpo_config, sft_config
from trlm_core.training.watch import Progress, end_with, write_progress

SECONDS_TO_DELIVER = 20.0
STOPPED = 143  # as of a process that SIGTERM ended


def train(job: TrainingJob, stop: "StopSignal") -> None:
    """Train the job's checkpoint from its newest good save, or from the start, and write it. Raises what the trainer raises."""
    trainer, tokenizer = make_trainer(job), load_tokenizer(job.dataset / "tokenizer")
    save = _save_to_go_on_from(trainer, job.workspace)
    skipped = {line["step"] for line in read_lines(job.workspace / SKIPPED)}
    norms = [line["grad_norm"] for line in read_history(job.workspace) if line["step"] not in skipped]
    trainer.bad_steps.remember(told_by_first(norms))  # another machine's history can be of an earlier training
    with _spool(job) as spool:
        if spool is not None:
            trainer.add_callback(StepLog(job.workspace, spool))
        if is_first_of_machine():
            trainer.add_callback(ProgressFile(job.progress))
            trainer.heartbeat = job.progress.touch
        if spool is not None or is_sharded(trainer.model):
            trainer.add_callback(Samples(job.workspace, tokenizer, spool, job.execution.sample_steps))
        stop.tell(trainer)
        try:
            trainer.train(resume_from_checkpoint=str(save) if save else None)
        except (StoppedError, MicroBatchTooLargeError) as error:
            # The weights are those of the last step. Of a group, only a stop is everybody's.
            if isinstance(error, StoppedError) or trainer.accelerator.num_processes == 1:
                trainer.saver.save()
            raise
        if trainer.agreed(trainer.stop_asked):  # in the last step; what follows can take longer than a process is given to end
            trainer.saver.save()
            raise StoppedError(f"stopped after its last step, {trainer.state.global_step}, as it was asked to")
    assert isinstance(trainer.model, PreTrainedModel)
    weights = whole_weights(trainer.model) if is_sharded(trainer.model) else None
    if trainer.is_world_process_zero():
        save_checkpoint(trainer.model, tokenizer, job.output, weights)


def _save_to_go_on_from(trainer: StepTrainer, workspace: Path) -> Path | None:
    """The first process's choice. Raises GroupError, in every process, where another machine does not have it."""
    saves, found = trainer.saver.saves, None
    if trainer.is_world_process_zero():
        found = newest_good(saves)
        _rewind(workspace, saves, found)
    told = told_by_first((found[1].step, file_sha256(found[0] / SAVE_NAME)) if found else None)
    if told is None:
        return None
    step, digest = told
    folder = save_folder(saves, step)
    if trainer.agreed(not _has(folder, digest)):
        raise GroupError(
            f"{saves}: wanted the first node's save of step {step} on every node, got none or another on one; "
            "use a store whose folder every node sees"
        )
    return folder


def _has(folder: Path, digest: str) -> bool:
    """Whether the save that lies there is the one whose save.json has this sha256, and not one of the same step."""
    listed = folder / SAVE_NAME
    return listed.is_file() and file_sha256(listed) == digest


def _rewind(workspace: Path, saves: Path, found: tuple[Path, Save] | None) -> None:
    """What lies there is as it was when the save was made; without one, there is nothing."""
    step = found[1].step if found else 0
    discard_after(saves, step)
    write_aside(workspace / HISTORY, (found[0] / HISTORY).read_text() if found else "")
    for name in (SAMPLES, SKIPPED):
        rewind(workspace / name, step)


def compute_reference(job: TrainingJob) -> None:
    """Write the start's log-probs of the job's pairs."""
    trainer, began = make_trainer(job), time.monotonic()
    assert isinstance(trainer, StepDPOTrainer)

    def on_pairs(done: int, total: int) -> None:
        seconds = time.monotonic() - began
        write_progress(job.progress, Progress(phase="reference", step=done, steps=total, done_before=0, seconds=seconds, loss=None))

    chosen, rejected = trainer.reference_log_probs(on_pairs if trainer.is_world_process_zero() else lambda done, total: None)
    if trainer.is_world_process_zero():
        write_reference(job.output, chosen, rejected)


def make_trainer(job: TrainingJob) -> StepTrainer:
    hardware = _hardware(job)
    torch.set_num_threads(hardware.threads)
    rows = datasets.Dataset.from_parquet([*shard_paths(job.dataset, "train")], cache_dir=str(job.workspace / "arrow"))
    assert isinstance(rows, datasets.Dataset)
    tokenizer = load_tokenizer(job.dataset / "tokenizer")
    model = load_model(job.parent, job.training.precision, hardware.laid_attention)
    if hardware.compile:
        compile_layers(model)
    sharded = job.execution.sharding == "full"
    if sharded:
        leave_to_shard(model)
    make = _dpo_trainer if isinstance(job.training, DPOTraining) else _sft_trainer
    trainer = make(job, hardware, rows, model, tokenizer)
    if sharded:
        shard(model, hardware.device)

    def on_skip(skipped: dict[str, Any]) -> None:
        if trainer.is_world_process_zero():
            append_line(job.workspace / SKIPPED, skipped)

    trainer.bad_steps = BadSteps(job.training.bad_steps, job.training.max_grad_norm_ratio, origin_in(rows), on_skip)
    trainer.saver = Saver(trainer, job.workspace, _often(job))
    trainer.add_callback(trainer.saver)
    # For the launcher, where this process is killed: from here on a micro-batch's memory is what it lacks, before it was the model's.
    (job.error_files / BUDGET).write_text(str(hardware.tokens_per_micro_batch))
    return trainer


def _sft_trainer(
    job: TrainingJob, hardware: Hardware, rows: datasets.Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> StepTrainer:
    training, steps = job.training, _steps(job.training, len(rows))
    assert isinstance(training, SFTTraining)
    pad: Any = tokenizer.pad_token_id
    return StepSFTTrainer(
        model=model,
        args=sft_config(training, hardware, steps=len(steps), output=job.workspace / "aside"),
        train_dataset=rows,
        processing_class=tokenizer,
        step_dataset=sft_steps(
            rows,
            steps,
            pad=pad,
            tokens_per_micro_batch=hardware.tokens_per_micro_batch,
            laid=hardware.laid_attention is not None,
            share=share_of_this(),
        ),
        noise_alpha=training.neftune_noise_alpha,
    )


def _dpo_trainer(
    job: TrainingJob, hardware: Hardware, rows: datasets.Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> StepTrainer:
    training, steps = job.training, _steps(job.training, len(rows))
    assert isinstance(training, DPOTraining)
    pad: Any = tokenizer.pad_token_id
    return StepDPOTrainer(
        model=model,
        args=dpo_config(training, hardware, steps=len(steps), output=job.workspace / "aside"),
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=pair_collator(pad),
        tokens_per_micro_batch=hardware.tokens_per_micro_batch,
        steps=steps,
        reference=read_reference(job.reference) if job.reference else None,
        share=share_of_this(),
    )


def _hardware(job: TrainingJob) -> Hardware:
    """Sequences lie end to end in SFT alone, and the attention for it has no float32."""
    hardware = within_budget(detect_hardware(job.execution, job.reported_execution), job.workspace)
    can_lie = job.training.trainer == "sft" and job.training.precision != "float32"
    return hardware if can_lie else replace(hardware, laid_attention=None)


def _steps(training: Training, rows: int) -> list[list[int]]:
    return plan_steps(rows, epochs=training.epochs, sequences_per_step=training.sequences_per_step, seed=training.seed)


def _often(job: TrainingJob) -> Often:
    reported = job.reported_execution.save_steps if job.reported_execution else None
    return Often(steps=job.execution.save_steps or reported, seconds=job.execution.save_seconds, keep=job.execution.keep_saves)


@contextmanager
def _spool(job: TrainingJob) -> Iterator[MetricSpool | None]:
    """Metrics on their way to MLflow, the machine's own among them. Of a group, its first process has it."""
    if share_of_this().rank:
        yield None
        return
    spool = MetricSpool(job.workspace / METRICS, job.run)
    try:
        with system_metrics(spool):
            yield spool
    finally:
        spool.close(SECONDS_TO_DELIVER)


class StopSignal:
    """SIGTERM, while the block runs: before the first step it ends the work at once; later the trainer saves what is done first."""

    def __init__(self) -> None:
        self._trainer: StepTrainer | None = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def tell(self, trainer: StepTrainer) -> None:
        self._trainer = trainer

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._trainer is None:
            raise StoppedError("stopped before the first step, as it was asked to")
        self._trainer.stop_asked = True


def main(path: str) -> None:
    leave_group_of_one()
    faulthandler.register(signal.SIGUSR1)  # the launcher asks where a process stands that shows no progress
    job = TrainingJob.model_validate_json(Path(path).read_text())
    end_with(job.launched_by)
    status = "FAILED"
    try:
        with StopSignal() as stop:
            job = agreed(job, _hardware(job))
            compute_reference(job) if job.asks_for == "reference" else train(job, stop)
        status = "FINISHED"
    except Exception as error:
        write_ending(job.error_files, share_of_this().rank, Ending.of(error, traceback.format_exc()))  # torchrun's own report would bury it
        if isinstance(error, MicroBatchTooLargeError) and error.rows > 1:
            halve_budget(job.workspace, error.tokens)
        if not isinstance(error, StoppedError):
            raise
        status = "KILLED"
        sys.exit(STOPPED)
    finally:
        if job.run is not None and job.asks_for == "checkpoint" and share_of_this().rank == 0:
            finish(job.run, status)


if __name__ == "__main__":
    main(sys.argv[1])
