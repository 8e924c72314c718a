"""Phase 2b: the language model is taught to read thoughts, by adapters; the TRM that makes them is frozen.

Pass 1, which reads the prompt for the TRM, goes without the adapters: the statistics of latents are those of the bare language model.
Trained: the adapters, the embeddings of the two tags, and the projector. B batch.
"""

import torch
from torch import nn

from trlm_core.recipes.trm_schema import Phase2b
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase_module import BASE, PhaseModule, StepLoss, Training, named
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.thought_data import BatchOrder
from trlm_core.trm.thought_losses import answer_is_right, answer_loss

ADAPTER_PARTS = ("lora_", "trainable_tokens_delta")  # peft's names


class Phase2bModule(PhaseModule):
    def __init__(self, model: LatentThoughtModel, table: RowTable, recipe: Phase2b, seed: int) -> None:
        """Raises ValueError for a model without adapters."""
        if model.config.lora is None:
            raise ValueError("phase 2b: wanted a model with adapters, got lora: null; set it")
        super().__init__(model, Training(recipe.training, ema_decay=0.0, seed=seed))
        self.table = table
        self.order = BatchOrder(len(table), recipe.training.batch, seed)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        adapters = {name: each for name, each in self.named_parameters() if is_adapter(name)}
        return adapters | named(self, "model.thinker.projector")

    def step_loss(self, step: int) -> StepLoss:
        batch = self.table.batch(self.order.rows_at(step)).to(self.device)
        prompt = self.model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
        with torch.no_grad():
            v_BMd = self.model.think(prompt, halting=False).v_BMd
        logits_BAV = self.model.answer_logits(prompt, self.model.thinker.embed_thought(v_BMd), batch.answer_ids_BA)
        return StepLoss(answer_loss(logits_BAV, batch), {"right": answer_is_right(logits_BAV, batch).float().mean()})


def is_adapter(name: str) -> bool:
    return name.startswith(BASE) and any(part in name for part in ADAPTER_PARTS)
