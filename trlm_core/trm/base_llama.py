"""Phase 0: a small Llama, trained from nothing on the thoughts, half of the steps without them; then it stays as it is.

checkpoints/trm-acceptance/base/: config.json, model.safetensors, tokenizer, history.jsonl
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from trlm_core.artifacts.fingerprint import Fingerprinted
from trlm_core.artifacts.manifest import Manifest
from trlm_core.artifacts.store import Spec, Store
from trlm_core.data.split import seed_of
from trlm_core.recipes.trm_schema import TrainedLlamaBase, TRMRecipe
from trlm_core.text.tokenizer import load_tokenizer
from trlm_core.training.checkpoint import HISTORY, save_checkpoint
from trlm_core.trm.text_training import History, OnStep, TextTraining, train_on_text
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import TOKENIZER, check_examples, read_thoughts


def base_llama_spec(recipe: TRMRecipe, base: TrainedLlamaBase, thoughts: Fingerprinted) -> Spec:
    identity = {"made_by": "base_llama/1", "base": base.model_dump(mode="json"), "seed": recipe.seed}
    return Spec("checkpoints", recipe.name, "base", identity, {"thoughts": thoughts.fingerprint}, recipe.model_dump(mode="json"))


def make_base_llama(
    store: Store, recipe: TRMRecipe, base: TrainedLlamaBase, thoughts: Manifest, device: str, on_step: OnStep = lambda done, total: None
) -> Manifest:
    spec = base_llama_spec(recipe, base, thoughts)

    def build(folder: Path) -> dict[str, Any]:
        tokenizer = load_tokenizer(store.folder(thoughts) / TOKENIZER)
        tokens, examples = ThinkTokens.of(tokenizer), read_thoughts(store.folder(thoughts), "train")
        check_examples(examples, tokens, base.max_position_embeddings, recipe.model.latents_beside_the_prompt)
        model = new_llama(base, tokenizer, seed_of(recipe.seed, "base/weights")).to(device)  # type: ignore[arg-type]
        training = TextTraining(base.training, base.thought_share, seed_of(recipe.seed, "base/order"))
        history = train_on_text(model, [each.row for each in examples], tokens, training, store.workspace(spec), on_step)
        save_checkpoint(model, tokenizer, folder)
        return write_history(history, folder) | {"parameters": model.num_parameters()}

    return store.make(spec, build)


def new_llama(base: TrainedLlamaBase, tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Random weights, input and output embeddings tied."""
    tokens = ThinkTokens.of(tokenizer)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=base.hidden_size,
        intermediate_size=base.intermediate_size,
        num_hidden_layers=base.num_hidden_layers,
        num_attention_heads=base.num_attention_heads,
        num_key_value_heads=base.num_attention_heads,
        max_position_embeddings=base.max_position_embeddings,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.get_vocab()[str(tokenizer.bos_token)],
        eos_token_id=tokens.eos,
        pad_token_id=tokens.pad,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def write_history(history: History, folder: Path) -> dict[str, Any]:
    """Its counts, for the manifest."""
    (folder / HISTORY).write_text("".join(json.dumps(line) + "\n" for line in history))
    return {"steps": len(history), "loss": history[-1]["loss"]}
