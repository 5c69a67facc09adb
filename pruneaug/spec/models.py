"""The spec: what a job, a platform and a search space say. Every default of pruneaug is written here, once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from pruneaug.errors import InputError
from pruneaug.sparsity.patterns import parse_pattern

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Spec(BaseModel):
    """Base of all spec sections: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PlugIn(Spec):
    """A plug-in by name (built-in, entry point or `package.module:attr`) and its keyword arguments."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class TrainSpec(Spec):
    """How the dense network is trained when there is no checkpoint, and how a pruned one is fine-tuned."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    epochs: Annotated[float, Field(gt=0)] = 10.0
    batch_size: Positive = 128
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Fraction = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    warmup: Fraction = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    label_smoothing: Fraction = 0.0
    mixed_precision: bool | Literal["auto"] = "auto"
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    distillation_temperature: Annotated[float, Field(gt=0)] = 2.0


class TaskSpec(Spec):
    """The trained network and its data."""

    name: str = Field(description="A task: `digits`, `parquet-images`, `image-folder`, `text-tsv`, or `package.module:callable`")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the task")
    model: PlugIn = Field(description="A network by name (`resnet20`, ...), `transformers`, or `package.module:callable`")
    checkpoint: str | None = Field(None, description="Trained weights (.safetensors, or a torch state_dict); none: train first")
    train: TrainSpec = Field(default_factory=TrainSpec, description="The dense training, when there is no checkpoint")


class PlatformSpec(Spec):
    """The machine that the network will run on."""

    name: str | None = Field(None, description="Folder name in the latency database; none: made from the detected hardware")
    threads: Positive | None = Field(None, description="CPU threads of the network; none: all cores")
    batch: Positive = Field(1, description="Batch size of the network whose latency is minimised")
    dtype: Literal["float32"] = "float32"
    latency_db: str = Field("latency_db", description="Folder of the latency tables")


class LayerRule(Spec):
    """What some layers may be. `match` is a shell-style wildcard on layer names; the first rule that matches holds."""

    match: str
    patterns: list[str] | None = None
    sparsities: list[Fraction] | None = None
    dense: bool = False

    @field_validator("patterns")
    @classmethod
    def _known_patterns(cls, value: list[str] | None) -> list[str] | None:
        return None if value is None else [_canonical(text) for text in value]


class SpaceSpec(Spec):
    """The choices: patterns and sparsities, for all layers and for some. Dense is always a choice."""

    patterns: Annotated[list[str], Field(min_length=1)] = Field(
        default_factory=lambda: ["block:1x1", "block:4x1", "block:8x1", "block:16x1"]
    )
    sparsities: Annotated[list[Fraction], Field(min_length=1)] = Field(
        default_factory=lambda: [0.5, 0.6, 0.7, 0.8, 0.9, 0.95], description="The grid that is profiled"
    )
    layers: list[LayerRule] = Field(default_factory=list)

    @field_validator("patterns")
    @classmethod
    def _known_patterns(cls, value: list[str]) -> list[str]:
        return [_canonical(text) for text in value]

    @field_validator("sparsities")
    @classmethod
    def _sorted(cls, value: list[float]) -> list[float]:
        return sorted(set(value))


class SearchSpec(Spec):
    """How the best network is searched."""

    strategy: str = Field("joint", description="`joint`, `uniform`, `random`, or `package.module:callable`")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the strategy")
    trials: Positive = 30
    seed: int = 0
    max_accuracy_loss: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="Largest loss of validation accuracy against the dense network, as a fraction (0.01 is one point)"
    )
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    storage: str | None = Field(None, description="Optuna storage URL; none: SQLite in the run folder")


class FineTuneSpec(Spec):
    """The fine-tuner of each trial, and the longer one of the best network."""

    name: str = "train"
    options: dict[str, Any] = Field(default_factory=dict)
    trial: TrainSpec = Field(default_factory=lambda: TrainSpec(epochs=1.0, learning_rate=0.02))
    final: TrainSpec = Field(default_factory=lambda: TrainSpec(epochs=5.0, learning_rate=0.02))


class JobSpec(Spec):
    """One job: from a trained network to the fastest network that is accurate enough."""

    version: Literal[1] = 1
    run: str = Field("runs/job", description="The run folder: everything that is needed to resume")
    task: TaskSpec
    platform: PlatformSpec = Field(default_factory=PlatformSpec)
    space: SpaceSpec = Field(default_factory=SpaceSpec)
    search: SearchSpec = Field(default_factory=SearchSpec)
    pruner: PlugIn = Field(default_factory=lambda: PlugIn(name="magnitude"))
    finetune: FineTuneSpec = Field(default_factory=FineTuneSpec)


def _canonical(text: str) -> str:
    try:
        pattern = parse_pattern(text)
    except InputError as error:
        raise ValueError(str(error)) from None
    if pattern is None:
        raise ValueError("'dense' is always a choice; leave it out of `patterns`")
    return str(pattern)
