"""A Llama of 12,000 parameters and a thinker on it, which the tests of this folder share."""

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from trlm_core.trm.config import HiddenStateConfig, LatentThoughtConfig, LoraConfig, RecursionConfig
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.think_tokens import ThinkTokens

PAD, BOS, THINK, END = 0, 1, 2, 3
EOS = PAD  # as in SmolLM2 and SmolLM3: a mask that went by ids would fail here
TOKENS = ThinkTokens(THINK, END, PAD, EOS)
D, M, d, V = 32, 4, 16, 24
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=("q_proj", "v_proj"))


def make_llama(seed: int = 0, max_positions: int = 64, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=D,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.3,  # an untrained model that tells its inputs apart
    )
    llama = LlamaForCausalLM(config)
    nn.Module.to(llama, dtype)
    return llama.eval()


def make_config(**changes: object) -> LatentThoughtConfig:
    settings: dict[str, object] = {
        "base_model_name_or_path": "tiny",
        "base_revision": None,
        "states": HiddenStateConfig(D, M, RecursionConfig(d, 2, 2, 2, 2, 3, 0.1, 0.25)),
        "hidden_layer": -1,
        "insertion": "append",
        "sink_tokens": 1,
        "eval_steps": 2,
        "eval_halting": False,
        "lora": None,
    }
    return LatentThoughtConfig(**{**settings, **changes})  # type: ignore[arg-type]


def make_model(base: PreTrainedModel | None = None, **changes: object) -> LatentThoughtModel:
    base = base or make_llama()
    torch.manual_seed(1)
    model = LatentThoughtModel(base, make_config(**changes), TOKENS)
    model.thinker.trm.norm.fit(torch.randn(1_000, M, d) + 1.0, torch.randn(1_000, M, d))
    return model.eval()


def left(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, padded on the left."""
    longest = max(len(row) for row in rows)
    ids = [[PAD] * (longest - len(row)) + row for row in rows]
    return torch.tensor(ids), torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def right(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = [row + [PAD] * (longest - len(row)) for row in rows]
    return torch.tensor(ids), torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
