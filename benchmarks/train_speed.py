"""How many useful tokens a second a training step works through: `python benchmarks/train_speed.py --checkpoint FOLDER --json`.

The real model of FOLDER on the CPU, stage 2 as the report has it (nll on every token, its optimizer), on generated sequences whose lengths
are stage-2-like, divided by 16: log-normal, cut at 4096 / 16. Ours, as `trlm train` makes it, against plain TRL with the report's batch of
32 x 4, in alternation, each as a process of its own. Both get the same 128 sequences in every step, the same precision and all cores;
neither gets NEFTune noise, which they would draw differently. Plain TRL recomputes activations, which is its default and the report's
setting; `--keep-activations` takes that away from it: faster, in more memory. Ours has the allocator's settings that `trlm train` starts
it with.

speedup: of useful tokens a second, medians of all steps but a process's first. loss_gap: the largest relative difference between the losses
of a step. Peaks are of resident memory, in MB of 10^6 bytes. share_of_peak: useful operations (trlm_core/training/flops.py) a
second, of this machine's best matrix product in the same precision.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Linux counts this process's own memory into a child's peak until the child runs its program: nothing large is imported here.
if TYPE_CHECKING:
    from transformers import Trainer

    from trlm_core.recipes.schema import SFTTraining

DIVISOR = 16
MEDIAN, SPREAD, LONGEST, SHORTEST = (
    1_530 / DIVISOR,
    0.7,
    4_096 // DIVISOR,
    8,
)  # at batches of 32 they leave 44 % useful tokens, as stage 2's
REPORTED_BATCH = 32
IGNORED_LABEL = -100
PEAK_SECONDS = 5.0


@dataclass(frozen=True)
class Asked:
    checkpoint: str
    steps: int
    sequences: int  # of a step
    precision: str
    keep_activations: bool
    seed: int


@dataclass(frozen=True)
class Trained:
    """What a process that trained tells, a value a step."""

    seconds: list[float]
    losses: list[float]
    useful_tokens: list[int]
    useful_share: float  # of the tokens that were computed
    useful_flops: float  # of a step


@dataclass(frozen=True)
class Run:
    told: dict[str, Any]
    peak_mb: float


def sequences(asked: Asked) -> list[list[int]]:
    """Token ids of all steps' sequences; what they say does not matter to the speed."""
    import numpy as np

    random = np.random.default_rng(asked.seed)
    drawn = random.lognormal(np.log(MEDIAN), SPREAD, asked.steps * asked.sequences)
    return [random.integers(10, 40_000, int(length)).tolist() for length in drawn.clip(SHORTEST, LONGEST)]


def labelled(ids: Sequence[int]) -> dict[str, Any]:
    """Loss on every token that is predicted, as the report has it."""
    return {"input_ids": [*ids], "labels": [IGNORED_LABEL, *ids[1:]]}


def stage2(asked: Asked) -> "SFTTraining":
    from trlm_core.recipes.load import load_recipe
    from trlm_core.recipes.schema import SFTTraining

    training = load_recipe("trlm-135m", variant="report").stage("stage2_sft_think").training
    changes = {"epochs": 1, "sequences_per_step": asked.sequences, "neftune_noise_alpha": None, "precision": asked.precision}
    return SFTTraining(**{**training.model_dump(), **changes})


def our_trainer(asked: Asked, folder: Path) -> "Trainer":
    """As the process that `trlm train` starts makes it."""
    import pyarrow as pa
    from training_job import job_in

    from trlm_core.data.shards import write_shards
    from trlm_core.data.stage_dataset import SFT_SCHEMA
    from trlm_core.text.tokenizer import load_tokenizer
    from trlm_core.training.worker import make_trainer

    (folder / "dataset").mkdir()
    about = {"source": "generated", "fault": None, "origin": "generated"}
    rows = [{**labelled(ids), **about} for ids in sequences(asked)]
    write_shards(folder / "dataset", "train", pa.Table.from_pylist(rows, schema=SFT_SCHEMA))
    load_tokenizer(Path(asked.checkpoint)).save_pretrained(folder / "dataset" / "tokenizer")
    job = job_in(folder, stage2(asked), dataset=folder / "dataset", parent=Path(asked.checkpoint))
    return make_trainer(job)


def plain_trainer(asked: Asked, folder: Path) -> "Trainer":
    """TRL's own, on rows that lie in the order of the steps."""
    import datasets
    import torch
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from trlm_core.text.tokenizer import load_tokenizer
    from trlm_core.training.batching import plan_steps
    from trlm_core.training.checkpoint import load_model
    from trlm_core.training.hardware import usable_cores

    torch.set_num_threads(usable_cores())
    training, all_ids = stage2(asked), sequences(asked)
    steps = plan_steps(len(all_ids), epochs=1, sequences_per_step=asked.sequences, seed=training.seed)
    batch = min(REPORTED_BATCH, asked.sequences)
    config = SFTConfig(
        output_dir=str(folder),
        max_steps=asked.steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=asked.sequences // batch,
        train_sampling_strategy="sequential",
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        warmup_steps=training.warmup_ratio,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type=training.lr_scheduler_type,
        loss_type=training.loss_type,
        bf16=asked.precision == "bf16_mixed",
        use_cpu=True,
        gradient_checkpointing=not asked.keep_activations,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = datasets.Dataset.from_list([labelled(all_ids[row]) for step in steps for row in step])
    model = load_model(Path(asked.checkpoint), training.precision)
    return SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=load_tokenizer(Path(asked.checkpoint)))


def trained(asked: Asked, trainer: "Trainer", cuts_of: Any) -> Trained:
    """`cuts_of`: from the lengths of a step's sequences to its micro-batches."""
    import time

    from transformers import TrainerCallback

    from trlm_core.training.batching import plan_steps
    from trlm_core.training.flops import Shape, padded_lengths, training_flops

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    drawn = [len(ids) for ids in sequences(asked)]
    plan = plan_steps(len(drawn), epochs=1, sequences_per_step=asked.sequences, seed=stage2(asked).seed)
    lengths = [[drawn[row] for row in step] for step in plan]
    padded = sum(sum(padded_lengths(step, cuts_of(step))) for step in lengths)
    shape = Shape.of(trainer.model.config)  # type: ignore[union-attr]
    flops = [training_flops(shape, step, scored=sum(step) - len(step)) for step in lengths]
    return Trained(
        seconds=[ended - began for began, ended in itertools.pairwise(marks)],
        losses=[line["loss"] for line in trainer.state.log_history if "loss" in line],
        useful_tokens=[sum(step) for step in lengths],
        useful_share=sum(drawn) / padded,
        useful_flops=sum(flops) / len(flops),
    )


def once(name: str, asked: Asked, folder: Path) -> dict[str, Any]:
    """In the child."""
    import torch

    from trlm_core.training.batching import cut_micro_batches
    from trlm_core.training.flops import matmul_peak
    from trlm_core.training.hardware import CPU_TOKENS, usable_cores

    if name == "peak":
        torch.set_num_threads(usable_cores())
        dtype = torch.bfloat16 if asked.precision == "bf16_mixed" else torch.float32
        return {"flops_per_second": matmul_peak("cpu", dtype, PEAK_SECONDS)}
    if name == "ours":
        return asdict(trained(asked, our_trainer(asked, folder), lambda lengths: cut_micro_batches(lengths, CPU_TOKENS)))
    batch = min(REPORTED_BATCH, asked.sequences)
    cuts = [[*range(at, at + batch)] for at in range(0, asked.sequences, batch)]
    return asdict(trained(asked, plain_trainer(asked, folder), lambda lengths: cuts))


def run_of(name: str, asked: Asked) -> Run:
    """One process. SystemExit with its last words where it fails."""
    from trlm_core.training.hardware import FEW_SHAPES, HUGE_PAGES

    settings = {**HUGE_PAGES, **FEW_SHAPES}
    plain = {key: value for key, value in os.environ.items() if key not in settings}
    environment = {**plain, **(settings if name == "ours" else {}), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory(prefix="train-speed-") as temporary:
        folder = Path(temporary)
        command = [sys.executable, __file__, "--once", name, json.dumps(asdict(asked)), str(folder)]
        with (folder / "output.txt").open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            last = (folder / "output.txt").read_text(errors="replace")[-3_000:]
            raise SystemExit(f"{name}: wanted exit code 0, got {process.returncode}:\n{last}")
        run = Run(json.loads((folder / "told.json").read_text()), usage.ru_maxrss * 1024 / 1e6)
    seconds = ", ".join(f"{each:.1f}" for each in run.told.get("seconds", []))
    print(f"{name}: steps of {seconds} s, peak {run.peak_mb:,.0f} MB" if seconds else f"{name}: {run.told}", file=sys.stderr, flush=True)
    return run


def speeds(runs: Sequence[Run]) -> list[float]:
    """Useful tokens a second of every step but a process's first, where shapes and pages are new."""
    return [tokens / seconds for run in runs for tokens, seconds in [*zip(run.told["useful_tokens"], run.told["seconds"], strict=True)][1:]]


def gap(ours: Run, baseline: Run) -> float:
    return max(abs(a - b) / b for a, b in zip(ours.told["losses"], baseline.told["losses"], strict=True))


def figures(asked: Asked, rounds: int) -> dict[str, object]:
    peak = run_of("peak", asked).told["flops_per_second"]
    runs: dict[str, list[Run]] = {"ours": [], "baseline": []}
    for _ in range(rounds):
        for name, each in runs.items():
            each.append(run_of(name, asked))
    medians = {name: statistics.median(speeds(each)) for name, each in runs.items()}
    peaks = {name: statistics.median(run.peak_mb for run in each) for name, each in runs.items()}
    told = {name: each[0].told for name, each in runs.items()}
    useful = told["ours"]["useful_flops"] / statistics.mean(told["ours"]["useful_tokens"])  # of a token
    return {
        "speedup": round(medians["ours"] / medians["baseline"], 2),
        "loss_gap": max(gap(ours, baseline) for ours, baseline in zip(*runs.values(), strict=True)),
        "peak_mb": round(peaks["ours"]),
        "baseline_peak_mb": round(peaks["baseline"]),
        "peak_share": round(peaks["ours"] / peaks["baseline"], 2),
        "tokens_per_second": {name: [round(value, 1) for value in speeds(each)] for name, each in runs.items()},
        "useful_share": {name: round(each["useful_share"], 3) for name, each in told.items()},
        "useful_gflop_per_step": round(told["ours"]["useful_flops"] / 1e9),
        "matmul_peak_gflops": round(peak / 1e9),
        "share_of_peak": {name: round(value * useful / peak, 3) for name, value in medians.items()},
        "losses": {name: each["losses"] for name, each in told.items()},
        "asked": asdict(asked),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="folder of the model, such as a base in a store after `make pipeline`")
    parser.add_argument("--steps", type=int, default=3, help="of each process; the first is not timed")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=128, help="of a step; fewer for a try")
    parser.add_argument("--precision", choices=["bf16_mixed", "float32"], default="bf16_mixed")
    parser.add_argument("--keep-activations", action="store_true", help="plain TRL does not recompute them")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = vars(parser.parse_args())
    rounds, as_json = arguments.pop("rounds"), arguments.pop("json")
    asked = Asked(**arguments)
    if asked.steps < 2 or asked.sequences % min(REPORTED_BATCH, asked.sequences):
        raise SystemExit(f"wanted two steps or more and a multiple of {REPORTED_BATCH} sequences, got {asked.steps} and {asked.sequences}")
    told = figures(asked, rounds)
    print(json.dumps(told) if as_json else "\n".join(f"{name}: {value}" for name, value in told.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        _, _, which, asked_for, where = sys.argv
        (Path(where) / "told.json").write_text(json.dumps(once(which, Asked(**json.loads(asked_for)), Path(where))))
    else:
        main()
