"""`trlm train --publish` from the command to the loopback Hub: refused before any training, published once, kept where the Hub fails."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.faults import Fault, calls
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
