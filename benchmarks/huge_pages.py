"""What pages of 2 MiB do for a training step on a CPU: `python benchmarks/huge_pages.py --checkpoint FOLDER`.

Trains the same steps in fresh processes, with and without trlm_core.training.hardware.HUGE_PAGES, in alternation; prints the median
tokens a second of both and their ratio as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

from trlm_core.training.hardware import HUGE_PAGES


def tokens_per_second(checkpoint: str, steps: int) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(10, 40_000, (8, 50), generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    return ids.numel() / statistics.median(seconds[1:])


def measured(checkpoint: str, steps: int, extra: dict[str, str]) -> float:
    command = [sys.executable, __file__, "--checkpoint", checkpoint, "--steps", str(steps), "--once"]
    plain = {key: value for key, value in os.environ.items() if key not in HUGE_PAGES}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**plain, **extra})
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help="measure in this process only")
    arguments = parser.parse_args()
    if arguments.once:
        print(tokens_per_second(arguments.checkpoint, arguments.steps))
        return
    huge, small = [], []
    for _ in range(arguments.rounds):
        huge.append(measured(arguments.checkpoint, arguments.steps, HUGE_PAGES))
        small.append(measured(arguments.checkpoint, arguments.steps, {}))
    ours, baseline = statistics.median(huge), statistics.median(small)
    print(json.dumps({"tokens_per_second": round(ours), "baseline": round(baseline), "speedup": round(ours / baseline, 2)}))


if __name__ == "__main__":
    main()
