"""The model card: metadata that the Hub's own client reads back, and every number where it belongs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.lineage import Lineage
from trlm_core.recipes.load import load_recipe, parse_recipe
from trlm_core.recipes.schema import Recipe
from trlm_core.reports.model_card import Parents, Trained, model_card, saved, trained
from trlm_core.training.specs import checkpoint_spec

REPO = "tester/model"
HISTORY = [{"step": 1, "loss": 2.5, "useful_tokens": 1000}, {"step": 2, "loss": 0.125, "useful_tokens": 1500}]


@pytest.fixture
def card(built: Any, store: Store) -> Callable[..., str]:
    """`card("stage2_sft_think")`: of a finished checkpoint of the tiny recipe; `under_way`: of a save on the way to it."""

    def make(name: str = "stage2_sft_think", under_way: bool = False) -> str:
        recipe, data = built.recipe, built.stages[name]
        spec = Lineage(recipe).checkpoint(recipe.stage(name))
        manifest = store.make(spec, _write_history)
        made = saved(spec, store.folder(manifest)) if under_way else trained(manifest, store.folder(manifest))
        return model_card(recipe, data.stage, Parents({"base": "b" * 64, "stage1_sft": "1" * 64}, data.blend, data.dataset), made, REPO)

    return make


def test_the_hub_s_client_reads_the_metadata_back(card: Callable):
    data = ModelCard(card()).data
    assert isinstance(data, ModelCardData)
    assert data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["trlm", "reasoning", "stage2_sft_think", "sft"],
    }


@pytest.mark.parametrize(
    ("recipe", "datasets"),
    [("trlm-135m-local", None), ("trlm-135m", ["HuggingFaceTB/smoltalk2"])],
)
def test_licence_language_base_and_datasets_are_those_of_the_recipe_s_sources(recipe: str, datasets: list[str] | None):
    data = ModelCard(_card_of(load_recipe(recipe, variant="report" if recipe == "trlm-135m" else None))).data
    told = [data.get(name) for name in ("license", "language", "base_model", "datasets")]
    assert told == ["apache-2.0", "en", "HuggingFaceTB/SmolLM2-135M-Instruct", datasets]


def test_dequantised_weights_are_called_so():
    assert "trained from dequantised Q4_1" in _card_of(load_recipe("trlm-135m-local"))


def test_every_row_of_data_training_and_curve_is_there(card: Callable, built: Any):
    told, data = card(), built.stages["stage2_sft_think"]
    rows = data.blend.counts["rows"]
    for source in data.stage.blend.sources:
        count = data.blend.counts["sources"][source.name]["train"]
        assert f"| {source.name} | reasoning-gym | 0.1.25 | {count:,} | {count / rows:.1%} |" in told
    assert "| learning_rate | 0.001 |" in told
    assert "| loss_type | nll |" in told
    assert "| max_length | 256 |" in told
    assert (
        "| steps | 2 |\n| tokens trained on, padding not counted | 2,500 |\n| loss of step 1 | 2.5000 |\n| loss of step 2 | 0.1250 |"
        in told
    )


def test_every_parent_stands_with_its_fingerprint(card: Callable, built: Any):
    told, data = card(), built.stages["stage2_sft_think"]
    start = Lineage(built.recipe).start(data.stage).fingerprint
    assert "| base | two random layers | `bbbbbbbbbbbb` |\n| stage1_sft | checkpoint | `111111111111` |" in told
    assert f"| start | its parent with the tokens `<think>` `</think>` | `{start[:12]}` |" in told
    assert f"`{data.blend.fingerprint[:12]}`" in told
    assert f"`{data.dataset.fingerprint[:12]}`" in told


def test_only_a_stage_that_thinks_is_said_to_think(card: Callable):
    assert "It thinks between `<think>` and `</think>`" in card("stage2_sft_think")
    assert "think>" not in card("stage1_sft")


def test_the_commands_build_every_stage_up_to_this_one(card: Callable):
    assert [line.strip() for line in card().splitlines() if line.startswith("    trlm ")] == [
        "trlm blend trlm-tiny stage1_sft",
        "trlm blend trlm-tiny stage2_sft_think",
        "trlm train trlm-tiny stage1_sft",
        "trlm train trlm-tiny stage2_sft_think",
    ]


def test_a_save_says_that_its_training_is_under_way(card: Callable):
    assert "these are the weights after step 2.**" in card(under_way=True)
    assert "under way" not in card()


def test_a_folder_in_the_place_of_a_dataset_is_told_by_its_name_alone(tmp_path: Path):
    recipe = load_recipe("trlm-135m", variant="report")
    tree = recipe.model_dump(mode="json")
    tree["stages"][0]["blend"]["sources"][0]["repo"] = str(tmp_path)
    told = _card_of(parse_recipe(tree, where="changed"))
    assert str(tmp_path) not in told
    assert "| smoltalk_smollm3_smol_magpie_ultra_no_think | files |" in told


def _write_history(folder: Path) -> dict[str, Any]:
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in HISTORY))
    return {"steps": 2, "useful_tokens": 2500}


def _card_of(recipe: Recipe) -> str:
    """Of stage 1 as it would be, every source as long as wanted."""
    stage = recipe.stages[0]
    lineage = Lineage(recipe)
    counts = {source.name: {"train": source.num_examples} for source in stage.blend.sources}
    blend = _manifest(lineage.blend(stage), {"rows": sum(each["train"] for each in counts.values()), "sources": counts})
    dataset = _manifest(lineage.dataset(stage), {"train_rows": 1, "train_tokens": 2, "train_label_tokens": 1})
    spec = checkpoint_spec(recipe, stage, dataset, lineage.base())
    made = Trained(spec.fingerprint, spec.identity, spec.inputs, HISTORY, {}, None, is_finished=True)
    return model_card(recipe, stage, Parents({"base": lineage.base().fingerprint}, blend, dataset), made, REPO)


def _manifest(spec: Any, counts: dict[str, Any]) -> Manifest:
    return Manifest.model_validate(
        {
            "kind": spec.kind,
            "group": spec.group,
            "name": spec.name,
            "version": "001",
            "fingerprint": spec.fingerprint,
            "identity": spec.identity,
            "inputs": spec.inputs,
            "recipe": {},
            "counts": counts,
            "git_commit": None,
            "packages": {},
            "created": "2026-01-01T00:00:00Z",
            "seconds": 1.0,
            "files": {},
        }
    )
