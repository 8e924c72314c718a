"""Phase 0 and the direct row: checkpoints of a small Llama by seed and steps, and what a base has no room for."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.recipes.trm_schema import TrainedLlamaBase, TRMRecipe
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.checkpoint import load_model, read_history
from trlm_core.trm.base_llama import make_base_llama, new_llama
from trlm_core.trm.direct_tuning import make_direct_tuned
from trlm_core.trm.sudoku_thoughts import make_sudoku_thoughts, sudoku_tokenizer
from trlm_core.trm.thought_data import ThoughtDataError

SMALL = (
    "base.hidden_size=16",
    "base.intermediate_size=32",
    "base.num_hidden_layers=1",
    "base.num_attention_heads=2",
    "base.training.steps=6",
    "base.training.batch=4",
    "base.training.warmup_steps=1",
    "data.puzzles.train=1280",
    "data.puzzles.validation=500",
    "controls.direct_tuned.steps=4",
    "controls.direct_tuned.batch=4",
    "controls.direct_tuned.warmup_steps=1",
)
Make = Callable[..., Manifest]


@pytest.fixture(scope="module")
def recipe() -> TRMRecipe:
    return load_trm_recipe("trm-acceptance", settings=SMALL)


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(tmp_path_factory.mktemp("base-llama") / "store")


@pytest.fixture(scope="module")
def thoughts(module_store: Store, recipe: TRMRecipe) -> Manifest:
    return make_sudoku_thoughts(module_store, recipe, recipe.data)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def make(module_store: Store, recipe: TRMRecipe, thoughts: Manifest) -> Make:
    def make(**changes: int) -> Manifest:
        assert isinstance(recipe.base, TrainedLlamaBase)
        return make_base_llama(module_store, recipe.model_copy(update=changes), recipe.base, thoughts, "cpu")

    return make


def test_a_base_is_a_checkpoint_with_its_tokenizer_and_a_line_a_step(module_store: Store, make: Make):
    manifest = make()
    folder = module_store.folder(manifest)
    assert manifest.counts["steps"] == len(read_history(folder)) == 6
    assert load_tokenizer(folder).encode("<s>1<think>") == [5, 1, 6]
    model = load_model(folder, "float32")
    assert (model.config.eos_token_id, model.config.pad_token_id, model.num_parameters()) == (8, 9, manifest.counts["parameters"])


def test_another_seed_is_another_base(module_store: Store, make: Make):
    one, other = make(), make(seed=1)
    assert one.fingerprint != other.fingerprint
    weights = [load_model(module_store.folder(each), "float32").state_dict()["model.embed_tokens.weight"] for each in (one, other)]
    assert not torch.equal(*weights)


def test_the_same_recipe_in_another_store_is_the_same_base_to_the_bit(module_store: Store, store: Store, recipe: TRMRecipe, make: Make):
    again = make_base_llama(store, recipe, recipe.base, make_sudoku_thoughts(store, recipe, recipe.data), "cpu")  # type: ignore[arg-type]
    assert again.files["model.safetensors"] == make().files["model.safetensors"]


def test_the_acceptance_base_has_0_19_million_parameters_and_ties_its_embeddings():
    base = load_trm_recipe("trm-acceptance").base
    assert isinstance(base, TrainedLlamaBase)
    model = new_llama(base, sudoku_tokenizer(), seed=0)
    assert model.num_parameters() == 185_760
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_context_too_short_for_the_rows_is_an_error_that_names_the_first(module_store: Store, recipe: TRMRecipe, thoughts: Manifest):
    assert isinstance(recipe.base, TrainedLlamaBase)
    short = recipe.base.model_copy(update={"max_position_embeddings": 51})
    with pytest.raises(ThoughtDataError, match=r"sudoku4/train/0: wanted at most the base's 51 positions, got 52"):
        make_base_llama(module_store, recipe, short, thoughts, "cpu")


@pytest.mark.parametrize(("insertion", "wants"), [("append", 60), ("slide", 52)])  # a prompt of 18, an answer of 17; a thought in text: 16
def test_latents_that_slide_need_no_room_of_their_own(
    insertion: Literal["append", "slide"], wants: int, module_store: Store, recipe: TRMRecipe, thoughts: Manifest
):
    assert isinstance(recipe.base, TrainedLlamaBase)
    many = recipe.model_copy(update={"model": recipe.model.model_copy(update={"num_latents": 24, "insertion": insertion})})
    short = recipe.base.model_copy(update={"max_position_embeddings": 51})
    with pytest.raises(ThoughtDataError, match=f"wanted at most the base's 51 positions, got {wants}"):
        make_base_llama(module_store, many, short, thoughts, "cpu")


def test_a_directly_tuned_model_goes_on_from_its_base_and_leaves_it_as_it_was(
    module_store: Store, recipe: TRMRecipe, thoughts: Manifest, make: Make
):
    base, schedule = make(), recipe.controls.direct_tuned
    assert schedule is not None
    before = load_model(module_store.folder(base), "float32").state_dict()
    tuned = make_direct_tuned(module_store, recipe, schedule, base, thoughts, "cpu")
    after = load_model(module_store.folder(tuned), "float32").state_dict()
    assert tuned.counts["steps"] == 4
    assert tuned.inputs == {"base": base.fingerprint, "thoughts": thoughts.fingerprint}
    changes = [(after[name] - weight).abs().max().item() for name, weight in before.items()]
    assert 0 < max(changes) < 0.05  # near its base: it did not start anew
