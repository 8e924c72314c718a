"""The rows of an evaluation: each asks what it says it asks, calls the TRM where it should, and costs what its positions cost."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.trlm_core.trm.tiny_phases import make_rows, make_table
from tests.trlm_core.trm.tiny_thinker import EOS, LORA, TOKENS, D, M, make_llama, make_model
from trlm_core.recipes.trm_schema import Phase2Gate, TRMEvaluation
from trlm_core.trm import evaluate as module
from trlm_core.trm.answer_cost import Weights, Work, as_tokens, flops, thought_flops
from trlm_core.trm.answers import up_to_eos
from trlm_core.trm.config import PAPER, HiddenStateConfig, LatentThoughtConfig
from trlm_core.trm.controls import mean_thought, non_recursive_twin
from trlm_core.trm.evaluate import (
    Claim,
    Evaluation,
    EvaluationRow,
    Rivals,
    Thinkers,
    answer_of,
    at_least,
    best_step,
    claims,
    evaluate,
)
from trlm_core.trm.latent_thought_model import LatentThoughtModel
from trlm_core.trm.phase_rows import RowTable
from trlm_core.trm.thinker import Thinker
from trlm_core.trm.thought_data import ThoughtRow, collate

ROWS: Any = (
    *("direct", "text", "text_oracle", "oracle_latents", "pre_latents", "mean_latent"),
    *("pause", "nonrecursive", "trm", "direct_tuned"),
)
NONE = Rivals(nonrecursive=None, pauses_1MD=None, direct_tuned=None)


def make_recipe(rows: Any = ROWS, halting: bool = True) -> TRMEvaluation:
    return TRMEvaluation(split="validation", examples=70, steps=(1, 3), halting=halting, rows=rows, max_new_tokens=4)


def evaluated(model: LatentThoughtModel, rows: Any, rivals: Rivals = NONE, halting: bool = False) -> Evaluation:
    return evaluate(Thinkers.alone(model), make_table(70), make_recipe(rows, halting), rivals, lambda row, left: None)


def test_every_row_is_there_in_order_and_the_result_is_json():
    model, told = make_model(), []
    rivals = Rivals(non_recursive_twin(model), mean_thought(model).unsqueeze(0), make_llama(seed=7))
    result = evaluate(Thinkers.alone(model), make_table(80), make_recipe(), rivals, lambda row, left: told.append((row.name, left)))
    assert [row.name for row in result.rows] == [*ROWS[:8], "trm/1", "trm/2", "trm/3", "trm/halting", "direct_tuned"]
    assert told == [(row.name, len(result.rows) - 1 - number) for number, row in enumerate(result.rows)]
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
    assert model.trm_calls == 2 * 4  # 70 rows are two batches; after 1 step, 2 (its own number) and 3, and with halting


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
    result = evaluate(Thinkers.alone(model), table, make_recipe(("direct",)), NONE, lambda row, left: None)
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


def test_the_halting_head_is_right_where_it_tells_right_from_wrong():
    model = make_model()
    with torch.no_grad():
        model.thinker.trm.core.halt_head.bias.fill_(9.0)
    first, *_, halting = evaluated(model, ("trm",), halting=True).rows
    assert (first.steps, halting.steps) == (1.0, 1.0)
    assert halting.exact == first.exact == 0.0
    assert (first.halt_accuracy, first.majority) == (0.0, 1.0), "it holds every wrong answer to be right"
    with torch.no_grad():
        model.thinker.trm.core.halt_head.bias.fill_(-9.0)
    *_, last, never = evaluated(model, ("trm",), halting=True).rows
    assert (never.steps, last.halt_accuracy) == (3.0, 1.0)


def test_a_head_that_has_chosen_the_step_is_not_asked_whether_it_is_right():
    """A row that it has stopped it has called right: its share of right ones would be the accuracy over again."""
    assert evaluated(make_model(), ("trm",), halting=True).rows[-1].halt_accuracy is None


def test_the_majority_is_what_a_head_of_one_mind_gets_right():
    rows = [EvaluationRow("trm/1", exact, 0.0, 1.0, 0.9, 17.0, 16, 1.0, 1.0, 1.0) for exact in (0.2, 0.75)]
    assert [row.majority for row in rows] == [0.8, 0.75]


def test_the_trm_is_asked_after_its_first_step_and_after_as_many_as_it_is_exported_with():
    asked = make_recipe(("trm",), halting=False).model_copy(update={"steps": (4,)})
    rows = evaluate(Thinkers.alone(make_model(eval_steps=3)), make_table(4), asked, NONE, lambda row, left: None).rows
    assert [row.name for row in rows] == ["trm/1", "trm/3", "trm/4"]


def test_rows_without_a_trm_ask_the_language_model_as_it_was_before_any_phase_moved_it():
    """The last model's adapters are not at rest and its compressor is another."""
    first, last = make_model(), make_model(lora=LORA)
    with torch.no_grad():
        for name, weight in last.named_parameters():
            if "lora_B" in name or "compressor" in name or "projector" in name:
                weight.normal_()
    rows, pauses = ROWS[:7], Rivals(None, mean_thought(first).unsqueeze(0), None)
    of_the_run, of_the_first, of_the_last = (
        evaluate(thinkers, answered_by(first), make_recipe(rows), pauses, lambda row, left: None)
        for thinkers in (Thinkers(first, None, last), Thinkers.alone(first), Thinkers.alone(last))
    )
    assert without_seconds(of_the_run.rows) == without_seconds(of_the_first.rows)
    assert of_the_first.exact("direct") == 1.0
    assert of_the_last.exact("direct") < 1.0


def test_a_trm_of_phase_2_is_asked_beside_the_last_one():
    first, phase2, last = make_model(), make_model(), make_model()
    rows = evaluate(Thinkers(first, phase2, last), make_table(4), make_recipe(("trm",)), NONE, lambda row, left: None).rows
    assert [row.name for row in rows] == ["phase2/1", "phase2/2", "phase2/3", "trm/1", "trm/2", "trm/3", "trm/halting"]
    assert (first.trm_calls, phase2.trm_calls, last.trm_calls) == (0, 3, 4)


def answered_by(model: LatentThoughtModel) -> RowTable:
    """Rows whose answers are what this model says without a thought."""
    rows = make_rows(12)
    batch = collate(rows, TOKENS)
    prompt = model.encode_prompt(batch.prompt_ids_BL, batch.prompt_mask_BL)
    answers = module._Asked(model, batch, rows, make_recipe()).after(prompt.embeds_BLD[:, :0], prompt).answers
    return RowTable.of([dataclasses.replace(row, answer=answer) for row, answer in zip(rows, answers, strict=True)], TOKENS)


def without_seconds(rows: tuple[EvaluationRow, ...]) -> list[EvaluationRow]:
    return [dataclasses.replace(row, seconds=0.0) for row in rows]


def test_a_rival_that_was_not_trained_is_an_error():
    with pytest.raises(ValueError, match="wanted a trained rival for pause, got none"):
        evaluated(make_model(), ("pause",))


def test_a_model_with_adapters_is_asked_too():
    result = evaluated(make_model(lora=LORA), ("direct", "text_oracle", "trm"))
    assert len(result.rows) == 5


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


WEIGHTS = Weights(
    body=100, head=10, compressor_reads=4, compressor_writes=6, block=5, layers_of_a_step=2, trm_head=1, projector=2, num_latents=8
)


def test_costs_by_hand():
    assert flops(WEIGHTS, Work(read=7)) == 2 * 7 * 100
    assert flops(WEIGHTS, Work(read=7, written=3)) == 2 * (10 * 100 + 3 * 10)
    assert flops(WEIGHTS, Work(read=7, written=3, latents=8, compressed=7, steps=2, projected=8)) == 2 * (
        18 * 100 + 3 * 10 + 7 * 4 + 8 * 6 + 2 * 2 * 5 * 8 + 8 * 1 + 8 * 2
    )
    assert as_tokens(WEIGHTS, 440.0) == 2.0


def test_latents_that_are_constants_cost_what_the_language_model_reads_of_them():
    assert flops(WEIGHTS, Work(read=7, latents=8)) == flops(WEIGHTS, Work(read=15))


def work_of(ask: Any, model: LatentThoughtModel) -> Work:
    """Of one row: a prompt of 6 tokens, a thought of 4."""
    rows = [ThoughtRow((1, 5, 6, 7, 8, 2), (8, 7, 6, 5), (8, 7, EOS))]
    (work,) = ask(module._Asked(model, collate(rows, TOKENS), rows, make_recipe())).work
    return dataclasses.replace(work, written=0)


THINKS = module._thinking(steps=2, halting=False)


@pytest.mark.parametrize(
    ("ask", "model", "work"),
    [
        (module._direct, {}, Work(read=6)),
        (module._text_oracle, {}, Work(read=6 + 4)),
        (module._constant(torch.zeros(1, M, D)), {}, Work(read=6, latents=M)),
        (module._pre_latents, {}, Work(read=6, latents=M, compressed=6, projected=M)),
        (module._oracle_latents, {}, Work(read=6 + 5, latents=M, compressed=5, projected=M)),  # the thought and its </think>
        (THINKS, {}, Work(read=6, latents=M, compressed=6, steps=2, projected=M)),
        (THINKS, {"lora": LORA}, Work(read=6 + 6, latents=M, compressed=6, steps=2, projected=M)),  # without adapters, and with
        (module._direct, {"lora": LORA}, Work(read=6)),
    ],
    ids=["direct", "text_oracle", "constant", "pre_latents", "oracle_latents", "trm", "trm, adapters", "direct, adapters"],
)
def test_a_row_is_charged_for_what_it_reads(ask: Any, model: dict[str, Any], work: Work):
    with torch.no_grad():
        assert work_of(ask, make_model(**model)) == work


@torch.no_grad()
def test_a_prompt_that_loses_its_oldest_part_is_read_anew():
    """Of 14 positions, prompt 6, latents 4 and 5 after them are one too many: 4 of the prompt go, 2 are read a second time."""
    model = make_model(make_llama(max_positions=14), insertion="slide")
    assert work_of(THINKS, model) == Work(read=6 + 2, latents=M, compressed=6, steps=2, projected=M)


@torch.no_grad()
def test_a_row_without_latents_needs_no_room_for_any():
    """A prompt of 6 and 5 after it fit into 11 positions; with 4 latents they would not."""
    assert work_of(module._direct, make_model(make_llama(max_positions=11))) == Work(read=6)
    with pytest.raises(ValueError, match=r"got 6 of the prompt \+ 4 latents \+ 5 after them"):
        work_of(THINKS, make_model(make_llama(max_positions=11)))


GATE = Phase2Gate(over_direct=0.10, over_nonrecursive=0.05, best_over_first_step=0.05)


def evaluation_of(**exacts: float) -> Evaluation:
    rows = tuple(EvaluationRow(name, exact, 0.02, None, None, 17.0, 16, 1.0, 1.0, 1.0) for name, exact in exacts.items())
    return Evaluation(500, 1, 1, rows)


def test_claims_are_differences_to_the_frozen_model_to_the_twin_to_the_tuned_model_and_to_the_first_step():
    evaluation = evaluation_of(
        **{"direct": 0.434, "nonrecursive": 0.60, "trm/1": 0.382, "trm/4": 0.626, "trm/8": 0.628, "direct_tuned": 0.64}
    )
    made = claims(evaluation, GATE, exported=4, best=8)
    assert [(each.name, round(each.got, 3), each.holds) for each in made] == [
        ("over_direct", 0.192, True),
        ("over_nonrecursive", 0.026, False),
        ("over_direct_tuned", -0.014, False),
        ("best_over_first_step", 0.246, True),
    ]


def test_the_best_step_of_a_claim_is_not_chosen_on_the_rows_that_it_is_claimed_of():
    validation = evaluation_of(**{"trm/1": 0.4, "trm/4": 0.7, "trm/8": 0.7})
    test = evaluation_of(**{"direct": 0.4, "trm/1": 0.4, "trm/4": 0.5, "trm/8": 0.9})
    (*_, best) = claims(test, GATE, exported=4, best=best_step(validation))
    assert best.got == pytest.approx(0.1)


def test_after_later_phases_claims_are_of_the_trm_as_phase_2_left_it():
    """The twin without recursion has had no phase 3 either."""
    exacts = {"nonrecursive": 0.5, "phase2/1": 0.4, "phase2/4": 0.6, "trm/1": 0.8, "trm/4": 0.9}
    twin, best = claims(evaluation_of(**exacts), GATE, exported=4, best=4)
    assert (twin.got, best.got) == (pytest.approx(0.1), pytest.approx(0.2))


@pytest.mark.parametrize(
    ("wanted", "got", "holds"), [(0.1, 0.1, True), (0.1, 0.09, False), (0.0, 0.001, True), (0.0, 0.0, False), (0.0, -0.1, False)]
)
def test_a_claim_holds_from_what_is_wanted_on_and_never_for_no_gain_at_all(wanted: float, got: float, holds: bool):
    assert Claim("x", wanted, got).holds is holds


def test_what_is_wanted_is_said_as_it_is_asked():
    assert [at_least(wanted) for wanted in (0.05, 0.0)] == ["at least 0.050", "more than 0.000"]
