"""The rows of an evaluation: each asks what it says it asks, calls the TRM where it should, and costs what its positions cost."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trlm_core.trm.tiny_phases import make_rows, make_table
from tests.trlm_core.trm.tiny_thinker import EOS, LORA, TOKENS, make_llama, make_model
from trlm_core.recipes.trm_schema import Phase2Gate, TRMEvaluation
from trlm_core.trm import evaluate as module
from trlm_core.trm.answer_cost import Weights, Work, as_tokens, flops, thought_flops
from trlm_core.trm.answers import up_to_eos
from trlm_core.trm.config import PAPER, HiddenStateConfig, LatentThoughtConfig
from trlm_core.trm.controls import mean_thought, non_recursive_twin
from trlm_core.trm.evaluate import Claim, Evaluation, EvaluationRow, Rivals, answer_of, claims, evaluate
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.thinker import Thinker
from trlm_core.trm.thought_data import collate

ROWS: Any = (
    *("direct", "text", "text_oracle", "oracle_latents", "pre_latents", "mean_latent"),
    *("pause", "nonrecursive", "trm", "direct_tuned"),
)
NONE = Rivals(nonrecursive=None, pauses_1MD=None, direct_tuned=None)


def make_recipe(rows: Any = ROWS, halting: bool = True) -> TRMEvaluation:
    return TRMEvaluation(split="validation", examples=70, steps=(1, 3), halting=halting, rows=rows, max_new_tokens=4)


def evaluated(model: LatentThoughtModel, rows: Any, rivals: Rivals = NONE, halting: bool = False) -> Evaluation:
    return evaluate(model, make_table(70), make_recipe(rows, halting), rivals, lambda row: None)


def test_every_row_is_there_in_order_and_the_result_is_json():
    model, told = make_model(), []
    rivals = Rivals(non_recursive_twin(model), mean_thought(model).unsqueeze(0), make_llama(seed=7))
    result = evaluate(model, make_table(80), make_recipe(), rivals, told.append)
    assert [row.name for row in result.rows] == [*ROWS[:8], "trm/1", "trm/3", "trm/halting", "direct_tuned"]
    assert [row.name for row in told] == [row.name for row in result.rows]
    assert result.examples == 70
    assert json.loads(json.dumps(dataclasses.asdict(result)))["rows"][0]["name"] == "direct"
    assert all(0.0 <= row.exact <= 1.0 for row in result.rows)


def test_pauses_that_are_the_mean_thought_answer_as_the_mean_thought_does():
    model = make_model()
    result = evaluated(model, ("mean_latent", "pause"), Rivals(None, mean_thought(model).unsqueeze(0), None))
    mean, pause = result.rows
    assert dataclasses.replace(mean, name="", seconds=0.0) == dataclasses.replace(pause, name="", seconds=0.0)


def test_the_trm_is_called_once_a_batch_by_its_own_rows_and_by_no_other():
    model = make_model()
    evaluated(model, ("direct", "text", "oracle_latents", "pre_latents", "mean_latent"))
    assert model.trm_calls == 0
    evaluated(model, ("trm",), halting=True)
    assert model.trm_calls == 2 * 3  # 70 rows are two batches; after 1 step, after 3, and with halting


def test_answers_are_told_right_from_wrong():
    """A language model that answers 7 and ends, whatever it is asked, is right about the rows whose answer that is."""
    model, rows = make_model(), make_rows(8)
    batch = collate(rows, TOKENS)
    prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    asked = module._Asked(model, batch, rows, make_recipe())
    answered = asked.after(prompt.embeds_BLD[:, :0], prompt)
    own = [dataclasses.replace(row, answer=answer) for row, answer in zip(rows, answered.answers, strict=True)]
    own[3] = dataclasses.replace(own[3], answer=(*own[3].answer[:-1], own[3].answer[-1] + 1))
    table = RowTable.of(own, TOKENS)
    result = evaluate(model, table, make_recipe(("direct",)), NONE, lambda row: None)
    assert result.exact("direct") == 7 / 8
    assert result.rows[0].standard_error == pytest.approx((7 / 8 * 1 / 8 / 8) ** 0.5)


def test_the_right_thought_in_text_is_read_as_the_language_model_reads_it():
    base: Any = make_llama()
    rows = make_rows(5)
    asked = module._Asked(make_model(base), collate(rows, TOKENS), rows, make_recipe())
    for row, answer in zip(rows, module._text_oracle(asked).answers, strict=True):
        ids = torch.tensor([[*row.prompt, *row.thought, TOKENS.end_think]])
        whole = base.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        assert answer == up_to_eos(whole[0, ids.shape[1] :].tolist(), EOS)


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ([9, 8, TOKENS.end_think, 7, 6, EOS, 5], (7, 6, EOS)),
        ([TOKENS.end_think, EOS], (EOS,)),
        ([9, 8, EOS], ()),  # it ends inside its thought
        ([9, TOKENS.end_think, 7], (7,)),
    ],
)
def test_an_answer_in_text_is_what_follows_the_thought(written: list[int], answer: tuple[int, ...]):
    assert answer_of(written, TOKENS) == answer


def test_halting_tells_the_mean_steps_and_how_often_its_head_was_right():
    model = make_model()
    with torch.no_grad():
        model.thinker.trm.core.halt_head.bias.fill_(9.0)
    fixed, _, halting = evaluated(model, ("trm",), halting=True).rows
    assert (fixed.steps, halting.steps) == (1.0, 1.0)
    assert halting.exact == fixed.exact == 0.0
    assert halting.halt_accuracy == 0.0, "it holds every wrong answer to be right"
    with torch.no_grad():
        model.thinker.trm.core.halt_head.bias.fill_(-9.0)
    never = evaluated(model, ("trm",), halting=True).rows[-1]
    assert (never.steps, never.halt_accuracy) == (3.0, 1.0)


def test_a_rival_that_was_not_trained_is_an_error():
    with pytest.raises(ValueError, match="wanted a trained rival for pause, got none"):
        evaluated(make_model(), ("pause",))


def test_a_model_with_adapters_is_asked_too():
    result = evaluated(make_model(lora=LORA), ("direct", "text_oracle", "trm"))
    assert len(result.rows) == 4


def test_more_steps_cost_more_and_a_thought_costs_more_than_none():
    costs = {row.name: row.flops for row in evaluated(make_model(), ("direct", "mean_latent", "pre_latents", "trm")).rows}
    assert costs["trm/3"] > costs["trm/1"] > costs["pre_latents"] > costs["mean_latent"] > costs["direct"]


def test_a_thought_of_the_paper_s_depth_costs_what_1270_tokens_of_smollm2_135m_do():
    sizes = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
    )
    recursion = dataclasses.replace(PAPER, width=576, n_heads=9)
    config = LatentThoughtConfig("", None, HiddenStateConfig(576, 64, recursion), -1, "append", 4, 16, False, None)
    with torch.device("meta"):
        model = LatentThoughtModel(
            LlamaForCausalLM(sizes), config, TOKENS, Thinker(config.states, embedding_scale=1.0), digest="of no weights"
        )
    weights = Weights.of(model)
    assert thought_flops(weights, 16) == pytest.approx(342e9, rel=0.01)
    assert as_tokens(weights, thought_flops(weights, 16)) == pytest.approx(1270, rel=0.01)


def test_costs_by_hand():
    weights = Weights(body=100, head=10, compressor_reads=4, compressor_writes=6, block=5, layers_of_a_step=2, out=3, num_latents=8)
    assert flops(weights, Work(prompt=7)) == 2 * 7 * 100
    assert flops(weights, Work(prompt=7, written=3)) == 2 * (10 * 100 + 3 * 10)
    assert flops(weights, Work(prompt=7, thought_read=5, written=3)) == 2 * (15 * 100 + 3 * 10)
    assert flops(weights, Work(prompt=7, written=3, latents=8, compressed=7, steps=2)) == 2 * (
        18 * 100 + 3 * 10 + 7 * 4 + 8 * 6 + 2 * 2 * 5 * 8 + 8 * 3
    )
    assert as_tokens(weights, 440.0) == 2.0


def test_claims_are_differences_to_the_frozen_model_to_the_twin_and_to_the_first_step():
    exacts = {"direct": 0.434, "nonrecursive": 0.60, "trm/1": 0.382, "trm/4": 0.626, "trm/8": 0.628}
    rows = tuple(EvaluationRow(name, exact, 0.02, None, None, 17.0, 16, 1.0, 1.0, 1.0) for name, exact in exacts.items())
    gate = Phase2Gate(over_direct=0.10, over_nonrecursive=0.05, best_over_first_step=0.05)
    made = claims(Evaluation(500, 1, 1, rows), gate, steps=(1, 4, 8), thought_steps=4)
    assert [(each.name, round(each.got, 3), each.holds) for each in made] == [
        ("over_direct", 0.192, True),
        ("over_nonrecursive", 0.026, False),
        ("best_over_first_step", 0.246, True),
    ]
    assert Claim("x", 0.1, 0.1).holds
