"""Shared fixtures: a base of 0.2 M parameters with its own tokenizer, and the local recipe shrunk to it, so that whole chains run in seconds."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "1"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # golden curves and tolerances are a CPU's

import contextlib
import copy
import logging
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from trlm_core.artifacts.fingerprint import file_sha256
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Store
from trlm_core.base_model import make_base
from trlm_core.data.blend import assemble
from trlm_core.data.sources import read_source
from trlm_core.data.stage_dataset import render_stage_dataset
from trlm_core.recipes.load import load_recipe, parse_recipe
from trlm_core.recipes.schema import Recipe, Stage

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # 0, 1, 2
TEXT = [
    "system\nYou are a helpful assistant.\n",
    "user\nWhat is 4 + 3 - 2?\nassistant\n4 + 3 = 7. 7 - 2 = 5.\n5\n",
    "user\nState the final answer to the following arithmetic problem: 8 + 1 =\nassistant\n9\n",
    "user\nHow many times does the letter e appear in: the tree, between, letters?\nassistant\n1, 2, 3. 3\n",
    "user\nKeep numbers larger than 5: 3, 8, 9\nassistant\n3 < 5, discard. 8 > 5, keep. 9 > 5, keep.\n8, 9\n",
    "user\nSort these words in ascending order: pear, apple, fig\nassistant\napple, fig, pear\n",
    "user\nWhat is the capital of France?\nassistant\nThe capital of France is Paris. The sum is larger than the product.\n",
    "user\nGood morning, how are you doing today?\nassistant\nI am doing well, thank you. What would you like to talk about?\n",
    "user\nRemove numbers smaller than the answer. Which number is the smallest of them?\nassistant\nnone\n",
]
SHRUNK_FAMILIES = ("chain_sum", "letter_counting")


def pytest_configure() -> None:
    """Side by side, each of pytest's workers and all that it starts gets a core of its own.

    Threads that spin while they wait for a core slow each other down fivefold (docs/LOG.md).
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama with random weights: model.safetensors and a byte-level tokenizer that splits digits."""
    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = _tiny_tokenizer()
    torch.manual_seed(20250103)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_tokenizer(tiny_base: Path) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast.from_pretrained(str(tiny_base))


@pytest.fixture
def tiny_model(tiny_base: Path) -> PreTrainedModel:
    return LlamaForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32)


@pytest.fixture(scope="session")
def tiny_recipe_tree(tiny_base: Path) -> dict[str, Any]:
    """The recipe trlm-135m-local as a tree, on the tiny base: two families, 16 rows a source or less, steps of 4, float32."""
    tree = load_recipe("trlm-135m-local").model_dump(mode="json")
    tree["name"] = "trlm-tiny"
    tree["base"] = {
        "kind": "folder",
        "path": str(tiny_base),
        "sha256": file_sha256(tiny_base / "model.safetensors"),
        "label": "two random layers",
    }
    for stage in tree["stages"]:
        _shrink(stage)
    tree["evaluation"] |= {
        "families": list(SHRUNK_FAMILIES),
        "unseen_families": ["lcm"],
        "questions_per_family": 2,
        "few_shot": 1,
        "max_new_tokens": 12,
        "precision": "float32",
    }
    return tree


@pytest.fixture
def tiny_recipe_file(tiny_recipe_tree: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "trlm-tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe_tree, sort_keys=False))
    return path


@pytest.fixture
def tiny_recipe(tiny_recipe_file: Path) -> Recipe:
    return load_recipe(str(tiny_recipe_file))


@pytest.fixture
def changed_recipe(tiny_recipe_tree: dict[str, Any]) -> Callable[..., Recipe]:
    """`changed_recipe(**{"stages.0.training.epochs": 2})`: the tiny recipe with some leaves replaced."""

    def changed(**leaves: Any) -> Recipe:
        tree = copy.deepcopy(tiny_recipe_tree)
        for path, value in leaves.items():
            *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
            place: Any = tree
            for part in parents:
                place = place[part]
            place[last] = value
        return parse_recipe(tree, where="changed")

    return changed


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """`small_disk(1 << 20)`: a folder on a file system of so many bytes; asked again, it gets that size. Only root may mount one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()

    def sized(size: int) -> Path:
        how = f"{'remount,' if folder.is_mount() else ''}size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"no small file system: {done.stderr.strip()}")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 service on loopback. It answers one request at a time: moto's check before a conditional put is no atomic one."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    with served(DomainDispatcherApplication(create_backend_app)) as url:
        yield url


@pytest.fixture
def serve() -> Callable[..., contextlib.AbstractContextManager[str]]:
    """`with serve(application) as url`: a server of the test's own."""
    return served


@contextlib.contextmanager
def served(application: Callable[..., Any]) -> Iterator[str]:
    from moto.moto_server.werkzeug_app import MotoRequestHandler
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, application, threaded=False, request_handler=MotoRequestHandler)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it would log a line a request
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def s3_address(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty store in a bucket of its own; this machine's cache is in the test's folder."""
    import s3fs

    use_s3(s3_server, monkeypatch)
    monkeypatch.setenv("TRLM_CACHE", str(tmp_path / "cache"))
    bucket = f"bucket-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(endpoint_url=s3_server).mkdir(bucket)
    return f"s3://{bucket}/runs"


def use_s3(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(variable, value)


@pytest.fixture
def s3_store(s3_address: str) -> Store:
    return Store.open(s3_address)


@pytest.fixture
def other_machine(s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same store as another machine sees it: through a cache of its own."""
    with monkeypatch.context() as patch:
        patch.setenv("TRLM_CACHE", str(tmp_path / "other-cache"))
        return Store.open(s3_address)


@dataclass(frozen=True)
class BuiltStage:
    stage: Stage
    sources: list[Manifest]
    blend: Manifest
    dataset: Manifest


@dataclass(frozen=True)
class BuiltData:
    """The tiny recipe's data in a store that tests only read: sources, blends and stage datasets of every stage."""

    store: Store
    recipe: Recipe
    base: Manifest
    stages: dict[str, BuiltStage]

    def folder(self, manifest: Manifest) -> Path:
        return self.store.folder(manifest)


@pytest.fixture(scope="session")
def built(tiny_recipe_tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> BuiltData:
    recipe = parse_recipe(tiny_recipe_tree, where="tiny")
    store = Store.open(tmp_path_factory.mktemp("built") / "store")
    base = make_base(store, recipe.base)
    return BuiltData(store, recipe, base, {stage.name: build_stage(store, recipe, stage, base) for stage in recipe.stages})


def build_stage(store: Store, recipe: Recipe, stage: Stage, base: Manifest) -> BuiltStage:
    sources = [read_source(store, recipe, stage, source, base) for source in stage.blend.sources]
    blend = assemble(store, recipe, stage, sources, base)
    return BuiltStage(stage, sources, blend, render_stage_dataset(store, recipe, stage, blend, base))


def _tiny_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXT, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )


def _shrink(stage: dict[str, Any]) -> None:
    sources = [source for source in stage["blend"]["sources"] if source["kind"] == "dialogs" or source["family"] in SHRUNK_FAMILIES]
    for source in sources:
        source |= {"num_examples": 8 if source["kind"] == "dialogs" else 16, "num_held_out": 3}
    stage["blend"] |= {"sources": sources, "max_tokens": 220}
    stage["rendering"] |= {"max_length": 256, "max_prompt_length": stage["rendering"]["max_prompt_length"] and 128}
    stage["training"] |= {"sequences_per_step": 4, "epochs": 1, "precision": "float32"}
