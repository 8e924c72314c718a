"""What a TRM is measured against: the same parameters without recursion, and as many constants that are learned in place of its thoughts.

B batch, M latents, D the language model's width.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from trlm_core.recipes.trm_schema import Schedule
from trlm_core.trm.config import LatentThoughtConfig, net_alone
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase_module import PhaseModule, StepLoss, Training, named
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.thinker import Thinker
from trlm_core.trm.thought_data import BatchOrder
from trlm_core.trm.thought_losses import answer_is_right, answer_loss


def twin_config(config: LatentThoughtConfig) -> LatentThoughtConfig:
    """The net alone: y from x, once."""
    recursion = net_alone(config.states.recursion)
    return replace(config, states=replace(config.states, recursion=recursion), eval_steps=1, eval_halting=False)


def non_recursive_twin(model: LatentThoughtModel) -> LatentThoughtModel:
    """On the same language model, with weights of its own that are those of the model now: take it before phase 2 trains them."""
    config = twin_config(model.config)
    thinker = Thinker(config.states, embedding_scale=0.0)
    thinker.load_state_dict(model.thinker.state_dict())
    twin = LatentThoughtModel(model.base, config, model.tokens, thinker.to(model.thinker.trm.slots_Md.device), model.base_digest)
    return twin.train(model.training)


class PauseModule(PhaseModule):
    """Pause tokens: M embeddings, the same for every prompt, trained on the answers: the room for a thought, and no thought."""

    def __init__(self, model: LatentThoughtModel, table: RowTable, schedule: Schedule, seed: int) -> None:
        """They begin as the mean thought, embedded: no worse a start than the TRM's."""
        super().__init__(model, Training(schedule, ema_decay=0.0, seed=seed), own={"pause_MD": mean_thought(model)})
        self.table = table
        self.order = BatchOrder(len(table), schedule.batch, seed)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return named(self, "pause_MD")

    def step_loss(self, step: int) -> StepLoss:
        batch = self.table.batch(self.order.rows_at(step)).to(self.device)
        prompt = self.model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
        logits_BAV = self.model.answer_logits(prompt, self.pauses().expand(len(batch), -1, -1), batch.answer_ids_BA)
        return StepLoss(answer_loss(logits_BAV, batch), {"right": answer_is_right(logits_BAV, batch).float().mean()})

    def pauses(self) -> Tensor:
        """[1, M, D]"""
        return self.get_parameter("pause_MD").unsqueeze(0)


@torch.no_grad()
def mean_thought(model: LatentThoughtModel) -> Tensor:
    """[M, D]: the embeddings of the latents' mean, which is what standardised zeros stand for."""
    return model.thinker.embed_thought(torch.zeros_like(model.thinker.trm.slots_Md).unsqueeze(0))[0]
