"""On a CPU the labelled positions are scored as TRL's fused head scores them, and nothing else is."""

import copy

import pytest
import torch
from transformers import PreTrainedModel
from trl.trainer.utils import add_fused_lm_head

from trlm_core.text.tokenizer import IGNORED
from trlm_core.training.label_head import score_labels_only

FIELDS = ("log_probs", "entropy", "mean_logits", "is_top1")
IDS = torch.tensor([[5, 9, 40, 7, 12, 33], [8, 3, 21, 50, 2, 2]])
LABELS = torch.tensor([[IGNORED, IGNORED, 40, 7, 12, 33], [IGNORED, 3, 21, 50, 2, IGNORED]])


@pytest.fixture
def heads(tiny_model: PreTrainedModel) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same model with TRL's head and with ours."""
    theirs, ours = tiny_model, copy.deepcopy(tiny_model)
    for model in (theirs, ours):
        add_fused_lm_head(model, outputs=FIELDS)
    score_labels_only(ours)
    return theirs, ours


def test_every_field_is_what_the_fused_head_gives(heads: tuple[PreTrainedModel, PreTrainedModel]):
    wanted, got = (model(input_ids=IDS, labels=LABELS, fused_lm_head=True) for model in heads)
    for field in (*FIELDS, "label_mask"):
        torch.testing.assert_close(getattr(got, field).float(), getattr(wanted, field).float(), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_that_of_the_fused_head(heads: tuple[PreTrainedModel, PreTrainedModel]):
    for model in heads:
        (-model(input_ids=IDS, labels=LABELS, fused_lm_head=True).log_probs.sum()).backward()
    wanted, got = (dict(model.named_parameters()) for model in heads)
    for name, parameter in wanted.items():
        torch.testing.assert_close(got[name].grad, parameter.grad, rtol=1e-4, atol=1e-6)


def test_without_the_flag_the_model_is_as_it_was(heads: tuple[PreTrainedModel, PreTrainedModel]):
    theirs, ours = heads
    torch.testing.assert_close(ours(input_ids=IDS).logits, theirs(input_ids=IDS).logits)
