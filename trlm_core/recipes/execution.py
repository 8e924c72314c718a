"""Execution: where and how a recipe runs. It never enters a fingerprint."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class Execution(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="ROCm answers to cuda.")
    tokens_per_micro_batch: PositiveInt | None = Field(
        default=None, description="Padded tokens of one forward. Empty: what the hardware's memory allows."
    )
    sequences_per_generation_batch: PositiveInt | None = Field(
        default=None, description="Replies generated at once. Empty: by a budget of tokens."
    )
    threads: PositiveInt | None = Field(default=None, description="Of the CPU. Empty: every core that the process may use.")
