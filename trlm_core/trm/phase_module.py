"""What the phases share: a frozen language model, the few weights that are trained, one loss, one optimizer step, one average a step.

A step is a function of its number: its rows, noise and rate follow from the seed and the number, so that a resumed phase goes on exactly.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as lightning
import torch
from torch import Tensor, nn

from trlm_core.recipes.trm_schema import Schedule
from trlm_core.training.errors import BadStepError
from trlm_core.trm.ema import WeightAverage
from trlm_core.trm.latent_thought_model import LatentThoughtModel

logger = logging.getLogger(__name__)

STATES_RMS = (0.3, 3.0)  # outside it, a recursion blows up or dies out
STATE = "phase"  # the key of ours in a checkpoint of Lightning's
BASE = "model.base."


@dataclass(frozen=True)
class Training:
    """How a phase is trained."""

    schedule: Schedule
    ema_decay: float  # 0: the average is the weights themselves
    seed: int

    def average_decay_at(self, step: int) -> float:
        """Of short runs, an average with the full decay would be mostly what the weights began as."""
        return min(self.ema_decay, (1 + step) / (10 + step))

    def seed_at(self, step: int) -> int:
        return self.seed * 1_000_003 + step


@dataclass(frozen=True)
class StepLoss:
    """Of one optimizer step."""

    loss: Tensor
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    state_rms: Tensor | None = None  # of what a recursion hands on


class PhaseModule(lightning.LightningModule):
    """A phase says which weights it trains (`trained_parameters`) and what a step's loss is (`step_loss`)."""

    def __init__(self, model: LatentThoughtModel, training: Training, own: Mapping[str, Tensor] | None = None) -> None:
        """own: what the phase trains beside the model's weights, as it begins."""
        super().__init__()
        self.automatic_optimization, self.strict_loading = False, False
        self.model, self.how, self.schedule = model, training, training.schedule
        for name, each in (own or {}).items():
            self.register_parameter(name, nn.Parameter(each.clone()))
        self.steps_done = 0
        self.last_metrics: dict[str, Tensor | float] = {}
        model.requires_grad_(False)
        self.trained = self.trained_parameters()
        for weight in self.trained.values():
            weight.requires_grad_(True)
        self.average = WeightAverage(self._trained_part(), training.ema_decay)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """By their names in the phase; all others are frozen."""
        raise NotImplementedError

    def step_loss(self, step: int) -> StepLoss:
        raise NotImplementedError

    def extra_state(self) -> dict[str, Any]:
        """What else goes from one step to the next: tensors and plain values, for a checkpoint."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        assert state == {}, f"a phase that keeps {sorted(state)} reads it too"

    # ------------------------------------------------------------------ Lightning's

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained.values(), lr=0.0, betas=self.schedule.betas, weight_decay=self.schedule.weight_decay)

    def on_fit_start(self) -> None:
        self.average.weights = {name: each.to(self.device) for name, each in self.average.weights.items()}

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Which batch that is, Lightning may count as it likes: ours is the number of the steps that are done."""
        step = self.steps_done
        with seeded(self.how.seed_at(step), self.device):
            made = self.step_loss(step)
        self._require_finite(made.loss.detach(), "a loss")
        norm = self._update(made.loss, step)
        self.steps_done = step + 1
        self.last_metrics = {
            "loss": made.loss.detach(),
            "grad_norm": norm,
            "learning_rate": self.schedule.rate_at(step),
            **made.metrics,
        }
        if made.state_rms is not None:
            self._watch(made.state_rms)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Without the language model, which is the same in every one of them."""
        checkpoint["state_dict"] = {name: each for name, each in checkpoint["state_dict"].items() if self._is_kept(name)}
        checkpoint[STATE] = {"steps_done": self.steps_done, "average": self.average.weights, "extra": self.extra_state()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError where a weight is missing that is not the language model's own: loading is not strict about those."""
        missing = sorted({name for name in self.state_dict() if self._is_kept(name)} - checkpoint["state_dict"].keys())
        if missing:
            raise ValueError(f"checkpoint: wanted every weight but the language model's, got none for {', '.join(missing[:5])}")
        state = checkpoint[STATE]
        self.steps_done, self.average.weights = state["steps_done"], state["average"]
        self.load_extra_state(state["extra"])

    def train(self, mode: bool = True) -> "PhaseModule":
        """The language model stays in evaluation mode: its dropout would make frozen states noisy."""
        super().train(mode)
        self.model.base.eval()
        return self

    # ------------------------------------------------------------------ the average

    def finish(self) -> None:
        """After the last step: the model becomes what is evaluated and exported, its average."""
        self.adopt_average()

    @torch.no_grad()
    def adopt_average(self) -> None:
        for name, weight in self.trained.items():
            weight.copy_(self.average.weights[_flat(name)])

    def _trained_part(self) -> nn.Module:
        """Made anew where it is needed: as an attribute, it would be saved as well."""
        part = nn.Module()
        for name, weight in self.trained.items():
            part.register_parameter(_flat(name), weight)
        return part

    # ------------------------------------------------------------------ one step

    def _update(self, loss: Tensor, step: int) -> Tensor:
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer)
        for group in optimizer.param_groups:
            group["lr"] = self.schedule.rate_at(step)
        optimizer.zero_grad()
        self.manual_backward(loss)
        norm = nn.utils.clip_grad_norm_([*self.trained.values()], self.schedule.max_gradient_norm)
        self._require_finite(norm, "a gradient norm")
        optimizer.step()
        self.average.decay = self.how.average_decay_at(step)
        self.average.update(self._trained_part())
        return norm

    def _require_finite(self, value: Tensor, what: str) -> None:
        if not math.isfinite(value.item()):
            advice = "go on from an earlier save with a lower learning rate"
            raise BadStepError(
                f"{type(self).__name__}, step {self.steps_done + 1}: wanted {what} that is finite, got {value.item()}; {advice}"
            )

    def _watch(self, state_rms: Tensor) -> None:
        self.last_metrics["state_rms"] = state_rms.detach()
        low, high = STATES_RMS
        if not low <= state_rms.item() <= high:
            logger.warning("step %d: wanted a state_rms from %s to %s, got %.3g", self.steps_done, low, high, state_rms.item())

    def _is_kept(self, name: str) -> bool:
        return not name.startswith(BASE) or name in self.trained


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within it torch draws from this seed; what others draw outside goes on as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def named(module: nn.Module, *parts: str) -> dict[str, nn.Parameter]:
    """The parameters below these parts of a module, by their names in it."""
    return {name: weight for name, weight in module.named_parameters() if any(_is_below(name, part) for part in parts)}


def _is_below(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _flat(name: str) -> str:
    """torch takes no dots in a parameter's name."""
    return name.replace(".", "/")
