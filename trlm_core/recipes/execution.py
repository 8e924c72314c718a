"""Execution: where and how a recipe runs. It never enters a fingerprint."""

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt


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
    processes: PositiveInt = Field(default=1, description="Of a training on each machine, one a GPU: torchrun's --nproc-per-node.")
    nodes: PositiveInt = Field(default=1, description="Machines of a training, each with as many processes: torchrun's --nnodes.")
    node_rank: NonNegativeInt = Field(
        default=0, description="Which of them this is. 0 has tracking, saves, store and publishing; the others take part."
    )
    rendezvous: str | None = Field(default=None, description="HOST:PORT of node 0, where they meet: torchrun's --rdzv-endpoint.")
    sharding: Literal["none", "full"] = Field(
        default="none", description="Full: each process of a training holds its part of weights, gradients and moments (FSDP2)."
    )
    compile: bool = Field(default=False, description="The decoder layers by torch.compile: worth its minutes on a GPU, if at all.")
    save_steps: PositiveInt | None = Field(
        default=None, description="Steps from one save of a training to the next. Empty: as the report did, or by time alone."
    )
    save_seconds: PositiveFloat = Field(default=900.0, description="Seconds from one save of a training to the next, whatever the steps.")
    keep_saves: PositiveInt = Field(default=2, description="Newest saves that are kept beside the best; all go when the stage is finished.")
    sample_steps: PositiveInt | None = Field(
        default=None, description="Steps from one answer to a few fixed prompts to the next. Empty: a fifth of the stage."
    )
    stop_seconds: PositiveInt = Field(
        default=300, description="A training that is asked to stop has so long to save what is done, before it is killed."
    )
    stall_seconds: PositiveFloat = Field(
        default=1800.0, description="A training that shows no progress for so long is ended, and goes on from its last save."
    )


def check_group(execution: Execution, sequences: int) -> None:
    """Raise ValueError where machines and processes cannot share the sequences of a step, or cannot meet."""
    processes = execution.nodes * execution.processes
    if sequences % processes:
        each = f" on each of {execution.nodes} nodes" if execution.nodes > 1 else ""
        raise ValueError(f"processes: wanted a number that divides the {sequences} sequences of a step, got {execution.processes}{each}")
    if execution.sharding == "full" and processes == 1:
        raise ValueError("sharding: wanted more than one process to hold a part each, got 1; set processes, or sharding none")
    if execution.node_rank >= execution.nodes:
        raise ValueError(f"node_rank: wanted 0 to {execution.nodes - 1} of {execution.nodes} nodes, got {execution.node_rank}")
    if execution.nodes > 1 and not re.fullmatch(r"\S+:\d+", execution.rendezvous or ""):
        raise ValueError(f"rendezvous: wanted HOST:PORT of the first of {execution.nodes} nodes, got {execution.rendezvous or 'none'}")
