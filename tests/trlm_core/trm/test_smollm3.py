"""trm-smollm3-3b without its weights: one thought at its full shapes, and its phases on a twin of the same class with two layers."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SmolLM3Config, SmolLM3ForCausalLM

from tests.trlm_core.trm.tiny_phases import make_phase1, make_phase2, make_run, make_table
from tests.trlm_core.trm.tiny_thinker import BOS, EOS, PAD, TOKENS, D, V, make_model
from trlm_core.recipes.trm_load import load_trm_recipe
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase1 import Phase1Module
from trlm_core.trm.phase2 import Phase2Module
from trlm_core.trm.phase3 import language_model_sha256
from trlm_core.trm.phase_models import config_of
from trlm_core.trm.phase_rows import latents_of, live_states
from trlm_core.trm.phase_trainer import run_phase

SIZES = {  # of HuggingFaceTB/SmolLM3-3B
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 128_256,
    "max_position_embeddings": 65_536,
    "tie_word_embeddings": True,
}
B, L, A = 2, 300, 5


class NoData(TorchDispatchMode):
    """Meta tensors have shapes and no data: whoever asks one for its value (is a row masked, are the statistics fitted) hears 1."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].dtype.is_floating_point else 1)
        if func is torch.ops.aten.equal.default and args[0].is_meta:
            return True
        return func(*args, **(kwargs or {}))


def weights_of(part: nn.Module) -> int:
    return sum(each.numel() for each in part.parameters())


@pytest.fixture
def model() -> Iterator[LatentThoughtModel]:
    with torch.device("meta"), NoData():
        base = SmolLM3ForCausalLM(SmolLM3Config(**SIZES)).eval()
        nn.Module.to(base, torch.bfloat16)
        yield LatentThoughtModel(base, config_of(load_trm_recipe("trm-smollm3-3b"), base), TOKENS, digest="of no weights").eval()


def test_a_thought_of_the_3b_recipe_has_its_full_shapes_and_no_weight_is_allocated(model: LatentThoughtModel):
    ids_BL, mask_BL = torch.zeros(B, L, dtype=torch.long), torch.ones(B, L, dtype=torch.long)
    prompt = model.encode_prompt(ids_BL, mask_BL)
    assert (prompt.h_BLD.shape, prompt.h_BLD.dtype) == ((B, L, 2048), torch.bfloat16)
    thought = model.think(prompt)
    assert (thought.v_BMd.shape, thought.u_BMD.shape, thought.q_logits_BS.shape) == ((B, 256, 512), (B, 256, 2048), (B, 16))
    logits_BAV = model.answer_logits(prompt, thought.u_BMD, torch.zeros(B, A, dtype=torch.long))
    assert (logits_BAV.shape, logits_BAV.dtype) == ((B, A, 128_256), torch.bfloat16)
    assert model.read(thought.v_BMd, torch.ones(B, L)).shape == (B, L, 128_256)
    assert (weights_of(model.base), weights_of(model.thinker.trm.core.net)) == (3_075_098_624, 6_324_224)
    assert {each.device.type for each in [*model.state_dict().values(), logits_BAV]} == {"meta"}


def make_twin() -> LatentThoughtModel:
    torch.manual_seed(0)
    small = {"hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = SmolLM3Config(
        **{**SIZES, **small, "vocab_size": V, "max_position_embeddings": 64},
        no_rope_layers=[1, 0],  # as in the 3B, where every fourth layer has no positions
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        initializer_range=0.3,
    )
    base = SmolLM3ForCausalLM(config).eval()
    nn.Module.to(base, torch.bfloat16)
    return make_model(base)


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_a_twin_of_two_layers_trains_in_bf16_mixed_and_its_language_model_is_frozen(phase: str, tmp_path: Path):
    model, table = make_twin(), make_table()
    before = language_model_sha256(model.base)
    if phase == "phase1":
        module: Any = Phase1Module(model, table, live_states(model), make_phase1(), seed=5)
    else:
        module = Phase2Module(model, table, latents_of(model, table, live_states(model)), make_phase2(), seed=5)
    started = {name: each.detach().clone() for name, each in module.trained.items()}
    history = run_phase(module, make_run(tmp_path, precision="bf16-mixed"))
    assert [line["step"] for line in history] == [*range(1, 7)]
    assert all(math.isfinite(value) for line in history for value in line.values())
    assert "loss_answer" in history[-1], "the answer's loss went through the language model"
    assert language_model_sha256(model.base) == before
    assert {each.dtype for each in module.trained.values()} == {torch.float32}
    assert {each.dtype for each in model.base.parameters()} == {torch.bfloat16}
    assert [name for name, each in module.trained.items() if torch.equal(each, started[name])] == []
