"""A stage's start: its parent with the new special tokens added and their rows started, as a checkpoint of its own.

A row started at the mean of all rows is learnt slowly. `due_place` moves it towards the final hidden states of the places where its
token is due, until its logit there passes the usual winner's by `margin`.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.data.shards import read_shards
from trlm_core.recipes.schema import NewTokens, Recipe, Stage
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.checkpoint import load_model, save_checkpoint
from trlm_core.training.specs import ROWS_FOR_NEW_TOKENS, start_spec


def make_start(store: Store, recipe: Recipe, stage: Stage, dataset: Manifest, parent: Manifest) -> Manifest:
    """The checkpoint that the stage starts from; the parent itself where the stage adds no token."""
    new_tokens = stage.rendering.new_tokens
    if new_tokens is None:
        return parent

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = load_tokenizer(store.folder(dataset) / "tokenizer")
        model = load_model(store.folder(parent), "float32")
        ids = [tokenizer.get_vocab()[token] for token in new_tokens.tokens]
        grow_embeddings(model, len(tokenizer), ids)
        if new_tokens.start == "due_place":
            rows = read_shards(store.folder(dataset), "train").slice(0, ROWS_FOR_NEW_TOKENS).to_pylist()
            move_to_due_places(model, [row["input_ids"] for row in rows], ids, margin_of(new_tokens))
        save_checkpoint(model, tokenizer, folder)
        return {"vocabulary": len(tokenizer), "new_tokens": len(ids)}

    return store.make(start_spec(recipe, stage, dataset, parent), build)


def margin_of(new_tokens: NewTokens) -> float:
    assert new_tokens.margin is not None
    return new_tokens.margin


def grow_embeddings(model: PreTrainedModel, vocabulary: int, ids: list[int]) -> None:
    """Rows for the new ids, each the mean of the old rows."""
    old = _embedding_tables(model)[0].shape[0]
    model.resize_token_embeddings(max(vocabulary, old), mean_resizing=False)
    with torch.no_grad():
        for weight_VD in _embedding_tables(model):
            weight_VD[ids] = weight_VD[:old].mean(dim=0)


@torch.no_grad()
def move_to_due_places(model: PreTrainedModel, sequences: list[list[int]], ids: list[int], margin: float) -> None:
    """Move the new rows: a token's logit is the usual winner's plus the margin where it is due, less the margin where another is.

    "Where" is the mean final hidden state of the places before the token. The rows move within the span of (due - everywhere): what
    all states share is left out, since it would lift a token everywhere.
    """
    model.eval()
    states = [model.base_model(input_ids=torch.tensor([sequence])).last_hidden_state[0] for sequence in sequences]
    due = [torch.cat([state_LD[_places_before(ids_L, token)] for ids_L, state_LD in zip(sequences, states, strict=True)]) for token in ids]
    if any(not len(due_ND) for due_ND in due):
        raise ValueError("new tokens: wanted each of them somewhere in the stage dataset, got one that is never due; use start: mean")
    due_TD = torch.stack([due_ND.mean(dim=0) for due_ND in due])
    away_TD = due_TD - torch.cat(states).mean(dim=0)
    output_VD = _embedding_tables(model)[-1]
    winner_T = torch.stack([(due_ND @ output_VD.T).max(dim=1).values.mean() for due_ND in due])
    wanted_TT = winner_T + margin * (2 * torch.eye(len(ids)) - 1)  # [token, place]
    move_TT = torch.linalg.solve((away_TD @ due_TD.T).T, (wanted_TT - output_VD[ids] @ due_TD.T).T).T
    for weight_VD in _embedding_tables(model):
        weight_VD[ids] += move_TT @ away_TD


def _places_before(sequence: list[int], token: int) -> list[int]:
    return [index - 1 for index, each in enumerate(sequence) if each == token and index > 0]


def _embedding_tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Input and output table (V, D), once where they are tied."""
    tables: list[Any] = [table.weight for table in (model.get_input_embeddings(), model.get_output_embeddings()) if table is not None]
    return tables[:1] if tables[0] is tables[-1] else tables
