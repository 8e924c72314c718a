"""The recipe of the TRM track: a base, thoughts, a thinker on hidden states, the phases that train it. No default for a decision."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from trlm_core.recipes.schema import HubBase, Name, RecipePart, Revision, Share

NUM_SUDOKU_CELLS = 16
FEWEST_NORM_EXAMPLES = 1_000  # below it the statistics of the latents are noise
RowName = Literal[
    "direct", "text", "text_oracle", "oracle_latents", "pre_latents", "mean_latent", "pause", "nonrecursive", "trm", "direct_tuned"
]
Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class Schedule(RecipePart):
    """AdamW, the rate linear up to its peak and linear down to a share of it."""

    steps: PositiveInt  # optimizer steps
    batch: PositiveInt  # rows of a step
    learning_rate: PositiveFloat
    final_rate_share: Share  # of the learning rate, at the last step
    warmup_steps: NonNegativeInt
    weight_decay: NonNegativeFloat
    betas: Betas = Field(strict=False)
    max_gradient_norm: PositiveFloat

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warmup_steps >= self.steps:
            raise ValueError(f"wanted warmup_steps below steps ({self.steps:,}), got {self.warmup_steps:,}")
        return self

    def rate_at(self, step: int) -> float:
        """Of step 0, 1, ..."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        gone = (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps)
        return self.learning_rate * (1 - gone * (1 - self.final_rate_share))


class TrainedLlamaBase(RecipePart):
    """A small Llama trained from nothing on the thoughts themselves. Field names are transformers'."""

    kind: Literal["trained_llama"]
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    max_position_embeddings: PositiveInt
    thought_share: Share  # of the steps, on rows with their thought; the others answer directly
    training: Schedule


class CheckpointBase(RecipePart):
    """A stage of another recipe, from the store."""

    kind: Literal["checkpoint"]
    recipe: Name
    variant: Name | None
    budget: Name | None
    stage: Name


TRMBase = Annotated[TrainedLlamaBase | CheckpointBase | HubBase, Field(discriminator="kind")]


class SplitCounts(RecipePart):
    train: PositiveInt
    validation: PositiveInt
    test: PositiveInt


def _that_leave_a_puzzle(givens: tuple[int, ...]) -> tuple[int, ...]:
    if not all(4 <= given < NUM_SUDOKU_CELLS for given in givens):
        raise ValueError(f"wanted 4 (the fewest that any puzzle with one solution has) to 15, got {list(givens)}")
    return givens


# Numbers of given cells, drawn evenly.
Givens = Annotated[tuple[PositiveInt, ...], Field(min_length=1, strict=False), AfterValidator(_that_leave_a_puzzle)]


class Sudoku4Thoughts(RecipePart):
    """4x4 Sudoku, the solved grid as thought and as answer. No solved grid of one split is in another."""

    kind: Literal["sudoku4"]
    seed: NonNegativeInt
    givens: Givens
    puzzles: SplitCounts


class FamilyQuestions(RecipePart):
    sizes: dict[str, Any]  # in reasoning-gym's words
    questions: SplitCounts  # asked, of which fewer are answered


class OwnTraces(RecipePart):
    """The base's own greedy replies to generated problems, in its own chat template, kept where they are verified."""

    kind: Literal["own_traces"]
    seed: NonNegativeInt
    generator: Revision  # version of reasoning-gym
    families: dict[Name, FamilyQuestions] = Field(min_length=1)
    max_new_tokens: PositiveInt  # a reply that has not ended by then is dropped
    system_prompt: str | None  # null: the template's own, which must not write a tag of a thought
    today: str | None  # in the template's form, where it tells the date; null: it tells none


ThoughtSource = Annotated[Sudoku4Thoughts | OwnTraces, Field(discriminator="kind")]


class ThinkerSizes(RecipePart):
    """The sizes of trm/config.py, under its names; the hidden size is the base's."""

    num_latents: PositiveInt
    width: PositiveInt
    n_heads: PositiveInt
    n_layers: PositiveInt
    n_latent_steps: PositiveInt
    n_deep_recursions: PositiveInt
    n_supervision_steps: PositiveInt
    halt_exploration_prob: Share
    residual_init_scale: PositiveFloat | Literal["auto"]
    norm: Literal["post", "pre"]
    latent_norm: bool
    slot_embeddings: bool
    hidden_layer: int
    insertion: Literal["append", "slide"]
    sink_tokens: NonNegativeInt

    @property
    def latents_beside_the_prompt(self) -> int:
        """That need room of their own; where they slide, the prompt makes it."""
        return self.num_latents if self.insertion == "append" else 0

    @model_validator(mode="after")
    def _heads_are_even(self) -> Self:
        if self.width % (2 * self.n_heads):
            raise ValueError(f"width: wanted a multiple of {2 * self.n_heads} ({self.n_heads} heads of even size), got {self.width}")
        return self


class Phase1Losses(RecipePart):
    identity: NonNegativeFloat
    token: NonNegativeFloat
    answer: NonNegativeFloat
    kl: NonNegativeFloat


class Phase1(RecipePart):
    """Compressor, expander and projector. The schedule's steps are those of 1a (identity) and 1b (with the thought's losses) together."""

    identity_steps: NonNegativeInt  # the first of the schedule's
    training: Schedule
    losses: Phase1Losses
    latent_noise: NonNegativeFloat  # of their deviation, added to a thought's latents where the losses of token and answer read them
    norm_examples: Annotated[int, Field(ge=FEWEST_NORM_EXAMPLES)]  # on which the statistics of the latents are fitted
    oracle_over_text: Share  # gate: accuracy with the oracle's latents, as a share of that with the language model's own thoughts in text

    @model_validator(mode="after")
    def _both_parts_have_steps(self) -> Self:
        if self.identity_steps >= self.training.steps:
            raise ValueError(f"wanted identity_steps below training.steps ({self.training.steps:,}), got {self.identity_steps:,}")
        return self

    @model_validator(mode="after")
    def _noise_has_a_deviation(self) -> Self:
        if self.latent_noise and self.training.batch < 2:
            raise ValueError("latent_noise: wanted a training.batch of at least 2, over which a deviation is taken, or 0, got a batch of 1")
        return self


class Phase2Losses(RecipePart):
    state: NonNegativeFloat
    token: NonNegativeFloat
    answer: NonNegativeFloat
    halt: NonNegativeFloat


class Depth(RecipePart):
    """Recursion that is shallower for a share of the steps."""

    share: Share
    n_latent_steps: PositiveInt
    n_deep_recursions: PositiveInt


class Phase2Gate(RecipePart):
    """Differences of exact-match accuracy."""

    over_direct: Share
    over_nonrecursive: Share
    best_over_first_step: Share


class Phase2(RecipePart):
    training: Schedule  # a supervision step is an optimizer step
    ema_decay: Share
    losses: Phase2Losses
    answer_share: Share  # of the steps, the last ones, that have the answer's loss
    curriculum: tuple[Depth, ...] = Field(strict=False)  # before the full depth; in this order
    min_steps: PositiveInt  # before so many an example does not halt
    gate: Phase2Gate

    @model_validator(mode="after")
    def _full_depth_is_reached(self) -> Self:
        if (shares := sum(depth.share for depth in self.curriculum)) >= 1:
            raise ValueError(f"curriculum: wanted shares that leave some steps at full depth, got {shares:g} in all")
        return self


class Adapter(RecipePart):
    """LoRA on the language model. Names are peft's."""

    r: PositiveInt
    lora_alpha: PositiveInt
    target_modules: tuple[str, ...] = Field(min_length=1, strict=False)


class Phase2b(RecipePart):
    """The thinker frozen, the language model's adapter and the projector trained on the answer's loss."""

    training: Schedule
    adapter: Adapter


class Rewards(RecipePart):
    exact: NonNegativeFloat  # the whole answer
    well_formed: NonNegativeFloat  # an answer that can be read, and EOS
    partial: NonNegativeFloat  # times the share of the answer's tokens that are right


class Sudoku4Prompts(RecipePart):
    """Puzzles of train's solved grids, nearly all new: nobody has to have thought about them, an answer alone tells what it is worth."""

    seed: NonNegativeInt
    givens: Givens
    puzzles: PositiveInt


class Phase3Gate(RecipePart):
    reward_gain: NonNegativeFloat  # of the mean reward, over phase 2
    accuracy_gain: NonNegativeFloat  # of held-out accuracy, over phase 2


class Phase3(RecipePart):
    """GRPO on the thinker, the language model frozen. The schedule's batch is the prompts of a step."""

    training: Schedule
    ema_decay: Share
    group_size: Annotated[int, Field(ge=2)]  # answers of a prompt
    temperature: PositiveFloat
    epsilon: PositiveFloat
    beta: NonNegativeFloat  # of the KL term
    loss_type: Literal["grpo", "dr_grpo", "dapo"]
    rewards: Rewards
    prompts: Sudoku4Prompts | None  # null: those of train, of which phase 2 may have left too few unsolved
    halt_loss: NonNegativeFloat
    gate: Phase3Gate


class Controls(RecipePart):
    """What the thinker is held against, each trained here."""

    nonrecursive: Schedule | None  # the same parameters and losses, each layer passed once
    pause: Schedule | None  # learned constants in the thought's place
    direct_tuned: Schedule | None  # the language model itself, unfrozen, on answers without a thought


class TRMEvaluation(RecipePart):
    split: Literal["validation", "test"]  # choices are made on validation; test is looked at once
    examples: PositiveInt
    steps: tuple[PositiveInt, ...] = Field(min_length=1, strict=False)  # supervision steps at which the thinker is asked
    halting: bool  # ask it also with its own halting head
    rows: tuple[RowName, ...] = Field(min_length=1, strict=False)
    max_new_tokens: PositiveInt


class TRMRecipe(RecipePart):
    name: Name
    description: str
    seed: NonNegativeInt  # of all trainings; data have their own
    precision: Literal["bf16_mixed", "float32"]
    gates: Literal["stop", "report"]  # what a gate that does not hold does: it ends the run, or the page says so
    base: TRMBase
    data: ThoughtSource
    model: ThinkerSizes
    phase1: Phase1
    phase2: Phase2
    phase2b: Phase2b | None
    phase3: Phase3 | None
    controls: Controls
    evaluation: TRMEvaluation

    @model_validator(mode="after")
    def _base_knows_the_task(self) -> Self:
        if (self.base.kind == "trained_llama") != (self.data.kind == "sudoku4"):
            raise ValueError(
                f"base: wanted kind: trained_llama exactly with data of kind sudoku4, which have a tokenizer of their own; "
                f"got {self.base.kind} with {self.data.kind}"
            )
        return self

    @model_validator(mode="after")
    def _prompts_are_of_the_same_task(self) -> Self:
        if self.phase3 is not None and self.phase3.prompts is not None and self.data.kind != "sudoku4":
            raise ValueError(f"phase3.prompts: wanted null, or puzzles with data of kind sudoku4, got puzzles with {self.data.kind}")
        return self

    @model_validator(mode="after")
    def _head_reads_the_last_layer_alone(self) -> Self:
        """Of other layers' states the language model's head says nothing: neither a loss nor the halting head may go by it."""
        reads = self.phase1.losses.token or self.phase2.losses.token
        if self.model.hidden_layer != -1 and (reads or self.phase2.losses.answer == 0 or self.phase2.answer_share < 1):
            wanted = "wanted -1 (after the final norm) with losses of a thought's tokens"
            advice = "set the token losses of phase1 and phase2 to 0, and phase2's answer loss over all steps (answer_share: 1)"
            raise ValueError(f"model.hidden_layer: {wanted}, got {self.model.hidden_layer}; {advice}")
        return self

    @model_validator(mode="after")
    def _rows_have_their_controls(self) -> Self:
        shown = {name for name in ("pause", "nonrecursive", "direct_tuned") if name in self.evaluation.rows}
        trained = {name for name, schedule in self.controls if schedule is not None}
        if shown != trained:
            wanted = "wanted a row for every control that is trained and for no other"
            raise ValueError(f"evaluation.rows: {wanted}, got a difference in {', '.join(sorted(shown ^ trained))}")
        return self

    @model_validator(mode="after")
    def _examples_exist(self) -> Self:
        if self.evaluation.examples > (held_out := self.most_examples(self.evaluation.split)):
            wanted = f"wanted at most the {held_out:,} of {self.evaluation.split}"
            raise ValueError(f"evaluation.examples: {wanted}, got {self.evaluation.examples:,}")
        if self.phase1.norm_examples > (train := self.most_examples("train")):
            raise ValueError(f"phase1.norm_examples: wanted at most the {train:,} of train, got {self.phase1.norm_examples:,}")
        return self

    def most_examples(self, split: Literal["train", "validation", "test"]) -> int:
        """Of own traces fewer may pass."""
        if isinstance(self.data, OwnTraces):
            return sum(getattr(family.questions, split) for family in self.data.families.values())
        return getattr(self.data.puzzles, split)
