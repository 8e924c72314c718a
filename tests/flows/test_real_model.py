"""The real SmolLM2-135M goes through every stage with a handful of rows."""

import json
from pathlib import Path
from typing import Any

import yaml

from trlm_core.recipes.load import load_recipe

FAMILIES = ["chain_sum", "letter_counting"]


def test_the_real_model_goes_through_all_stages(trlm: Any, tmp_path: Path) -> None:
    path = tmp_path / "handful.yaml"
    path.write_text(yaml.safe_dump(handful(), sort_keys=False))
    done = trlm("run", str(path), "--store", str(tmp_path / "runs"), "--json", timeout=900)
    assert done.code == 0, done.err[-4000:]
    line = done.last_line
    held_out = {file.parts[-3]: json.loads(file.read_text()) for file in (tmp_path / "runs" / "evals").rglob("held_out.json")}
    for stage in ("stage1_sft", "stage2_sft_think"):
        loss = held_out[f"{stage}-held-out"]["loss"]
        assert loss["loss"] < loss["loss_at_start"]
    assert held_out["stage3_dpo-held-out"]["preferences"][0]["fault"] == "unseen"
    weights = [(Path(folder) / "model.safetensors").stat().st_size for folder in line["checkpoints"].values()]
    assert all(size > 134_000_000 * 4 for size in weights)


def handful() -> dict[str, Any]:
    """trlm-135m-local with two families, eight rows a source and two questions."""
    tree = load_recipe("trlm-135m-local").model_dump(mode="json")
    tree["name"] = "handful"
    for stage in tree["stages"]:
        kept = [source for source in stage["blend"]["sources"] if source.get("family", FAMILIES[0]) in FAMILIES]
        stage["blend"]["sources"] = [{**source, "num_examples": 8, "num_held_out": 3} for source in kept]
        stage["training"] |= {"sequences_per_step": 4, "epochs": 1}
    tree["evaluation"] |= {"families": FAMILIES, "unseen_families": ["lcm"], "questions_per_family": 1, "max_new_tokens": 16}
    return tree
