"""Execution: where and how a recipe runs. It never enters a fingerprint."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt


class Execution(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # ROCm answers to "cuda"
    tokens_per_micro_batch: PositiveInt | None = None  # padded tokens of one forward; None: what the hardware's memory allows
    sequences_per_generation_batch: PositiveInt | None = None
    threads: PositiveInt | None = None  # of the CPU; None: every core that this process may use
