"""A checkpoint to the loopback Hub, through the real clients in a process of its own: what goes there, what stays here, what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_hub.access import TOKEN
from tests.loopback_hub.clients import told_by_client
from tests.loopback_hub.faults import Fault, calls
from tests.loopback_hub.repositories import Repository
from tests.loopback_hub.server import LoopbackHub
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.lineage import Lineage
from trlm_core.recipes.schema import Recipe
from trlm_core.reports.model_card import Parents, model_card, trained

ROOT = Path(__file__).parents[3]
REPO = "tester/model"
OURS = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} | {
    "chat_template.jinja",
    "history.jsonl",
}
HISTORY = [{"step": step, "loss": 2.0 / step, "useful_tokens": 100} for step in (1, 2, 3)]
SECRET_FOLDER = "/home/somebody/rows.jsonl"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as server:
        yield server


@pytest.fixture
def checkpoint(store: Store, built: Any, tiny_base: Path) -> Callable[..., Manifest]:
    """A finished checkpoint of the tiny recipe's stage 1: the base's weights, the stage's tokenizer, and what must not leave this machine."""

    def make(files: dict[str, str] | None = None, recipe: Recipe | None = None) -> Manifest:
        stage = (recipe or built.recipe).stage("stage1_sft")

        def build(folder: Path) -> dict[str, Any]:
            for name in ("config.json", "generation_config.json", "model.safetensors"):
                shutil.copy(tiny_base / name, folder / name)
            shutil.copytree(built.folder(built.stages[stage.name].dataset) / "tokenizer", folder, dirs_exist_ok=True)
            (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in HISTORY))
            for name, text in {
                "skipped.jsonl": SECRET_FOLDER,
                "optimizer.pt": "state",
                "training_args.bin": "pickle",
                **(files or {}),
            }.items():
                (folder / name).write_text(text)
            return {"steps": 3, "useful_tokens": 300}

        return store.make(Lineage(recipe or built.recipe).checkpoint(stage), build)

    return make


@pytest.fixture
def card(built: Any, store: Store) -> Callable[..., str]:
    def make(checkpoint: Manifest, repo: str = REPO) -> str:
        data, stage = built.stages["stage1_sft"], built.recipe.stage("stage1_sft")
        parents = Parents({"base": built.base.fingerprint}, data.blend, data.dataset)
        return model_card(built.recipe, stage, parents, trained(checkpoint, store.folder(checkpoint)), repo)

    return make


@pytest.fixture
def publish(hub: LoopbackHub, store: Store, card: Callable, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(checkpoint: Manifest, repo: str = REPO, **changed: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.loopback_hub.publish_once", store.address, checkpoint.address, repo]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        hubs = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
        told = {} if "CARD" in changed else {"CARD": card(checkpoint, repo)}
        environment = clean | hubs | {"HF_TOKEN": TOKEN} | told | changed
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, cwd=ROOT, env=environment)
        assert done.stdout, done.stderr[-3000:]
        assert environment["HF_TOKEN"] not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_a_new_repository_is_private_and_holds_what_loads_the_model_and_no_more(
    hub: LoopbackHub, checkpoint: Callable, publish: Callable, store: Store, tiny_base: Path
):
    manifest = checkpoint()
    made = publish(manifest)
    repository = _repository(hub)
    first, ours = repository.commits
    assert repository.token == TOKEN, "private"
    assert set(ours.files) == set(first.files) | OURS
    assert ours.message == manifest.address
    assert made == {"repo": REPO, "commit": ours.sha, "url": f"{hub.endpoint}/{REPO}/commit/{ours.sha}", "is_new": True}
    sent = b"".join(piece for file in ours.files.values() for piece in file.pieces(0, file.size))
    for hidden in (TOKEN, SECRET_FOLDER, str(store.root), str(tiny_base), str(Path.home())):
        assert hidden.encode() not in sent


def test_the_card_s_own_code_loads_the_model_from_the_hub_and_asks_it(
    hub: LoopbackHub, checkpoint: Callable, card: Callable, publish: Callable, tmp_path: Path
):
    manifest = checkpoint()
    publish(manifest)
    (code,) = re.findall(r"```python\n(.*?)```", card(manifest), re.DOTALL)
    code += '\ntell([reply, tokenizer.decode(prompt["input_ids"][0])])'
    reply, prompt = told_by_client(hub, tmp_path / "reader", code, {"HF_TOKEN": TOKEN})
    assert reply
    assert prompt == "<|im_start|>user\nWhat is 4 + 3 - 2?<|im_end|>\n<|im_start|>assistant\n"


def test_again_nothing_is_sent_and_nothing_committed(hub: LoopbackHub, checkpoint: Callable, publish: Callable):
    manifest = checkpoint()
    made = publish(manifest)
    hub.requests.clear()
    assert publish(manifest) == {**made, "is_new": False}
    assert len(_repository(hub).commits) == 2
    assert not [request for request in hub.requests if any(part in request.path for part in ("/commit", "/preupload", "/lfs"))]


def test_what_an_older_checkpoint_left_leaves_and_what_others_added_stays(hub: LoopbackHub, checkpoint: Callable, publish: Callable):
    older = dict.fromkeys(("model-00001-of-00002.safetensors", "model.safetensors.index.json", "added_tokens.json"), b"{}")
    added = {"LICENSE": b"Apache", "onnx/notes.txt": b"notes"}
    hub.repositories.made(REPO, "model").commit({".gitattributes": b"", "README.md": b"---\ntags: [trlm]\n---\n", **older, **added})
    assert publish(checkpoint())["is_new"]
    assert set(_repository(hub).head.files) == {".gitattributes", *OURS, *added}


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "pytorch_model.bin", "gguf/model.Q4_1.gguf"])
@pytest.mark.parametrize("tags", ["", "tags: [other]\n"])
def test_a_model_of_others_is_never_replaced(hub: LoopbackHub, checkpoint: Callable, publish: Callable, file: str, tags: str):
    repository = hub.repositories.made(REPO, "model")
    repository.commit({file: b"{}\n", "README.md": f"---\nlicense: mit\n{tags}---\n".encode()})
    told = publish(checkpoint())
    assert told["error"] == f"{REPO}: wanted no model but a checkpoint's, got {file} and no tag trlm on the card; choose another repository"
    assert len(repository.commits) == 1


def test_a_dataset_of_that_name_is_another_repository(hub: LoopbackHub, checkpoint: Callable, publish: Callable):
    hub.repositories.made(REPO, "dataset").commit({"train.jsonl": b"{}\n"})
    assert publish(checkpoint())["is_new"]
    assert len(_repository(hub, "dataset").commits) == 1


@pytest.mark.parametrize(
    ("repo", "token", "said"),
    [
        (REPO, "hf_wrong_0123456789", "tester/model: wanted a token that may write it, the Hub says 401"),
        (REPO, "hf_reader_0123456789", "tester/model: wanted a token that may write it, the Hub says 403"),
        ("model", TOKEN, "publish: wanted owner/name of a model repository, got 'model'"),
    ],
    ids=["wrong token", "reader's token", "no owner"],
)
def test_who_cannot_write_gets_one_clear_line_and_changes_nothing(
    hub: LoopbackHub, checkpoint: Callable, publish: Callable, repo: str, token: str, said: str
):
    hub.repositories.made("owner/private").token = "hf_reader_0123456789"
    told = publish(checkpoint(), repo, HF_TOKEN=token)
    assert told["kind"] == "PublishError"
    assert told["error"].startswith(said)
    assert len(told["error"].splitlines()) == 1
    assert hub.repositories.get(REPO, "model") is None


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("part", ["/api/models/tester/model", "/commit/main"])
def test_a_server_s_error_is_one_clear_line_and_a_repeat_succeeds(
    hub: LoopbackHub, checkpoint: Callable, publish: Callable, part: str, status: int
):
    hub.faults.append(Fault(calls(part), status=status, times=20))
    manifest = checkpoint()
    assert publish(manifest) == {
        "error": f"{REPO}: wanted an answer of the Hub, got {status}; publish again",
        "kind": "PublishConnectionError",
    }
    hub.faults.clear()
    assert publish(manifest)["is_new"]
    assert len(_repository(hub).commits) == 2


def test_a_damaged_checkpoint_is_not_published(hub: LoopbackHub, store: Store, checkpoint: Callable, publish: Callable):
    manifest = checkpoint()
    (store.root / manifest.address / "model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors: wanted" in publish(manifest, CARD="---\ntags: [trlm]\n---\n")["error"]
    assert len(_repository(hub).commits) == 1


def _repository(hub: LoopbackHub, kind: str = "model") -> Repository:
    found = hub.repositories.get(REPO, kind)
    assert found is not None
    return found
