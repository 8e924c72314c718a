"""The LM head on a CPU: logits of the labelled positions alone.

TRL's fused head folds the vocabulary in tiles to save a GPU's memory; without Triton it scores every position, labelled or not, and
recomputes the logits for the backward. On a CPU with short sequences that is a third of a step (benchmarks/label_head.py).
"""

import functools
import types
from typing import Any

import torch
from transformers import PreTrainedModel
from trl.trainer.utils import FusedCausalLMOutput

from trlm_core.text.tokenizer import IGNORED


def score_labels_only(model: PreTrainedModel) -> None:
    """Make `model(..., labels=labels, fused_lm_head=True)`, as TRL's trainers call it, project only what carries a label."""
    fused_forward = model.forward

    @functools.wraps(type(model).forward)
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, labels: Any = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return fused_forward(*args, labels=labels, **kwargs)
        hidden_BLD = self.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
        return _scored(self.get_output_embeddings(), hidden_BLD[:, :-1], labels[:, 1:])

    model.forward = types.MethodType(forward, model)


def _scored(head: Any, hidden_BLD: torch.Tensor, labels_BL: torch.Tensor) -> FusedCausalLMOutput:
    """Log-prob of each label, entropy, mean logit and hit of each labelled position (B, L), zero elsewhere."""
    mask_BL = labels_BL != IGNORED
    labels_N = labels_BL[mask_BL]
    logits_NV = head(hidden_BLD[mask_BL]).float()
    log_probs_NV = logits_NV.log_softmax(dim=-1)
    log_probs_N = log_probs_NV.gather(1, labels_N[:, None])[:, 0]
    with torch.no_grad():
        entropy_N = -(log_probs_NV.exp() * log_probs_NV).sum(dim=-1)
        hits_N = logits_NV.argmax(dim=-1) == labels_N
        means_N = logits_NV.mean(dim=-1)

    def spread(values_N: torch.Tensor) -> torch.Tensor:
        return values_N.new_zeros(mask_BL.shape).masked_scatter(mask_BL, values_N)

    return FusedCausalLMOutput(
        log_probs=spread(log_probs_N), entropy=spread(entropy_N), mean_logits=spread(means_N), is_top1=spread(hits_N), label_mask=mask_BL
    )
