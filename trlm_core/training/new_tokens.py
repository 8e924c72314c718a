"""A stage's start: its parent with the new special tokens added and their rows started, as a checkpoint of its own.

A row started at the mean of all rows is learnt slowly. `due_place` moves it along the mean final hidden state of the places where its
token is due, until its logit there passes the usual winner's by `margin`.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.shards import read_shards
from trlm_core.recipes.schema import NewTokens, Recipe, Stage
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.checkpoint import load_model, save_checkpoint

ROWS = 64  # of the stage dataset that show where the tokens are due


def start_spec(recipe: Recipe, stage: Stage, dataset: Manifest, parent: Manifest) -> Spec:
    assert stage.rendering.new_tokens is not None
    identity = {"made_by": "new_tokens/1", "new_tokens": stage.rendering.new_tokens.model_dump(mode="json"), "rows": ROWS}
    inputs = {"parent": parent.fingerprint, "dataset": dataset.fingerprint}
    return Spec("checkpoints", recipe.name, f"{stage.name}-start", identity, inputs, recipe.model_dump(mode="json"))


def make_start(store: Store, recipe: Recipe, stage: Stage, dataset: Manifest, parent: Manifest) -> Manifest:
    """The checkpoint that the stage starts from; the parent itself where the stage adds no token."""
    new_tokens = stage.rendering.new_tokens
    if new_tokens is None:
        return parent

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = load_tokenizer(store.folder(dataset) / "tokenizer")
        model = load_model(store.folder(parent), "float32")
        ids: list[int] = tokenizer.convert_tokens_to_ids(list(new_tokens.tokens))
        grow_embeddings(model, len(tokenizer), ids)
        if new_tokens.start == "due_place":
            rows = read_shards(store.folder(dataset), "train").slice(0, ROWS).to_pylist()
            move_to_due_places(model, [row["input_ids"] for row in rows], ids, margin_of(new_tokens))
        save_checkpoint(model, tokenizer, folder)
        return {"vocabulary": len(tokenizer), "new_tokens": len(ids)}

    return store.make(start_spec(recipe, stage, dataset, parent), build)


def margin_of(new_tokens: NewTokens) -> float:
    assert new_tokens.margin is not None
    return new_tokens.margin


def grow_embeddings(model: PreTrainedModel, vocabulary: int, ids: list[int]) -> None:
    """Rows for the new ids, each the mean of the old rows."""
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(max(vocabulary, old), mean_resizing=False)
    with torch.no_grad():
        for weight_VD in _embedding_tables(model):
            weight_VD[ids] = weight_VD[:old].mean(dim=0)


@torch.no_grad()
def move_to_due_places(model: PreTrainedModel, sequences: list[list[int]], ids: list[int], margin: float) -> None:
    """Move each new row along the mean final hidden state h of its due places: w + c h, with (w + c h) . h = usual winner's logit + margin."""
    model.eval()
    for token in ids:
        due_ND = _due_states(model, sequences, token)
        if not len(due_ND):
            continue
        output_VD = _embedding_tables(model)[-1]
        mean_D = due_ND.mean(dim=0)
        winner = (due_ND @ output_VD.T).max(dim=1).values.mean()
        lift = (winner + margin - output_VD[token] @ mean_D) / (mean_D @ mean_D)
        for weight_VD in _embedding_tables(model):
            weight_VD[token] += lift * mean_D


def _due_states(model: PreTrainedModel, sequences: list[list[int]], token: int) -> torch.Tensor:
    """Final hidden states (N, D) of the positions whose next token is `token`."""
    states = []
    for sequence in sequences:
        places = [index - 1 for index, each in enumerate(sequence) if each == token and index > 0]
        if places:
            hidden_1LD = model.base_model(input_ids=torch.tensor([sequence])).last_hidden_state
            states.append(hidden_1LD[0, places])
    return torch.cat(states) if states else torch.empty(0)


def _embedding_tables(model: PreTrainedModel) -> list[torch.Tensor]:
    """Input and output table (V, D), once where they are tied."""
    tables = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    return tables[:1] if tables[0] is tables[1] else tables
