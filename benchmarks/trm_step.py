"""What a supervision step of a TRM costs beside its matrix products alone: `python benchmarks/trm_step.py --json`.

One thread, float32. A step is the recursion on a language model's latents (64 of them, 576 wide, 8 rows, n = 6, T = 3, two layers: the
recipe `trm-smollm2-135m`), forward and backward, with head, halting head and losses, without the optimizer. Its products are those of
every layer pass (projections, scores, attention's values) and of the head, in the same shapes, layouts and numbers, two more for each that
has a gradient; what recomputes in the backward is not counted. Step and products alternate in one process with the allocator's settings
that `trlm trm run` has.

ratio: step over products, medians; wanted at most 1.2. time_ratio_when_L_doubles: a step on 128 latents over one on 64;
flop_ratio_when_L_doubles is what their products say, and 2 where attention is nothing. memory_ratio_N16_over_N4: by how much resident
memory grows in 16 steps of deep supervision where an example gets 16, over where it gets 4 (a process each, with the optimizer).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from trlm_core.training.hardware import HUGE_PAGES
from trlm_core.trm.blocks import SwiGLU
from trlm_core.trm.config import PAPER, HiddenStateConfig, RecursionConfig, depth_of_a_step
from trlm_core.trm.grid_training import GridRecipe, GridTrainer
from trlm_core.trm.grid_trm import GridTRM
from trlm_core.trm.hidden_state_trm import HiddenStateTRM
from trlm_core.trm.puzzles import Puzzles

WANTED = 1.2
RECURSION = replace(PAPER, width=576, n_heads=9)
BATCH, LATENTS = 8, 64
MEMORY_STEPS, N_TOKENS = 16, 10
MB = 1e6


@dataclass(frozen=True)
class Product:
    """Of `stacked` matrices: [rows, inner] times [inner, columns]. The right one lies transposed, as weights and keys do, or not."""

    stacked: int
    rows: int
    inner: int
    columns: int
    right_is_transposed: bool

    @property
    def flops(self) -> int:
        return 2 * self.stacked * self.rows * self.inner * self.columns

    def backward(self) -> "tuple[Product, Product]":
        """The gradients of the left and of the right matrix."""
        return (
            Product(self.stacked, self.rows, self.columns, self.inner, not self.right_is_transposed),
            Product(self.stacked, self.columns, self.rows, self.inner, False),
        )


def products_of_a_layer(config: RecursionConfig, batch: int, positions: int) -> list[Product]:
    width, rows, inner = config.width, batch * positions, SwiGLU(config.width, 1.0).down.in_features
    heads, head_width = batch * config.n_heads, config.width // config.n_heads
    return [
        Product(1, rows, width, 3 * width, True),
        Product(heads, positions, head_width, positions, True),
        Product(heads, positions, positions, head_width, False),
        Product(1, rows, width, width, True),
        Product(1, rows, width, 2 * inner, True),
        Product(1, rows, inner, width, True),
    ]


def products_of_a_step(config: RecursionConfig, batch: int, positions: int) -> list[Product]:
    """In order: forwards, then the backwards of the last latent recursion, which alone has any."""
    layer = products_of_a_layer(config, batch, positions)
    head = Product(1, batch * positions, config.width, config.width, True)
    backward = [gradient for each in reversed(layer) for gradient in each.backward()]
    n_with_gradient = (config.n_latent_steps + 1) * config.n_layers
    return [*layer * depth_of_a_step(config), head, *head.backward(), *backward * n_with_gradient]


def operands(products: Sequence[Product]) -> dict[Product, tuple[Tensor, Tensor]]:
    def right(each: Product) -> Tensor:
        if each.right_is_transposed:
            return torch.randn(each.stacked, each.columns, each.inner).mT
        return torch.randn(each.stacked, each.inner, each.columns)

    return {each: (torch.randn(each.stacked, each.rows, each.inner), right(each)) for each in dict.fromkeys(products)}


def multiplied(products: Sequence[Product], matrices: dict[Product, tuple[Tensor, Tensor]]) -> None:
    for each in products:
        left, right = matrices[each]
        _ = left[0] @ right[0] if each.stacked == 1 else torch.bmm(left, right)


class Step:
    """A forward and backward of a supervision step from its start."""

    def __init__(self, config: RecursionConfig, batch: int, positions: int) -> None:
        torch.manual_seed(0)
        self.model = HiddenStateTRM(HiddenStateConfig(config.width, positions, config))
        shape = (batch, positions, config.width)
        self.latents_BMd, self.target_BMd = torch.randn(shape), torch.randn(shape)

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        x_BMd = 2**-0.5 * (self.latents_BMd + self.model.slots_Md)
        y_BMd, _, q_B = self.model.step(x_BMd, *self.model.init_state(x_BMd))
        halting = functional.binary_cross_entropy_with_logits(q_B, torch.zeros_like(q_B))
        (functional.mse_loss(self.model.head(y_BMd), self.target_BMd) + 0.5 * halting).backward()


def seconds_of(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def alternately(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, a round after the other; the first round is not told."""
    told: dict[str, list[float]] = {name: [] for name in calls}
    for counted in range(rounds + 1):
        for name, call in calls.items():
            seconds = seconds_of(call)
            if counted:
                told[name].append(round(seconds, 4))
    return told


def check_projections(products: Sequence[Product], step: Callable[[], object]) -> None:
    """That the products are those of the step: torch counts all but attention's, and beside them the halting head's, which is nothing."""
    with FlopCounterMode(display=False) as counter:
        step()
    ours = sum(each.flops for each in products if each.stacked == 1)
    assert abs(counter.get_total_flops() / ours - 1) < 1e-4, (counter.get_total_flops(), ours)


def timed(rounds: int) -> dict[str, object]:
    """In the child."""
    torch.set_num_threads(1)
    products, doubled = (products_of_a_step(RECURSION, BATCH, positions) for positions in (LATENTS, 2 * LATENTS))
    matrices = operands(products)
    calls: dict[str, Callable[[], object]] = {
        "step": Step(RECURSION, BATCH, LATENTS),
        "products": lambda: multiplied(products, matrices),
        "step_2L": Step(RECURSION, BATCH, 2 * LATENTS),
    }
    check_projections(products, calls["step"])
    seconds = alternately(calls, rounds)
    flops = sum(each.flops for each in products)
    return {"seconds": seconds, "gflop": round(flops / 1e9, 1), "flop_ratio": sum(each.flops for each in doubled) / flops}


def resident_growth(n_supervision_steps: int) -> dict[str, float]:
    """In the child: MB that the peak grows by, from all that is made before the first step to the last."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = replace(RECURSION, n_supervision_steps=n_supervision_steps)
    grids_NL = torch.randint(N_TOKENS, (32, LATENTS))
    recipe = GridRecipe(MEMORY_STEPS, BATCH, 1e-4, 1.0, 1, 0.1, 1.0, 0.999, seed=0, precision="float32")
    trainer = GridTrainer(GridTRM(config, N_TOKENS, LATENTS), Puzzles(grids_NL, grids_NL), recipe)
    before = peak_mb()
    trainer.train()
    return {"before": before, "growth": peak_mb() - before}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def child(what: str, number: int) -> dict[str, object]:
    """What a process of its own tells. CalledProcessError where it fails; its errors go to ours."""
    plain = {key: value for key, value in os.environ.items() if key not in HUGE_PAGES}
    command = [sys.executable, __file__, "--once", what, str(number)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**plain, **HUGE_PAGES, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout)


def spread(seconds: Sequence[float]) -> Iterator[float]:
    yield from (min(seconds), statistics.median(seconds), max(seconds))


def figures(rounds: int) -> dict[str, object]:
    times = child("timed", rounds)
    memory = {n: child("memory", n) for n in (4, 16)}
    seconds: dict[str, list[float]] = times["seconds"]  # type: ignore[assignment]
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    growth = {n: float(each["growth"]) for n, each in memory.items()}  # type: ignore[arg-type]
    return {
        "ratio": round(medians["step"] / medians["products"], 3),
        "wanted": WANTED,
        "time_ratio_when_L_doubles": round(medians["step_2L"] / medians["step"], 3),
        "flop_ratio_when_L_doubles": round(float(times["flop_ratio"]), 3),  # type: ignore[arg-type]
        "memory_ratio_N16_over_N4": round(growth[16] / growth[4], 3),
        "seconds": {name: [*spread(each)] for name, each in seconds.items()},
        "gflop": times["gflop"],
        "growth_mb": {n: round(each) for n, each in growth.items()},
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    told = figures(arguments.rounds)
    print(json.dumps(told) if arguments.json else "\n".join(f"{name}: {value}" for name, value in told.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        _, _, what, number = sys.argv
        print(json.dumps(timed(int(number)) if what == "timed" else resident_growth(int(number))))
    else:
        main()
