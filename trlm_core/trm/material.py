"""What a TRM run works with: thoughts and base, made or found in the store, and the tables and models that are read from them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from trlm_core import base_model
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.recipes.execution import Execution
from trlm_core.recipes.schema import HubBase
from trlm_core.recipes.trm_schema import Phase3, Sudoku4Thoughts, TrainedLlamaBase, TRMRecipe
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.hardware import detect_hardware
from trlm_core.trm.base_llama import make_base_llama
from trlm_core.trm.latent_checkpoint import load_latent_checkpoint
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.own_traces import make_own_traces
from trlm_core.trm.phase_models import base_of
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.rewards import IsWellFormed, is_as_long, is_number
from trlm_core.trm.sudoku_thoughts import make_sudoku_thoughts, prompt_rows
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import TOKENIZER, Split, ThoughtExample, read_thoughts

Made = Mapping[str, Manifest]  # role -> what is finished so far
OnDone = Callable[[int, int], None]  # done, of how many


def make_thoughts(store: Store, recipe: TRMRecipe, made: Made, execution: Execution, on_done: OnDone) -> Manifest:
    if isinstance(recipe.data, Sudoku4Thoughts):
        return make_sudoku_thoughts(store, recipe, recipe.data)
    return make_own_traces(store, recipe, recipe.data, made["base"], usable_device(execution), on_done)


def make_base(store: Store, recipe: TRMRecipe, spec: Spec, made: Made, execution: Execution, on_done: OnDone) -> Manifest:
    """Trained here, fetched from the Hub, or found: spec is its. Raises ValueError where a stage's checkpoint is not finished."""
    if isinstance(recipe.base, TrainedLlamaBase):
        return make_base_llama(store, recipe, recipe.base, made["thoughts"], usable_device(execution), on_done)
    if isinstance(recipe.base, HubBase):
        return base_model.make_base(store, recipe.base)
    found = store.find(spec)
    if found is None:
        raise ValueError(f"base: wanted {spec.place} with fingerprint {spec.fingerprint[:12]} in {store.address}, got none finished")
    return found


@dataclass(frozen=True)
class Material:
    """What phases are trained on and measured with."""

    store: Store
    recipe: TRMRecipe
    made: Made
    device: str

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.folder("thoughts") / TOKENIZER)

    @property
    def tokens(self) -> ThinkTokens:
        return ThinkTokens.of(self.tokenizer)

    def folder(self, role: str) -> Path:
        return self.store.folder(self.made[role])

    def examples(self, split: Split) -> list[ThoughtExample]:
        return read_thoughts(self.folder("thoughts"), split)

    def table(self, split: Split, most: int | None = None) -> RowTable:
        return RowTable.of([example.row for example in self.examples(split)[:most]], self.tokens)

    def prompts(self, phase3: Phase3) -> RowTable:
        """That phase 3 asks: its own, or those of train."""
        if phase3.prompts is None:
            return self.table("train")
        return RowTable.of(prompt_rows(phase3.prompts, self.tokenizer), self.tokens)

    def model(self, role: str) -> LatentThoughtModel:
        """A finished phase's, on a language model of its own: adapters are put into it in place."""
        base = base_of(self.store, self.recipe, self.made["base"], self.device)
        return load_latent_checkpoint(self.folder(role), base).to(self.device)

    def is_well_formed(self) -> IsWellFormed:
        return is_as_long if isinstance(self.recipe.data, Sudoku4Thoughts) else _is_of_its_kind(self.tokenizer)


def _is_of_its_kind(tokenizer: PreTrainedTokenizerBase) -> IsWellFormed:
    """A number where the right answer is one, and otherwise any words."""
    number = is_number(tokenizer)
    return lambda answer, row: number(answer, row) if number(row.answer[:-1], row) else bool(str(tokenizer.decode(list(answer))).strip())


def usable_device(execution: Execution) -> str:
    """Its device; torch has its threads from here on."""
    hardware = detect_hardware(execution, None)
    torch.set_num_threads(hardware.threads)
    return hardware.device
