"""Sharded weights: every process of a group holds its part of each weight, gradient and moment (torch's fully_shard, which is FSDP2).

Files know nothing of it. What is written is whole, and what is read is cut: a save of two sharded processes goes on in one process, and
the other way round. transformers' own `fsdp` is not used: on a CPU it is silently DDP, and it writes files of its own kind.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel, Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME
from transformers.utils import SAFE_WEIGHTS_NAME

from trlm_core.training.layers import decoder_layers


def leave_to_shard(model: PreTrainedModel) -> None:
    """Before its trainer is made, which then neither moves the model to a device nor, later, wraps it in DDP."""
    model._is_distributed_loading_by_transformers = True


def shard(model: PreTrainedModel, device: str) -> None:
    """Deal the weights out over the group's processes, a decoder layer at a time. For every process at once.

    After its trainer is made, which opens the group; TRL's DPOTrainer also hashes the weights, and of parts it cannot.
    """
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: Any) -> bool:
    return isinstance(model, FSDPModule)


def whole_weights(model: torch.nn.Module) -> dict[str, Any]:
    """Of a sharded model, on the first process's CPU; the others get names alone. For every process at once."""
    assert isinstance(model, FSDPModule)
    model.reshard()  # a forward without a backward leaves the root's weights gathered
    once = dict(model.named_parameters())  # tied weights have one name there, and one in the file
    return {name: _whole(value) for name, value in model.state_dict().items() if name in once or not isinstance(value, DTensor)}


def whole_states(optimizer: Any) -> dict[str, Any]:
    """An optimizer's state as it is where nothing is sharded, on the first process. For every process at once."""
    return tree_map(_whole, optimizer.state_dict())


def read_weights(model: torch.nn.Module, path: Path) -> None:
    """Each process reads its part of a safetensors file into its part of the weights, one weight at a time."""
    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, weight in model.named_parameters():
            assert isinstance(weight, DTensor), name
            weight.copy_(_cut_like(weight, file.get_tensor(name)))


def read_states(optimizer: Any, path: Path) -> None:
    """Each process takes its part of a whole optimizer's state."""
    whole = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def cut(index: int, value: Any) -> Any:
        return _cut_like(weights[index], value) if torch.is_tensor(value) and value.ndim else value

    states = {index: {name: cut(index, value) for name, value in state.items()} for index, state in whole["state"].items()}
    optimizer.load_state_dict({**whole, "state": states})


class WholeFiles(Trainer):
    """Mixed in before a trainer: of a sharded model it writes, reads and logs what any other training does."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not is_sharded(self.model):
            return super()._save(output_dir, state_dict)
        assert self.model is not None
        weights = whole_weights(self.model)
        if self.args.should_save:
            super()._save(output_dir, weights)
        return None

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_sharded(self.model):
            return super()._save_optimizer_and_scheduler(output_dir)
        states = whole_states(self.optimizer)
        scheduler: Any = self.lr_scheduler
        if self.args.should_save:
            torch.save(states, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
        return None

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if not is_sharded(self.model):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        assert self.model is not None
        return read_weights(self.model, Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(self.model):
            return super()._load_optimizer_and_scheduler(checkpoint)
        scheduler: Any = self.lr_scheduler
        read_states(self.optimizer, Path(checkpoint) / OPTIMIZER_NAME)
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
        return None

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """Of the whole gradient: each process has the norm of its part."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _whole(value: Any) -> Any:
    if not isinstance(value, DTensor):
        return value
    gathered = value.full_tensor()
    return gathered.cpu() if dist.get_rank() == 0 else None


def _cut_like(weight: DTensor, whole: torch.Tensor) -> DTensor:
    """This process's part; each has read the whole, so nothing is sent."""
    return distribute_tensor(whole.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)
