"""Hidden states of thoughts under a frozen base, kept: bfloat16 shards of rows that lie one after another, and where each row begins.

states-00000.safetensors: pre [positions of prompts, D], pre_offsets [rows + 1], post [positions of thoughts, D], post_offsets [rows + 1]
pre: up to and with <think>. post: the thought and its </think>. A row's number is its place among the split's thoughts.
B batch, L positions, D the language model's width.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.recipes.trm_schema import TRMRecipe
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.batching import cut_micro_batches
from trlm_core.training.checkpoint import load_model
from trlm_core.trm.hidden_states import embed, hidden_states
from trlm_core.trm.phase_rows import States
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import TOKENIZER, Split, ThoughtBatch, ThoughtRow, padded, read_thoughts

SHARD_BYTES = 256 << 20  # at most, but for a row that is longer; an interrupted encoding goes on behind its last shard
TOKENS_PER_BATCH = 4096  # padded, of one forward
KEPT_AS = torch.bfloat16
Side = Literal["pre", "post"]
OnRow = Callable[[int, int], None]  # done, of how many


def states_spec(recipe: TRMRecipe, base: Fingerprinted, thoughts: Fingerprinted, split: Split) -> Spec:
    identity = {"made_by": "states/1", "split": split, "hidden_layer": recipe.model.hidden_layer, "precision": recipe.precision}
    inputs = {"base": base.fingerprint, "thoughts": thoughts.fingerprint}
    return Spec("datasets", recipe.name, f"states-{split}", identity, inputs, recipe.model_dump(mode="json"))


def make_states(
    store: Store,
    recipe: TRMRecipe,
    base: Manifest,
    thoughts: Manifest,
    split: Split,
    device: str,
    on_row: OnRow = lambda done, total: None,
) -> Manifest:
    spec = states_spec(recipe, base, thoughts, split)

    def build(folder: Path) -> dict[str, Any]:
        tokens = ThinkTokens.of(load_tokenizer(store.folder(thoughts) / TOKENIZER))
        model = load_model(store.folder(base), base_precision(recipe)).to(device).eval()  # type: ignore[arg-type]
        rows = [example.row for example in read_thoughts(store.folder(thoughts), split)]
        workspace = store.workspace(spec)
        write_states(model, rows, tokens, recipe.model.hidden_layer, workspace, on_row)
        for path in _shard_paths(workspace):
            path.replace(folder / path.name)
        positions = sum(len(row.prompt) + len(row.thought) + 1 for row in rows)
        return {"rows": len(rows), "positions": positions, "shards": len(_shard_paths(folder))}

    return store.make(spec, build)


def base_precision(recipe: TRMRecipe) -> Literal["bf16", "float32"]:
    """Of the frozen language model's weights."""
    return "bf16" if recipe.precision == "bf16_mixed" else "float32"


def write_states(
    model: PreTrainedModel,
    rows: Sequence[ThoughtRow],
    tokens: ThinkTokens,
    layer: int,
    folder: Path,
    on_row: OnRow = lambda done, total: None,
) -> None:
    """Shards that lie in the folder already are not made again."""
    for number, (first, end) in enumerate(_shard_bounds(rows, model.config.hidden_size)):
        path = folder / f"states-{number:05d}.safetensors"
        if not path.exists():
            aside = path.with_suffix(".tmp")
            save_file(_shard(model, rows[first:end], tokens, layer), aside)
            aside.replace(path)
        on_row(end, len(rows))


class CachedStates:
    """Of one split, read row by row from files that are mapped into memory, not loaded."""

    def __init__(self, folder: Path) -> None:
        paths = _shard_paths(folder)
        if not paths:
            raise FileNotFoundError(f"{folder}: wanted shards of hidden states, got none; make them with make_states")
        self._shards: list[Any] = [safe_open(path, "pt") for path in paths]
        self._offsets = [{side: shard.get_tensor(f"{side}_offsets") for side in ("pre", "post")} for shard in self._shards]
        self._firsts = np.cumsum([0, *(len(offsets["pre"]) - 1 for offsets in self._offsets)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def read(self, row_numbers: Sequence[int], batch: ThoughtBatch) -> States:
        """float32, in the columns of the batch, which is of these rows. Raises ValueError where it is of others."""
        return States(
            self._placed(row_numbers, "pre", batch.prompt_mask_BL),
            self._placed(row_numbers, "post", batch.thought_mask_BC),
        )

    def row(self, number: int, side: Side) -> Tensor:
        """[positions, D], as it is kept. Raises IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(f"states: wanted a row from 0 to {len(self) - 1:,}, got {number:,}")
        shard = int(np.searchsorted(self._firsts, number, side="right")) - 1
        place = number - int(self._firsts[shard])
        begin, end = self._offsets[shard][side][place : place + 2].tolist()
        return self._shards[shard].get_slice(side)[begin:end]

    def _placed(self, row_numbers: Sequence[int], side: Side, mask_BL: Tensor) -> Tensor:
        states = [self.row(number, side) for number in row_numbers]
        if [len(each) for each in states] != mask_BL.sum(dim=1).tolist():
            got = f"got rows {list(row_numbers)} of {[len(each) for each in states]} positions and a batch of {mask_BL.sum(dim=1).tolist()}"
            raise ValueError(f"states ({side}): wanted a batch of the same rows, {got}; make them of these thoughts")
        h_BLD = torch.zeros(*mask_BL.shape, states[0].shape[-1], device=mask_BL.device)
        h_BLD[mask_BL] = torch.cat(states).to(h_BLD)  # row after row, as they lie in the mask
        return h_BLD


def _shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("states-*.safetensors"))


def _shard_bounds(rows: Sequence[ThoughtRow], width: int) -> Iterator[tuple[int, int]]:
    """First row and the row behind the last of each shard."""
    first, size = 0, 0
    for number, row in enumerate(rows):
        bytes_of_row = (len(row.prompt) + len(row.thought) + 1) * width * KEPT_AS.itemsize
        if size and size + bytes_of_row > SHARD_BYTES:
            yield first, number
            first, size = number, 0
        size += bytes_of_row
    yield first, len(rows)


def _shard(model: PreTrainedModel, rows: Sequence[ThoughtRow], tokens: ThinkTokens, layer: int) -> dict[str, Tensor]:
    states = _encoded(model, [(*row.prompt, *row.thought, tokens.end_think) for row in rows], tokens.pad, layer)
    pre = [state_LD[: len(row.prompt)] for state_LD, row in zip(states, rows, strict=True)]
    post = [state_LD[len(row.prompt) :] for state_LD, row in zip(states, rows, strict=True)]
    return {"pre": torch.cat(pre), "pre_offsets": _offsets(pre), "post": torch.cat(post), "post_offsets": _offsets(post)}


def _encoded(model: PreTrainedModel, sequences: Sequence[tuple[int, ...]], pad: int, layer: int) -> list[Tensor]:
    """One pass for prompt and thought: what a causal model reads of a prompt does not depend on what follows it."""
    states: dict[int, Tensor] = {}
    for chosen in cut_micro_batches([len(sequence) for sequence in sequences], TOKENS_PER_BATCH):
        ids_BL, mask_BL = (each.to(model.device) for each in padded([sequences[number] for number in chosen], pad, side="right"))
        h_BLD = hidden_states(model, embed(model, ids_BL), mask_BL, layer).to(KEPT_AS).cpu()
        for number, h_LD in zip(chosen, h_BLD, strict=True):
            states[number] = h_LD[: len(sequences[number])]
    return [states[number] for number in range(len(sequences))]


def _offsets(states: Sequence[Tensor]) -> Tensor:
    return torch.tensor([0, *(len(each) for each in states)]).cumsum(dim=0)
