"""The group of a training: its processes, on one machine or several, and what they agree on before they train.

Each machine starts its own processes, from a command of its own. A step is cut the same way in all of them, or its sequences would not be
the recipe's; so the first process's execution holds for the group.
"""

import os
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from accelerate import PartialState

from trlm_core.recipes.execution import Execution
from trlm_core.training.batching import Share
from trlm_core.training.errors import GroupError
from trlm_core.training.hardware import Hardware
from trlm_core.training.job import TrainingJob

OWN = ("device", "threads", "node_rank")  # of a machine's execution; the rest is the first machine's

Value = TypeVar("Value")


def share_of_this() -> Share:
    """Which process of the group this is, by torchrun's marks."""
    return Share(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def is_first_of_machine() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def leave_group_of_one() -> None:
    """Take away torchrun's marks of a group that is this process alone: wrapping a model for one costs memory and speed."""
    if os.environ.get("WORLD_SIZE") == "1":
        for mark in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(mark, None)


def agreed(job: TrainingJob, hardware: Hardware) -> TrainingJob:
    """The job under the group's execution: the first process's, with the smallest budget of all. For every process at once.

    Raises GroupError where one is to train something else, or lays its sequences out in another way.
    """
    if share_of_this().processes == 1:
        return job
    # As the trainer would open it, later; but a process may wait for another as long as the launcher does.
    PartialState(cpu=hardware.device == "cpu", timeout=timedelta(seconds=job.execution.stall_seconds))
    mine = (job.fingerprint, hardware.laid_attention or "padded", job.execution, hardware.tokens_per_micro_batch)
    told: list[tuple[str, str, Execution, int]] = [mine] * dist.get_world_size()
    dist.all_gather_object(told, mine)
    _check_one("fingerprint", [each[0][:12] for each in told], "start every node with the same recipe, settings and store")
    _check_one("processes", [str(each[2].processes) for each in told], "start every node with as many")
    _check_one("attention", [each[1] for each in told], "install the same packages on every node")
    own = {name: getattr(job.execution, name) for name in OWN}
    execution = told[0][2].model_copy(update={**own, "tokens_per_micro_batch": min(each[3] for each in told)})
    return job.model_copy(update={"execution": execution})


def told_by_first(value: Value) -> Value:
    """The first process's value, in every process of the group, which all have to call this at once."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _check_one(what: str, told: list[str], advice: str) -> None:
    if len({*told}) > 1:
        raise GroupError(f"{what}: wanted one in all {len(told)} processes of the group, got {', '.join(told)}; {advice}")
