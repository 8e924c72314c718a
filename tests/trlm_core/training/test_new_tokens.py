"""New tokens: where their rows start, and that nothing else of the parent changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from trlm_core.artifacts.store import Store
from trlm_core.data.shards import read_shards
from trlm_core.recipes.schema import NewTokens, Recipe
from trlm_core.training.checkpoint import load_model
from trlm_core.training.new_tokens import grow_embeddings, make_start, move_to_due_places

OLD = 476
THINK, CLOSE = 476, 477


@pytest.fixture
def sequences(built: Any) -> list[list[int]]:
    stage = built.stages["stage2_sft_think"]
    return [row["input_ids"] for row in read_shards(built.folder(stage.dataset), "train").to_pylist()]


def test_a_mean_start_is_the_mean_of_the_old_rows_and_leaves_them_as_they_are(tiny_model: PreTrainedModel):
    before = _table(tiny_model).clone()
    grow_embeddings(tiny_model, 478, [THINK, CLOSE])
    after = _table(tiny_model)
    assert after.shape[0] == 478
    assert torch.equal(after[:OLD], before)
    torch.testing.assert_close(after[OLD:], before.mean(dim=0).expand(2, -1))
    assert tiny_model.get_output_embeddings().weight is tiny_model.get_input_embeddings().weight, "still tied"  # type: ignore[union-attr]


def test_a_vocabulary_that_was_padded_is_not_shrunk(tiny_model: PreTrainedModel):
    grow_embeddings(tiny_model, 470, [468, 469])
    assert _table(tiny_model).shape[0] == OLD


@pytest.mark.parametrize("margin", [0.0, 2.0, 5.0])
def test_where_a_token_is_due_its_logit_passes_the_usual_winner_s_by_the_margin_and_the_other_s_stays_below_it(
    margin: float, tiny_model: PreTrainedModel, sequences: list[list[int]]
):
    grow_embeddings(tiny_model, 478, [THINK, CLOSE])
    states = _states_before(tiny_model, sequences, THINK), _states_before(tiny_model, sequences, CLOSE)
    winners = [float((due_ND @ _table(tiny_model)[:OLD].T).max(dim=1).values.mean()) for due_ND in states]
    move_to_due_places(tiny_model, sequences, [THINK, CLOSE], margin)
    for place, (due_ND, winner) in enumerate(zip(states, winners, strict=True)):
        logits = (due_ND @ _table(tiny_model)[OLD:].T).mean(dim=0).tolist()
        assert logits[place] - winner == pytest.approx(margin, abs=1e-3)
        assert logits[1 - place] - winner == pytest.approx(-margin, abs=1e-3)


def test_the_moved_model_itself_prefers_each_token_where_it_is_due(tiny_model: PreTrainedModel, sequences: list[list[int]]):
    grow_embeddings(tiny_model, 478, [THINK, CLOSE])
    before = _table(tiny_model)[:OLD].clone()
    move_to_due_places(tiny_model, sequences, [THINK, CLOSE], 2.0)
    for token in (THINK, CLOSE):
        logits_NV = _states_before(tiny_model, sequences, token) @ _table(tiny_model).T
        lead = (logits_NV[:, token] - logits_NV[:, :OLD].max(dim=1).values).mean()
        assert float(lead) == pytest.approx(2.0, abs=0.5), "the new rows are read as inputs too, so that it is not exact"
        assert (logits_NV.argmax(dim=1) == token).float().mean() > 0.7
    assert torch.equal(_table(tiny_model)[:OLD], before)


def test_a_token_that_is_never_due_is_an_error(tiny_model: PreTrainedModel):
    grow_embeddings(tiny_model, 478, [THINK, CLOSE])
    with pytest.raises(ValueError, match="never due"):
        move_to_due_places(tiny_model, [[1, 5, THINK, 6, 2]], [THINK, CLOSE], 2.0)


def test_a_stage_that_adds_tokens_starts_from_a_checkpoint_of_its_own_and_any_other_from_its_parent(built: Any, tmp_path: Path):
    stage = built.stages["stage2_sft_think"]
    start = make_start(built.store, built.recipe, stage.stage, stage.dataset, built.base)
    model = load_model(built.folder(start), "float32")
    assert start.counts == {"vocabulary": 478, "new_tokens": 2}
    assert _table(model).shape[0] == 478
    parent = load_model(built.folder(built.base), "float32")
    for name, weight in parent.named_parameters():
        assert torch.equal(dict(model.named_parameters())[name][: weight.shape[0]], weight), name
    other = built.stages["stage1_sft"]
    assert make_start(built.store, built.recipe, other.stage, other.dataset, built.base) == built.base


def test_a_mean_start_through_the_store_is_the_mean_row(built: Any, store: Store, changed_recipe: Callable[..., Recipe]):
    recipe = changed_recipe(
        **{"stages.1.rendering.new_tokens": NewTokens(tokens=("<think>", "</think>"), start="mean", margin=None).model_dump(mode="json")}
    )
    stage = built.stages["stage2_sft_think"]
    start = make_start(built.store, recipe, recipe.stage("stage2_sft_think"), stage.dataset, built.base)
    table = _table(load_model(built.folder(start), "float32"))
    torch.testing.assert_close(table[OLD:], table[:OLD].mean(dim=0).expand(2, -1))


def _table(model: PreTrainedModel) -> torch.Tensor:
    return model.get_input_embeddings().weight.detach()  # type: ignore[union-attr, return-value]


@torch.no_grad()
def _states_before(model: PreTrainedModel, sequences: list[list[int]], token: int) -> torch.Tensor:
    return torch.stack(
        [
            model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, place - 1]
            for ids in sequences
            for place, each in enumerate(ids)
            if each == token
        ]
    )
