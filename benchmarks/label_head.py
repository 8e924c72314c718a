"""What scoring labelled positions alone does for a step on a CPU: `python benchmarks/label_head.py --checkpoint FOLDER`.

The same batch (8 sequences of 50 tokens, 30 of each labelled) forward and backward through TRL's fused head and through ours, in
alternation, in one process; prints the median seconds of both, their ratio, and the relative gap of the losses, as JSON.
"""

import argparse
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.label_head import score_labels_only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    models = {name: AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32) for name in ("baseline", "ours")}
    for model in models.values():
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    score_labels_only(models["ours"])
    ids = torch.randint(10, 40_000, (8, 50), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :20] = IGNORED
    seconds: dict[str, list[float]] = {name: [] for name in models}
    losses = {}
    for _ in range(arguments.rounds):
        for name, model in models.items():
            began = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                out = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels, fused_lm_head=True)
            loss = -out.log_probs.sum() / out.label_mask.sum()
            loss.backward()
            seconds[name].append(time.perf_counter() - began)
            losses[name] = loss.item()
            model.zero_grad()
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    gap = abs(losses["ours"] - losses["baseline"]) / losses["baseline"]
    speedup = round(medians["baseline"] / medians["ours"], 2)
    print(
        json.dumps({"seconds": round(medians["ours"], 3), "baseline": round(medians["baseline"], 3), "speedup": speedup, "loss_gap": gap})
    )


if __name__ == "__main__":
    main()
