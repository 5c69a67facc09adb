"""The spec: what a job and a search space say. Every default of pruneaug is written here or in `platform`, once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pruneaug.errors import InputError
from pruneaug.sparsity.patterns import NM, TWO_OF_FOUR, parse_pattern
from pruneaug.spec.base import Fraction, Positive, Spec
from pruneaug.spec.platform import PlatformSpec

_NM_DTYPES = ("bfloat16", "float16")


class PlugIn(Spec):
    """A plug-in by name (built-in, entry point or `package.module:attr`) and its keyword arguments."""

    name: str = Field(description="A built-in name, an installed plug-in's name, or `package.module:attr`")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the plug-in")


class TrainSpec(Spec):
    """How the dense network is trained when there is no checkpoint, and how a pruned one is fine-tuned."""

    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="`sgd` with Nesterov momentum, or `adamw`")
    epochs: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="Passes over the training data; may be a fraction, in `finetune` 0: no training"
    )
    batch_size: Positive = Field(default=128, description="Examples a step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=0.1, description="The largest, after the warm-up")
    momentum: Fraction = Field(default=0.9, description="Of `sgd`")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=5e-4, description="L2 penalty (`sgd`), decoupled (`adamw`)"
    )
    warmup: Fraction = Field(
        default=0.05, description="Fraction of the steps in which the learning rate rises from zero"
    )
    schedule: Literal["cosine", "constant"] = Field(default="cosine", description="The learning rate after the warm-up")
    label_smoothing: Fraction = Field(default=0.0, description="Probability spread over all classes")
    mixed_precision: bool | Literal["auto"] = Field(
        default="auto", description="bfloat16 autocast; `auto`: on a GPU only"
    )
    distillation: Fraction = Field(default=0.0, description="Weight of the loss against the dense network's outputs")
    distillation_temperature: Annotated[float, Field(gt=0)] = Field(default=2.0, description="Softens both outputs")
    feature_distillation: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Weight of what layers compute otherwise than in the dense network; 1 is a usual value"
    )
    feature_layers: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="Their names, with wildcards; null: where the stages or blocks of the network end"
    )

    @property
    def needs_teacher(self) -> bool:
        """Whether the training learns from the dense network too."""
        return self.distillation > 0 or self.feature_distillation > 0


class TaskSpec(Spec):
    """The trained network and its data."""

    name: str = Field(description="`digits`, `parquet-images`, `image-folder`, `text-tsv`, or `package.module:attr`")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the task")
    model: PlugIn | None = Field(
        default=None,
        description="`resnet20`, `transformers`, ..., or `package.module:attr`; null: the task has its own",
    )
    checkpoint: str | None = Field(
        default=None, description="Trained weights (.safetensors, or a torch state_dict); null: train first"
    )
    train: TrainSpec = Field(default_factory=TrainSpec, description="The dense training, when there is no checkpoint")

    @field_validator("train")
    @classmethod
    def _trains(cls, value: TrainSpec) -> TrainSpec:
        if value.epochs == 0:
            raise ValueError(
                "a dense training must have epochs above 0, but got 0; for a network that is trained already, name its "
                "weights in `checkpoint` and leave `epochs` out"
            )
        return value


class ChoiceSpec(Spec):
    """What a layer is, without a choice."""

    pattern: str = Field(description="`block:ROWSxCOLS`, `element` for `block:1x1`, or `nm:2:4`")
    sparsity: Fraction = Field(
        description="The fraction of zeros; profiled if the grid does not hold it. Of `nm:2:4` it is 0.5"
    )

    @field_validator("pattern")
    @classmethod
    def _known_pattern(cls, value: str) -> str:
        return _canonical([value])[0]

    @model_validator(mode="after")
    def _own_sparsity(self) -> ChoiceSpec:
        pattern = parse_pattern(self.pattern)
        if isinstance(pattern, NM) and self.sparsity != pattern.sparsity:
            raise ValueError(
                f"the sparsity of {pattern} must be {pattern.sparsity:g}, but got {self.sparsity:g}; choose a block "
                "for another one"
            )
        return self


class LayerRule(Spec):
    """What some layers may be. The first rule that matches a layer holds."""

    match: str = Field(default="*", description="Shell-style wildcard on layer names, such as `encoder.*.query`")
    op: Literal["linear", "conv2d", "conv2d-1x1"] | None = Field(
        default=None, description="Match only layers of this kind; `conv2d` holds those of kernel 1x1 too; null: any"
    )
    patterns: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="null: those of the space"
    )
    exclude: list[str] = Field(default_factory=list, description="Patterns that these layers may not have")
    sparsities: Annotated[list[Fraction], Field(min_length=1)] | None = Field(
        default=None, description="null: those of the space"
    )
    min_sparsity: Fraction | None = Field(default=None, description="These layers are dense or at least as sparse")
    max_sparsity: Fraction | None = Field(default=None, description="These layers are at most as sparse")
    dense: bool = Field(default=False, description="These layers are never pruned")
    fix: ChoiceSpec | None = Field(default=None, description="These layers are just this, not even dense")
    group: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="The layers of all rules with this name get the same choice, of those they all may have",
    )

    @field_validator("patterns")
    @classmethod
    def _known_patterns(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else _canonical(value)

    @field_validator("exclude")
    @classmethod
    def _known_excluded(cls, value: list[str]) -> list[str]:
        return _canonical(value)

    @field_validator("sparsities")
    @classmethod
    def _sorted(cls, value: list[float] | None) -> list[float] | None:
        return None if value is None else sorted(set(value))

    @model_validator(mode="after")
    def _one_meaning(self) -> LayerRule:
        if self.op is None and "match" not in self.model_fields_set:
            raise ValueError("a rule must say which layers it is for, but has neither `match` nor `op`")
        if self.min_sparsity is not None and self.max_sparsity is not None and self.min_sparsity > self.max_sparsity:
            raise ValueError(
                f"min_sparsity must not exceed max_sparsity, but got {self.min_sparsity:g} and {self.max_sparsity:g}"
            )
        choosing = ("patterns", "exclude", "sparsities", "min_sparsity", "max_sparsity", "group")
        told = [key for key in choosing if getattr(self, key) not in (None, [])]
        ends = [key for key in ("dense", "fix") if getattr(self, key) not in (None, False)]
        if ends and len(ends) + len(told) > 1:
            raise ValueError(f"a rule with `{ends[0]}` leaves no choice, so leave out {', '.join([*ends[1:], *told])}")
        return self


class SpaceSpec(Spec):
    """The choices: patterns and sparsities, for all layers and for some. Dense is always a choice."""

    patterns: Annotated[list[str], Field(min_length=1)] = Field(
        default_factory=lambda: ["block:1x1", "block:4x1", "block:8x1", "block:16x1"],
        description="`block:ROWSxCOLS` on the weight matrix, `element` for `block:1x1`, or on a GPU `nm:2:4`, which "
        "has its own sparsity, 0.5",
    )
    sparsities: Annotated[list[Fraction], Field(min_length=1)] = Field(
        default_factory=lambda: [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], description="The grid that is profiled"
    )
    steps: Annotated[int, Field(ge=1, le=100)] = Field(
        default=4, description="Steps from one sparsity of the grid to the next, for strategies that choose from a list"
    )
    max_patterns: Positive | None = Field(
        default=None, description="At most so many patterns in one network, dense aside; null: no limit"
    )
    share: bool = Field(default=False, description="Layers of equal op and equal rules get the same choice")
    saliency: Literal["auto", "layer", "network"] = Field(
        default="auto",
        description="How lost scores of layers compare: by the fraction that each `layer` keeps, or as they are "
        "(`network`); `auto`: as the pruner's scores demand",
    )
    layers: list[LayerRule] = Field(
        default_factory=list, description="Rules for some layers; the first that matches holds"
    )

    @field_validator("patterns")
    @classmethod
    def _known_patterns(cls, value: list[str]) -> list[str]:
        return _canonical(value)

    @field_validator("sparsities")
    @classmethod
    def _sorted(cls, value: list[float]) -> list[float]:
        return sorted(set(value))


class ExecutorSpec(PlugIn):
    """Where trials are trained."""

    name: str = Field(
        default="local",
        description="`local`: in this process; `processes`: on this machine; `ray`: on a Ray cluster; or "
        "`package.module:attr`",
    )
    workers: Positive = Field(default=1, description="Trials at a time; `local` has one")


class SearchSpec(Spec):
    """How the best network is searched."""

    strategy: str = Field(
        default="allocate",
        description="`allocate`, `joint`, `uniform`, `random`, `nsga2`, `greedy`, `rule`, or `package.module:attr`",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the strategy")
    trials: Positive = Field(default=30, description="Finished trials after which the search ends")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Of the strategy, the data order and the training")
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Largest loss of validation accuracy against the dense network (0.01 is one point)"
    )
    expected_recovery: Fraction = Field(
        default=0.0,
        description="Accuracy that the final fine-tuning is expected to win back: a trial may lose so much more. The "
        "network that the search ends with may not",
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="No trial starts after this many seconds spent in trials; those of trials that run at the same "
        "time add up: four workers spend four in each second. Null: no limit",
    )
    storage: str | None = Field(default=None, description="Optuna storage URL; null: SQLite in the run folder")
    objective: Literal["latency", "accuracy", "front"] = Field(
        default="latency",
        description="`latency`: the fastest that loses at most `max_accuracy_loss`; `accuracy`: the most accurate "
        "within `max_latency_ms` or `max_latency_ratio`; `front`: all that no other beats in both",
    )
    max_latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Of `accuracy`: the longest predicted latency of the network"
    )
    max_latency_ratio: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Of `accuracy`: the same as a fraction of the dense network's latency"
    )
    executor: ExecutorSpec = Field(default_factory=ExecutorSpec, description="Where trials are trained")
    retries: Annotated[int, Field(ge=0)] = Field(
        default=2, description="How often a trial begins again whose worker died; then it counts as failed"
    )
    trial_timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="A trial that takes longer has failed; null: no limit"
    )
    final_timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="A final fine-tuning that takes longer has failed; null: no limit"
    )
    rungs: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=list,
        description="Fractions of a trial's epochs after which it is judged, and perhaps stopped: [0.25, 0.5, 1]",
    )
    stopper: PlugIn = Field(
        default_factory=lambda: PlugIn(name="none"),
        description="What stops a trial at a rung: `none`, `median`, `asha`, `recovery`, or `package.module:attr`",
    )
    inherit: bool = Field(
        default=False,
        description="A trial begins with the weights of the nearest finished one instead of the dense ones",
    )
    keep_weights: Positive = Field(
        default=8, description="Of how many trials `inherit` keeps the weights on disk, beside those of the best"
    )
    trackers: list[str | PlugIn] = Field(
        default_factory=list,
        description="What records the trials elsewhere, by name or as sections: `tensorboard`, `mlflow`, or "
        "`package.module:attr`",
    )

    @field_validator("rungs")
    @classmethod
    def _in_order(cls, value: list[float]) -> list[float]:
        return sorted(set(value))

    @model_validator(mode="after")
    def _limited_by_latency(self) -> SearchSpec:
        limits = [key for key in ("max_latency_ms", "max_latency_ratio") if getattr(self, key) is not None]
        if self.objective == "accuracy" and len(limits) != 1:
            raise ValueError(
                "objective `accuracy` needs one of max_latency_ms and max_latency_ratio, but got "
                f"{' and '.join(limits) or 'none'}"
            )
        if self.objective != "accuracy" and limits:
            raise ValueError(f"{limits[0]} goes with objective `accuracy`, but the objective is `{self.objective}`")
        if self.objective == "accuracy" and self.expected_recovery > 0:
            raise ValueError("expected_recovery goes with a limit of the loss; leave it out for objective `accuracy`")
        return self


class FineTuneSpec(Spec):
    """The fine-tuner of each trial, and the longer one of the best network."""

    name: str = Field(
        default="train",
        description="`train`, `rewind`, `accelerate`, `lightning`, or `package.module:attr` (your own training loop)",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the fine-tuner")
    trial: TrainSpec = Field(
        default_factory=lambda: TrainSpec(epochs=1.0, learning_rate=0.02), description="The fine-tuning of each trial"
    )
    final: TrainSpec = Field(
        default_factory=lambda: TrainSpec(epochs=5.0, learning_rate=0.02),
        description="The longer fine-tuning of the best network",
    )
    finalists: Positive = Field(
        default=1, description="How many of the best trials get the longer fine-tuning; the best of them after it wins"
    )
    repeats: Annotated[int, Field(ge=0)] = Field(
        default=0, description="How often the winner is made again with other seeds, to tell the spread of its accuracy"
    )


class JobSpec(Spec):
    """One job: from a trained network to the fastest network that is accurate enough."""

    version: Literal[1] = Field(default=1, description="Of this format")
    run: str = Field(default="runs/job", description="The run folder: everything that is needed to resume")
    task: TaskSpec = Field(description="The trained network and its data")
    platform: PlatformSpec = Field(default_factory=PlatformSpec, description="The machine that the network will run on")
    space: SpaceSpec = Field(default_factory=SpaceSpec, description="What each layer may become")
    search: SearchSpec = Field(default_factory=SearchSpec, description="How the best network is searched")
    pruner: PlugIn = Field(
        default_factory=lambda: PlugIn(name="magnitude"), description="What scores and removes weights"
    )
    finetune: FineTuneSpec = Field(default_factory=FineTuneSpec, description="How accuracy is recovered")

    @model_validator(mode="after")
    def _nm_where_it_runs(self) -> JobSpec:
        rules = self.space.layers
        named = [*self.space.patterns, *(pattern for rule in rules for pattern in rule.patterns or ())]
        named += [rule.fix.pattern for rule in rules if rule.fix is not None]
        for pattern in map(parse_pattern, named):
            if not isinstance(pattern, NM):
                continue
            if pattern != TWO_OF_FOUR:
                raise ValueError(
                    f"of N:M patterns a space may have {TWO_OF_FOUR}, but got {pattern}; write that, or blocks"
                )
            if self.platform.gpu is None or self.platform.dtype not in _NM_DTYPES:
                raise ValueError(
                    f"{pattern} needs platform.device: cuda and platform.dtype: {' or '.join(_NM_DTYPES)}, where "
                    f"PyTorch multiplies 2:4 weights, but got device: {self.platform.device}, dtype: "
                    f"{self.platform.dtype}; change these, or leave {pattern} out"
                )
        return self


def _canonical(patterns: list[str]) -> list[str]:
    """The patterns in their one spelling, each once, in order."""
    try:
        blocks = [parse_pattern(text) for text in patterns]
    except InputError as error:
        raise ValueError(str(error)) from None
    if None in blocks:
        raise ValueError("'dense' is always a choice; leave it out of `patterns`")
    return list(dict.fromkeys(str(block) for block in blocks))
