"""Hardware: what this machine's device takes at once. Execution only: nothing here changes a sequence, an order or a precision."""

import ctypes
import ctypes.util
import gc
import os
from dataclasses import dataclass, replace
from pathlib import Path

from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import ReportedExecution

CPU_TOKENS = 512  # padded tokens of a forward: every micro-batch also casts all weights and adds up all gradients once
# Every step allocates gradients and copies of the weights anew: with pages of 4 KiB much of a CPU's time can go into faulting them in
# (benchmarks/huge_pages.py; docs/LOG.md: twice the speed at one hour, 8 % at another). The first is read by glibc when a process
# starts, the second by torch when it first allocates.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}
# oneDNN keeps what it made for each of the last 1,024 shapes, and nearly every micro-batch has a shape of its own: a gigabyte in the end.
FEW_SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "100"}
STEPS_BETWEEN_TRIMS = 10  # on a CPU: what freed gradients and activations leave behind is handed back this often
BUDGET = "tokens_per_micro_batch"
GPU_TOKENS = 32 * 4096  # the report's per-device batch at its full length, on a 192 GB MI300X


@dataclass(frozen=True)
class Hardware:
    device: str  # "cpu", "cuda" (NVIDIA and ROCm) or "mps"
    threads: int
    tokens_per_micro_batch: int
    activation_checkpointing: bool
    compile: bool
    laid_attention: str | None  # that takes sequences end to end (packing.py); None: they are padded


def detect_hardware(execution: Execution, reported: ReportedExecution | None) -> Hardware:
    device = _device(execution)
    on_gpu = device == "cuda"
    return Hardware(
        device=device,
        threads=execution.threads or max(1, usable_cores() // execution.processes),
        tokens_per_micro_batch=execution.tokens_per_micro_batch or (GPU_TOKENS if on_gpu else CPU_TOKENS),
        activation_checkpointing=on_gpu and reported is not None and reported.gradient_checkpointing,
        compile=execution.compile,  # by itself never: no GPU has told yet what it brings, and on a CPU it brings little
        laid_attention=_laid_attention(device),
    )


def within_budget(hardware: Hardware, workspace: Path) -> Hardware:
    """With the smaller budget that an earlier process left there, because what was asked for did not fit."""
    path = workspace / BUDGET
    tokens = min(hardware.tokens_per_micro_batch, int(path.read_text())) if path.exists() else hardware.tokens_per_micro_batch
    return replace(hardware, tokens_per_micro_batch=tokens)


def halve_budget(workspace: Path, tokens: int) -> None:
    """To half the tokens of a micro-batch that did not fit: the next process cuts a step finer, and its gradient stays the same."""
    (workspace / BUDGET).write_text(str(max(1, tokens // 2)))


def give_memory_back() -> None:
    """Hand freed memory back to the system: glibc keeps what a model that is gone has left."""
    gc.collect()
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _laid_attention(device: str) -> str | None:
    from trlm_core.training.packing import variable_length_attention

    return variable_length_attention(device)


def _device(execution: Execution) -> str:
    import torch

    if execution.device != "auto":
        return execution.device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
