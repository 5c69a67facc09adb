"""The spec: what a job, a platform and a search space say. Every default of pruneaug is written here, once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pruneaug.errors import InputError
from pruneaug.sparsity.patterns import parse_pattern

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    """Base of all spec sections: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")

    @model_validator(mode="before")
    @classmethod
    def _fill_sections(cls, data: Any) -> Any:
        """Complete a section given in part, or as null, from that section's own default.

        Without this, `finetune: {trial: {epochs: 2}}` would silently swap the trial's learning rate for TrainSpec's.
        """
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        for key, field in cls.model_fields.items():
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            if isinstance(default, Spec) and (filled.get(key) is None or isinstance(filled[key], Mapping)):
                filled[key] = {**default.model_dump(exclude_unset=True), **(filled.get(key) or {})}
        return filled


class PlugIn(Spec):
    """A plug-in by name (built-in, entry point or `package.module:attr`) and its keyword arguments."""

    name: str = Field(description="A built-in name, an installed plug-in's name, or `package.module:attr`")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the plug-in")


class TrainSpec(Spec):
    """How the dense network is trained when there is no checkpoint, and how a pruned one is fine-tuned."""

    optimizer: Literal["sgd", "adamw"] = Field(default="sgd", description="`sgd` with Nesterov momentum, or `adamw`")
    epochs: Annotated[float, Field(gt=0)] = Field(
        default=10.0, description="Passes over the training data; may be a fraction"
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


class PlatformSpec(Spec):
    """The machine that the network will run on."""

    name: str | None = Field(
        default=None, description="Folder name in the latency database; null: made from the detected hardware"
    )
    threads: Positive | None = Field(default=None, description="CPU threads of the network; null: all cores")
    batch: Positive = Field(default=1, description="Batch size of the network whose latency is minimised")
    dtype: Literal["float32"] = Field(default="float32", description="Number format of weights and activations")
    latency_db: str = Field(default="latency_db", description="Folder of the latency tables")


class LayerRule(Spec):
    """What some layers may be. `match` is a shell-style wildcard on layer names; the first rule that matches holds."""

    match: str = Field(description="Shell-style wildcard on layer names, such as `encoder.*.query`")
    patterns: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="null: those of the space"
    )
    sparsities: Annotated[list[Fraction], Field(min_length=1)] | None = Field(
        default=None, description="null: those of the space"
    )
    dense: bool = Field(default=False, description="These layers are never pruned")

    @field_validator("patterns")
    @classmethod
    def _known_patterns(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else _canonical(value)

    @field_validator("sparsities")
    @classmethod
    def _sorted(cls, value: list[float] | None) -> list[float] | None:
        return None if value is None else sorted(set(value))


class SpaceSpec(Spec):
    """The choices: patterns and sparsities, for all layers and for some. Dense is always a choice."""

    patterns: Annotated[list[str], Field(min_length=1)] = Field(
        default_factory=lambda: ["block:1x1", "block:4x1", "block:8x1", "block:16x1"],
        description="`block:ROWSxCOLS` on the weight matrix, or `element` for `block:1x1`",
    )
    sparsities: Annotated[list[Fraction], Field(min_length=1)] = Field(
        default_factory=lambda: [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], description="The grid that is profiled"
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


class SearchSpec(Spec):
    """How the best network is searched."""

    strategy: str = Field(default="joint", description="`joint`, `uniform`, `random`, or `package.module:attr`")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the strategy")
    trials: Positive = Field(default=30, description="Finished trials after which the search ends")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Of the strategy, the data order and the training")
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Largest loss of validation accuracy against the dense network (0.01 is one point)"
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="No trial starts after this many seconds; null: no limit"
    )
    storage: str | None = Field(default=None, description="Optuna storage URL; null: SQLite in the run folder")


class FineTuneSpec(Spec):
    """The fine-tuner of each trial, and the longer one of the best network."""

    name: str = Field(default="train", description="A fine-tuner: `train`, or `package.module:attr`")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the fine-tuner")
    trial: TrainSpec = Field(
        default_factory=lambda: TrainSpec(epochs=1.0, learning_rate=0.02), description="The fine-tuning of each trial"
    )
    final: TrainSpec = Field(
        default_factory=lambda: TrainSpec(epochs=5.0, learning_rate=0.02),
        description="The longer fine-tuning of the best network",
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


def _canonical(patterns: list[str]) -> list[str]:
    """The patterns in their one spelling, each once, in order."""
    try:
        blocks = [parse_pattern(text) for text in patterns]
    except InputError as error:
        raise ValueError(str(error)) from None
    if None in blocks:
        raise ValueError("'dense' is always a choice; leave it out of `patterns`")
    return list(dict.fromkeys(str(block) for block in blocks))
