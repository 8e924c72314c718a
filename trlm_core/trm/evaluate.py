"""How many answers are right, row by row: without a thought, with one in text, with latents; and what each answer costs.

    direct           an empty thought                     pre_latents     the prompt's latents as they are, without the TRM
    text             a thought that it writes itself      mean_latent     the mean thought, the same for every prompt
    text_oracle      the right thought in text            pause           constants that were learned
    oracle_latents   the right thought in latents         nonrecursive    the TRM's parameters without its recursion
    direct_tuned     another language model, fine-tuned   trm/N, trm/halting    after N steps, or as its own head decides
    phase2/N         trm/N before the later phases: what the twin without recursion, which has none of them, is held against
B batch, L positions of a prompt, M latents, d the TRM's width, D the language model's, S supervision steps.
"""
# ruff: noqa: N815 - tensor names carry their shape

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trlm_core.recipes.trm_schema import Phase2Gate, TRMEvaluation
from trlm_core.trm.answer_cost import Weights, Work, as_tokens, flops
from trlm_core.trm.answers import Ids, Writing, exact, up_to_eos, write_answers
from trlm_core.trm.controls import mean_thought
from trlm_core.trm.hidden_states import embed
from trlm_core.trm.latent_generation import Decoding
from trlm_core.trm.latent_thought_model import EncodedPrompt, LatentThoughtModel
from trlm_core.trm.phase_rows import RowTable, live_states
from trlm_core.trm.think_tokens import ThinkTokens
from trlm_core.trm.thought_data import ThoughtBatch, ThoughtRow, padded

Rival = TypeVar("Rival")
TRM, HALTING, PHASE2 = "trm", "trm/halting", "phase2"


@dataclass(frozen=True)
class Thinkers:
    """One run's models after its phases, each asked for its own rows."""

    first: LatentThoughtModel  # phase 1's: a language model without adapters, and latents that no later phase has moved
    phase2: LatentThoughtModel | None  # None: it is the last
    last: LatentThoughtModel

    @classmethod
    def alone(cls, model: LatentThoughtModel) -> "Thinkers":
        return cls(first=model, phase2=None, last=model)


@dataclass(frozen=True)
class Rivals:
    """What the TRM is measured against, where it was trained."""

    nonrecursive: LatentThoughtModel | None
    pauses_1MD: Tensor | None
    direct_tuned: PreTrainedModel | None


@dataclass(frozen=True)
class EvaluationRow:
    """Numbers are means over the examples."""

    name: str
    exact: float
    standard_error: float
    steps: float | None  # supervision steps of a thought
    halt_accuracy: float | None  # how often the halting head is right about the answer; None where it has chosen the step itself
    visible_tokens: float  # that the language model wrote
    latent_positions: int
    flops: float
    generated_token_equivalents: float
    seconds: float  # for all examples, in batches

    @property
    def majority(self) -> float:
        """How often a head that says the same of every answer is right."""
        return max(self.exact, 1 - self.exact)


OnRow = Callable[[EvaluationRow, int], None]  # a row that is done, and how many are left


@dataclass(frozen=True)
class Evaluation:
    """`dataclasses.asdict` of it is JSON."""

    examples: int
    language_model_parameters: int
    thinker_parameters: int
    rows: tuple[EvaluationRow, ...]

    def exact(self, name: str) -> float:
        return next(row.exact for row in self.rows if row.name == name)


@dataclass(frozen=True)
class Claim:
    """One line of a gate: a difference of exact-match accuracies."""

    name: str
    wanted: float  # at least, and more than nothing: a phase that changes nothing has gained nothing
    got: float

    @property
    def holds(self) -> bool:
        return self.got >= self.wanted and self.got > 0


def at_least(wanted: float) -> str:
    """A claim's wanted, in the words of Claim.holds."""
    return f"at least {wanted:.3f}" if wanted > 0 else "more than 0.000"


@dataclass(frozen=True)
class _Answered:
    """Some examples' answers, and what was done for each."""

    answers: list[Ids] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    halts: list[bool] = field(default_factory=list)  # what the halting head thought of each; none where no TRM thought

    def add(self, other: "_Answered") -> None:
        self.answers.extend(other.answers)
        self.work.extend(other.work)
        self.halts.extend(other.halts)


@dataclass(frozen=True)
class _Asked:
    """A batch of examples, and the model that is asked."""

    model: LatentThoughtModel
    batch: ThoughtBatch
    rows: list[ThoughtRow]
    recipe: TRMEvaluation

    def prompt(self) -> EncodedPrompt:
        return self.model.encode_prompt(self.batch.prompt_ids_BL, self.batch.prompt_mask_BL)

    def after(
        self, u_BMD: Tensor, prompt: EncodedPrompt, states: "SpanOfStates | None" = None, steps: Sequence[int] | None = None
    ) -> _Answered:
        """After these latents. states: that they were made from; None: constants, or no latents at all."""
        answers, n_latents = write_answers(self.model, prompt, u_BMD, self.writing), u_BMD.shape[1]
        read = self._read_for_the_answer(prompt, n_latents, shares_states=states is not None)
        work = [
            Work(
                read=read[number] + (len(row.prompt) if states else 0) + (_thought_length(row) if states == "thought" else 0),
                written=len(answer),
                latents=n_latents,
                compressed={None: 0, "prompt": len(row.prompt), "thought": _thought_length(row)}[states],
                steps=steps[number] if steps is not None else 0,
                projected=n_latents if states else 0,
            )
            for number, (row, answer) in enumerate(zip(self.rows, answers, strict=True))
        ]
        return _Answered(answers, work)

    @property
    def writing(self) -> Writing:
        return Writing(self.recipe.max_new_tokens, temperature=None)

    def _read_for_the_answer(self, prompt: EncodedPrompt, n_latents: int, *, shares_states: bool) -> list[int]:
        """Positions of each prompt; none where those that its states were read from serve: without adapters, if all of it stays."""
        window_BL = self.model.window(prompt, n_latents, room=1 + self.recipe.max_new_tokens)
        kept, whole = window_BL.sum(dim=1).tolist(), prompt.mask_BL.sum(dim=1).tolist()
        shares = shares_states and prompt.cache is not None
        return [0 if shares and here == all_of_it else here for here, all_of_it in zip(kept, whole, strict=True)]


SpanOfStates = Literal["prompt", "thought"]
Ask = Callable[[_Asked], _Answered]


def _thought_length(row: ThoughtRow) -> int:
    return len(row.thought) + 1  # with its </think>


@torch.no_grad()
def evaluate(thinkers: Thinkers, table: RowTable, recipe: TRMEvaluation, rivals: Rivals, on_row: OnRow) -> Evaluation:
    """Every row of the recipe over the table's first examples. Raises ValueError for a row whose rival there is not."""
    numbers, rows = range(min(recipe.examples, len(table))), []
    askers = [*_askers(thinkers, recipe, rivals)]
    for name, asked_model, ask in askers:
        rows.append(_row(name, asked_model, ask, table, numbers, recipe))
        on_row(rows[-1], len(askers) - len(rows))
    return Evaluation(
        examples=len(numbers),
        language_model_parameters=sum(each.numel() for each in thinkers.first.base.parameters()),
        thinker_parameters=sum(each.numel() for each in thinkers.last.thinker.parameters()),
        rows=tuple(rows),
    )


def steps_asked(recipe: TRMEvaluation, exported: int) -> tuple[int, ...]:
    """Supervision steps of the TRM's rows: the recipe's; 1, which a gate compares with; and as many as it is exported with."""
    return tuple(sorted({1, *recipe.steps, exported}))


def steps_of(evaluation: Evaluation, of: str = TRM) -> list[tuple[int, EvaluationRow]]:
    """The TRM's rows by their fixed number of supervision steps: the last phase's, or those of PHASE2."""
    rows = [(row.name.removeprefix(f"{of}/"), row) for row in evaluation.rows if row.name.startswith(f"{of}/")]
    return [(int(step), row) for step, row in rows if step.isdigit()]


def best_step(evaluation: Evaluation) -> int:
    """The earliest of those at which the last phase's TRM is right most often."""
    return max(steps_of(evaluation), key=lambda step_and_row: step_and_row[1].exact)[0]


def claims(evaluation: Evaluation, gate: Phase2Gate, exported: int, best: int) -> tuple[Claim, ...]:
    """Whether the TRM helps, as phase 2 leaves it. exported: its steps where nobody says otherwise; best: as chosen on validation.

    Over what was not asked, as the twin without recursion where none was trained, nothing is claimed.
    """
    rows = dict(steps_of(evaluation, PHASE2) or steps_of(evaluation, TRM))
    wanted = {"direct": gate.over_direct, "nonrecursive": gate.over_nonrecursive, "direct_tuned": 0.0}  # the last in no gate
    over = (Claim(f"over_{row.name}", wanted[row.name], rows[exported].exact - row.exact) for row in evaluation.rows if row.name in wanted)
    return (*over, Claim("best_over_first_step", gate.best_over_first_step, rows[best].exact - rows[1].exact))


def _askers(thinkers: Thinkers, recipe: TRMEvaluation, rivals: Rivals) -> Iterator[tuple[str, LatentThoughtModel, Ask]]:
    """Each row's name, whom it asks, and how."""
    first = thinkers.first
    for name in recipe.rows:
        if name == TRM:
            yield from _trm_askers(thinkers, recipe)
        elif name == "nonrecursive":
            yield name, _present(rivals.nonrecursive, name), _thinking(1, halting=False)
        elif name == "direct_tuned":
            tuned = _present(rivals.direct_tuned, name)
            yield name, LatentThoughtModel(tuned, replace(first.config, lora=None), first.tokens, first.thinker).eval(), _direct
        elif name == "pause":
            yield name, first, _constant(_present(rivals.pauses_1MD, name))
        elif name == "mean_latent":
            yield name, first, _constant(mean_thought(first).unsqueeze(0))
        else:
            yield name, first, PLAIN[name]


def _trm_askers(thinkers: Thinkers, recipe: TRMEvaluation) -> Iterator[tuple[str, LatentThoughtModel, Ask]]:
    last = thinkers.last
    every = steps_asked(recipe, last.config.eval_steps)
    if thinkers.phase2 is not None:
        for steps in every:
            yield f"{PHASE2}/{steps}", thinkers.phase2, _thinking(steps, halting=False)
    for steps in every:
        yield f"{TRM}/{steps}", last, _thinking(steps, halting=False)
    if recipe.halting:
        yield HALTING, last, _thinking(max(every), halting=True)


def _present(rival: Rival | None, name: str) -> Rival:
    if rival is None:
        raise ValueError(f"evaluation.rows: wanted a trained rival for {name}, got none; train it (controls.{name}) or leave the row out")
    return rival


def _row(name: str, model: LatentThoughtModel, ask: Ask, table: RowTable, numbers: Sequence[int], recipe: TRMEvaluation) -> EvaluationRow:
    done, began, weights = _Answered(), time.monotonic(), Weights.of(model)
    for some, batch in table.batches(numbers):
        rows = [table.rows[number] for number in some]
        done.add(ask(_Asked(model, batch.to(model.thinker.trm.slots_Md.device), rows, recipe)))
    right = exact(done.answers, [table.rows[number] for number in numbers])
    share, cost = _mean(right), _mean([flops(weights, work) for work in done.work])
    steps = [work.steps for work in done.work if work.steps]
    return EvaluationRow(
        name=name,
        exact=share,
        standard_error=math.sqrt(share * (1 - share) / len(right)),
        steps=_mean(steps) if steps else None,
        halt_accuracy=_mean([one == other for one, other in zip(done.halts, right, strict=True)]) if done.halts else None,
        visible_tokens=_mean([work.written for work in done.work]),
        latent_positions=int(done.work[0].latents),
        flops=cost,
        generated_token_equivalents=as_tokens(weights, cost),
        seconds=time.monotonic() - began,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---------------------------------------------------------------------- how each row is asked


def _no_thought(prompt: EncodedPrompt) -> Tensor:
    return prompt.embeds_BLD[:, :0]


def _direct(asked: _Asked) -> _Answered:
    prompt = asked.prompt()
    return asked.after(_no_thought(prompt), prompt)


def _text(asked: _Asked) -> _Answered:
    """The longest thought of the batch, and as much again, is room for its own."""
    room = 2 * asked.batch.thought_ids_BC.shape[1] + asked.recipe.max_new_tokens
    written = asked.model.generate(asked.batch.prompt_ids_BL, asked.batch.prompt_mask_BL, Decoding(room), "text")
    work = [Work(read=len(row.prompt), written=len(made.new)) for row, made in zip(asked.rows, written, strict=True)]
    return _Answered([answer_of(made.new, asked.model.tokens) for made in written], work)


def answer_of(written: Sequence[int], tokens: ThinkTokens) -> Ids:
    """What comes after the thought; nothing where the thought does not end."""
    if tokens.end_think not in written:
        return ()
    return up_to_eos(written[written.index(tokens.end_think) + 1 :], tokens.eos)


def _text_oracle(asked: _Asked) -> _Answered:
    ids_BS, mask_BS = padded([(*row.prompt, *row.thought) for row in asked.rows], asked.model.tokens.pad, side="left")
    device = asked.batch.prompt_ids_BL.device
    embeds_BSD = embed(asked.model.base, ids_BS.to(device))
    prompt = asked.model.encode_embeds(embeds_BSD, embeds_BSD, mask_BS.to(device))
    return asked.after(_no_thought(prompt), prompt)


def _oracle_latents(asked: _Asked) -> _Answered:
    model, batch = asked.model, asked.batch
    states = live_states(model)([], batch)
    latents_BMd = model.thinker.trm.compressor(states.post_BCD, batch.thought_mask_BC)
    return asked.after(model.thinker.embed(latents_BMd), asked.prompt(), "thought")


def _pre_latents(asked: _Asked) -> _Answered:
    prompt = asked.prompt()
    latents_BMd = asked.model.thinker.trm.compressor(prompt.h_BLD, prompt.mask_BL)
    return asked.after(asked.model.thinker.embed(latents_BMd), prompt, "prompt")


def _constant(u_1MD: Tensor) -> Ask:
    def ask(asked: _Asked) -> _Answered:
        return asked.after(u_1MD.expand(len(asked.batch), -1, -1), asked.prompt())

    return ask


def _thinking(steps: int, halting: bool) -> Ask:
    def ask(asked: _Asked) -> _Answered:
        prompt = asked.prompt()
        thought = asked.model.think(prompt, steps, halting)
        answered = asked.after(thought.u_BMD, prompt, "prompt", thought.steps_B.tolist())
        if halting:  # a row that has halted was told right: of such a head, being right is the accuracy over again
            return answered
        return replace(answered, halts=(thought.q_logits_BS[:, -1] > 0).tolist())

    return ask


PLAIN: dict[str, Ask] = {
    "direct": _direct,
    "text": _text,
    "text_oracle": _text_oracle,
    "oracle_latents": _oracle_latents,
    "pre_latents": _pre_latents,
}
