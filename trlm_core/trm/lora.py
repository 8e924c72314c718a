"""Adapters on the language model for phase 2b, through peft; `<think>` and `</think>` stay trainable beside them."""

from typing import cast

import peft
from peft import PeftModel

from trlm_core.trm.config import LoraConfig
from trlm_core.trm.hidden_states import LanguageModel, embedding_table
from trlm_core.trm.think_tokens import ThinkTokens


def with_lora(base: LanguageModel, config: LoraConfig, tokens: ThinkTokens) -> PeftModel:
    """Everything but the adapters and the two tokens' embeddings is frozen.

    Raises ValueError for a tokenizer with more tokens than the language model has embeddings: resize it before, since a table that is
    resized after would be a new and frozen one.
    """
    if isinstance(base, PeftModel):
        return base
    rows = len(embedding_table(base))
    if max(tokens.think, tokens.end_think) >= rows:
        wanted = f"wanted rows for <think> {tokens.think} and </think> {tokens.end_think}"
        raise ValueError(f"embeddings: {wanted}, got {rows}; resize before LoRA")
    settings = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        target_modules=list(config.target_modules),
        lora_dropout=0.0,
        trainable_token_indices=[tokens.think, tokens.end_think],
        task_type="CAUSAL_LM",
    )
    return cast(PeftModel, peft.get_peft_model(base, settings))
