"""`trlm train --publish` from the command to the loopback Hub: refused before any training, published once, kept where the Hub fails,
and with `--publish-when saves` while it trains.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.faults import Fault, calls
from tests.loopback_hub.repositories import Commit
from tests.loopback_hub.server import LoopbackHub

REPO = "tester/model"
READER = "hf_reader_0123456789"


def test_a_checkpoint_is_published_with_its_card_and_a_hub_that_fails_costs_no_training(
    trlm: Any, tiny_recipe_file: Path, tmp_path: Path, prefect_home: Path
) -> None:
    with LoopbackHub() as hub:
        hub.repositories.made("owner/private").token = READER
        clients = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        store = tmp_path / "runs"

        def train(stage: str = "stage1_sft", **environment: str) -> Any:
            arguments = ["train", str(tiny_recipe_file), stage, "--store", str(store), "--device", "cpu", "--publish", REPO, "--json"]
            return trlm(*arguments, **{**clients, "HF_TOKEN": TOKEN, **environment})

        early = train()
        assert early.code == 2
        assert "wanted datasets/trlm-tiny/stage1_sft-tokens" in early.err
        assert "run blend/stage-1" in early.err
        assert hub.repositories.get(REPO, "model") is None
        assert trlm("blend", str(tiny_recipe_file), "stage1_sft", "--store", str(store)).code == 0

        refused = train(HF_TOKEN=READER)
        assert refused.code == 2
        (line,) = refused.err.strip().splitlines()
        assert line.startswith(f"trlm: {REPO}: wanted a token that may write it, the Hub says 403")
        assert not list(store.glob("checkpoints/trlm-tiny/*")), "nothing is trained"

        hub.faults.append(Fault(calls("/commit/main"), status=400))
        failed = train()
        assert failed.code == 2
        last = failed.err.strip().splitlines()[-1]
        assert last.startswith("trlm: checkpoints/trlm-tiny/stage1_sft/001-")
        assert f"is finished and stays in the store, but it is not published: {REPO}: the Hub refuses with 400" in last
        (manifest,) = store.glob("checkpoints/trlm-tiny/stage1_sft/*/manifest.json")
        kept = manifest.read_bytes()

        hub.faults.append(Fault(calls("/commit/main"), status=503))  # once: the task tries again
        first = train()
        assert first.code == 0, first.err[-4000:]
        repository = hub.repositories.get(REPO, "model")
        assert repository is not None
        url = f"{hub.endpoint}/{REPO}/commit/{repository.head.sha}"
        assert first.last_line["published"] == url
        assert f"published    {url}" in first.out
        assert manifest.read_bytes() == kept, "nothing is trained again"
        card = repository.head.files["README.md"]
        assert ModelCard(b"".join(card.pieces(0, card.size)).decode()).data.get("pipeline_tag") == "text-generation"
        assert len(repository.commits) == 2, "one that made the repository, and the checkpoint's: the command found its card unchanged"

    runs = (early, refused, failed, first)
    assert not [run for run in runs if TOKEN in run.out + run.err or READER in run.out + run.err]
    kept_files = [path for folder in (store, prefect_home) for path in folder.rglob("*") if path.is_file()]
    assert not [path for path in kept_files if TOKEN.encode() in path.read_bytes()]


@pytest.mark.long
def test_saves_of_a_real_training_go_to_the_hub_while_it_trains_and_the_checkpoint_at_its_end(
    trlm: Any, tiny_recipe_tree: dict[str, Any], tmp_path: Path
) -> None:
    tree = copy.deepcopy(tiny_recipe_tree)
    tree["stages"][0]["training"]["epochs"] = 30
    recipe, store, steps = tmp_path / "long.yaml", tmp_path / "runs", 30 * 10
    recipe.write_text(yaml.safe_dump(tree, sort_keys=False))
    with LoopbackHub() as hub:
        clients = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        assert trlm("blend", str(recipe), "stage1_sft", "--store", str(store)).code == 0
        slowly = ["--save-steps", "10", "--tokens-per-micro-batch", "1"]  # a push takes seconds, this model's steps hardly any
        command = ["train", str(recipe), "stage1_sft", "--store", str(store), "--device", "cpu", *slowly, "--json"]
        done = trlm(*command, "--publish", REPO, "--publish-when", "saves", timeout=1800, **clients, HF_TOKEN=TOKEN)
        assert done.code == 0, done.err[-4000:]
        repository = hub.repositories.get(REPO, "model")
        assert repository is not None
        pushed = {int(commit.message.removeprefix("step ")): commit for commit in repository.commits if commit.message.startswith("step ")}
        assert pushed, "at least one save came to the Hub before the checkpoint"
        assert [*pushed] == sorted(pushed)
        assert not [step for step in pushed if step % 10 or not 0 < step < steps]
        for step, commit in pushed.items():
            folder = _written(commit, tmp_path / f"step-{step}")
            assert not [*folder.glob("*.pt"), *folder.glob("*.pth"), *folder.glob("save.json")], "what loads it, and nothing of the trainer"
            history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
            assert [line["step"] for line in history] == [*range(1, step + 1)]
            assert f"{step:,}" in (folder / "README.md").read_text()
            AutoModelForCausalLM.from_pretrained(folder)
        (checkpoint,) = store.glob("checkpoints/trlm-tiny/stage1_sft/*/model.safetensors")
        last = _written(repository.head, tmp_path / "head")
        assert (last / "model.safetensors").read_bytes() == checkpoint.read_bytes()
        assert not [each for each in pushed.values() if each.sha == repository.head.sha]
        assert done.last_line["published"] == f"{hub.endpoint}/{REPO}/commit/{repository.head.sha}"


def _written(commit: Commit, folder: Path) -> Path:
    folder.mkdir()
    for name, file in commit.files.items():
        (folder / name).write_bytes(b"".join(file.pieces(0, file.size)))
    return folder
