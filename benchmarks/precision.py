"""What weights in pure bfloat16 cost a training: `python benchmarks/precision.py --checkpoint FOLDER --dataset FOLDER --json`.

Stage 3 of `trlm-135m`, by our trainer, from the checkpoint of a finished stage 2 and its stage dataset of pairs (both lie in a store after
`make pipeline`), at a constant rate, with its weights and optimizer in bfloat16 (as the report's code has them) and in float32 under
bfloat16 autocast; same pairs, same seed, at stage 3's rate and at stages 1 and 2's.

moved: share of the weights that are not what they were, after one step and after the last, as `precision` stores them. margin and
accuracy: DPO's rewards, a mean over the last half of the steps; one pass, so every pair is new to the model.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from training_job import job_in
from transformers import TrainerCallback

from trlm_core.recipes.load import load_recipe
from trlm_core.recipes.schema import DPOTraining
from trlm_core.training.dpo import StepDPOTrainer
from trlm_core.training.reference import write_reference
from trlm_core.training.step_trainer import StepTrainer
from trlm_core.training.worker import make_trainer

RATES = (1e-5, 3e-4)  # stage 3's, and stages 1 and 2's
PRECISIONS = ("bf16", "bf16_mixed")


@dataclass(frozen=True)
class Asked:
    checkpoint: Path
    dataset: Path
    steps: int
    pairs: int  # of a step


@dataclass(frozen=True)
class Result:
    moved_after_first: float
    moved_after_last: float
    margin: float
    accuracy: float
    losses: list[float]


class Moved(TrainerCallback):
    """Shares of the weights that differ from the start's, after the first step and after the last."""

    def __init__(self, trainer: StepTrainer) -> None:
        model: Any = trainer.model
        self._weights = [*model.parameters()]
        self._start = [weight.detach().clone() for weight in self._weights]
        self.shares: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (1, state.max_steps):
            self.shares.append(self._share())

    def _share(self) -> float:
        moved = sum(int((weight != start).sum()) for weight, start in zip(self._weights, self._start, strict=True))
        return moved / sum(weight.numel() for weight in self._weights)


def stage3(asked: Asked, precision: str, rate: float) -> DPOTraining:
    training = load_recipe("trlm-135m", variant="reference").stage("stage3_dpo").training
    constant = {"lr_scheduler_type": "constant_with_warmup", "min_lr_rate": None, "warmup_ratio": 0.0}
    changes = {"precision": precision, "learning_rate": rate, "sequences_per_step": asked.pairs, **constant}
    return DPOTraining(**{**training.model_dump(), **changes})


def first_pairs(asked: Asked, folder: Path) -> Path:
    """A stage dataset of as many pairs as the steps take."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trlm_core.data.shards import shard_paths, write_shards
    from trlm_core.text.tokenizer import load_tokenizer

    table = pa.concat_tables([pq.read_table(path) for path in shard_paths(asked.dataset, "train")])
    wanted = asked.steps * asked.pairs
    if table.num_rows < wanted:
        raise SystemExit(f"{asked.dataset}: wanted {wanted} pairs, got {table.num_rows}; lower --steps or --pairs")
    folder.mkdir()
    write_shards(folder, "train", table.slice(0, wanted))
    load_tokenizer(asked.dataset / "tokenizer").save_pretrained(folder / "tokenizer")
    return folder


def reference_of(asked: Asked, precision: str, dataset: Path, folder: Path) -> Path:
    """The start's log-probs in this precision, as they are when the stage is trained in it."""
    trainer = make_trainer(job_in(folder, stage3(asked, precision, RATES[0]), dataset=dataset, parent=asked.checkpoint))
    assert isinstance(trainer, StepDPOTrainer)
    chosen, rejected = trainer.reference_log_probs(lambda done, total: None)
    write_reference(folder, chosen, rejected)
    return folder


def result_of(asked: Asked, training: DPOTraining, dataset: Path, reference: Path, folder: Path) -> Result:
    job = job_in(folder, training, dataset=dataset, parent=asked.checkpoint).model_copy(update={"reference": reference})
    trainer = make_trainer(job)
    moved = Moved(trainer)
    trainer.add_callback(moved)
    trainer.train()
    history = [line for line in trainer.state.log_history if "loss" in line]
    late = history[len(history) // 2 :]
    return Result(
        moved_after_first=moved.shares[0],
        moved_after_last=moved.shares[-1],
        margin=statistics.mean(line["rewards/margins"] for line in late),
        accuracy=statistics.mean(line["rewards/accuracies"] for line in late),
        losses=[line["loss"] for line in history],
    )


def results(asked: Asked, work: Path) -> dict[str, dict[str, Any]]:
    """By rate and precision."""
    dataset = first_pairs(asked, work / "dataset")
    told: dict[str, dict[str, Any]] = {f"{rate:g}": {} for rate in RATES}
    for precision in PRECISIONS:
        reference = reference_of(asked, precision, dataset, work / f"reference-{precision}")
        for rate in RATES:
            folder = work / f"{precision}-{rate:g}"
            result = result_of(asked, stage3(asked, precision, rate), dataset, reference, folder)
            told[f"{rate:g}"][precision] = asdict(result)
            moved = f"moved {result.moved_after_first:.1%} after one step, {result.moved_after_last:.1%} after {asked.steps}"
            rewards = f"margin {result.margin:.3f}, accuracy {result.accuracy:.1%}"
            print(f"{rate:g} {precision}: {moved}; {rewards}", file=sys.stderr, flush=True)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a finished stage 2")
    parser.add_argument("--dataset", type=Path, required=True, help="folder of stage 3's stage dataset (stage3_dpo-tokens)")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=8, help="of a step")
    parser.add_argument("--json", action="store_true")
    arguments = vars(parser.parse_args())
    as_json = arguments.pop("json")
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.manual_seed(0)
    asked = Asked(**arguments)
    with tempfile.TemporaryDirectory(prefix="precision-") as temporary:
        told = {**results(asked, Path(temporary)), "steps": asked.steps, "pairs": asked.pairs}
    print(json.dumps(told) if as_json else "\n".join(f"{name}: {value}" for name, value in told.items()))


if __name__ == "__main__":
    main()
