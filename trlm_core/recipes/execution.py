"""Execution: where and how a recipe runs. It never enters a fingerprint."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


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
    processes: PositiveInt = Field(default=1, description="Of a training on this machine, one a GPU: torchrun's --nproc-per-node.")
    save_steps: PositiveInt | None = Field(
        default=None, description="Steps from one save of a training to the next. Empty: as the report did, or by time alone."
    )
    save_seconds: PositiveFloat = Field(default=900.0, description="Seconds from one save of a training to the next, whatever the steps.")
    keep_saves: PositiveInt = Field(default=2, description="Newest saves that are kept beside the best; all go when the stage is finished.")
    sample_steps: PositiveInt | None = Field(
        default=None, description="Steps from one answer to a few fixed prompts to the next. Empty: a fifth of the stage."
    )
    stall_seconds: PositiveFloat = Field(
        default=1800.0, description="A training that shows no progress for so long is ended, and goes on from its last save."
    )
