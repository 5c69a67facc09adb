"""The verb `bench network`: a network with random weights, dense and pruned by magnitude, measured in turns."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pruneaug.api import benching
from pruneaug.api.bench_choices import BEST, check_patterns, check_sparsity, fits, matrix_size
from pruneaug.api.bench_kernels import measure_ops
from pruneaug.api.job import Progress
from pruneaug.errors import InputError, NetworkError
from pruneaug.exporter.checkpoint import INFO
from pruneaug.latency.network import predict
from pruneaug.latency.rest import alike
from pruneaug.network.layers import Network, apply_masks, find_layers
from pruneaug.platforms import detect
from pruneaug.profiler.network import ROUNDS, Subject
from pruneaug.profiler.place import Place
from pruneaug.profiler.rest import sample_network
from pruneaug.profiler.runtimes import RUNTIMES, check_runtimes
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.registry import did_you_mean
from pruneaug.report.data import OWN_DENSE, OWN_SPARSE
from pruneaug.runtime.graph import export_program
from pruneaug.runtime.plan import plan_layers
from pruneaug.sparsity.patterns import Assignment
from pruneaug.spec.models import PlugIn, SpaceSpec
from pruneaug.tasks import MODELS
from pruneaug.tasks.network import NetworkSource, argument_names

_OTHER_SPARSITIES = (0.95, 0.93), (0.85, 0.8)
"""Beside dense, the rest of a network is measured at other sparsities than what is predicted with it: at the first of
each pair that differs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One random example: [channels, height, width] of an image, or [tokens] with the number of different tokens.

    What is left out is, of a network in SAMPLES, as there.
    """

    shape: tuple[int, ...] = ()
    vocabulary: int | None = None


SAMPLES = {
    "digits_cnn": Sample((1, 32, 32)),
    "resnet20": Sample((3, 32, 32)),
    "resnet50": Sample((3, 224, 224)),
    "vgg16": Sample((3, 32, 32)),
    "vgg16_224": Sample((3, 224, 224)),
    "vit_b16": Sample((3, 224, 224)),
    "bert_base": Sample((128,), vocabulary=30522),
}


def bench_network(
    name: str,
    *,
    sparsity: float = 0.9,
    patterns: Sequence[str] = ("block:8x1",),
    against: Sequence[str] = tuple(RUNTIMES),
    sample: Sample | None = None,
    batch: int = 1,
    threads: int | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    trust_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a network by its name among the models, or `package.module:callable`, as `bench` does a checkpoint.

    Its weights are random. Every prunable layer is pruned by magnitude to `sparsity`, in blocks; a layer too small for
    one stays dense. Sparsity 0 measures only the dense network. Of several patterns, or of those that "best" stands
    for, the fastest is chosen first and then measured again beside the other runtimes.

    `sample` is needed for a network that is not in SAMPLES; `trust_code` lets `name` be code of its own.
    Returns what `pruneaug bench network --json` prints. Raises InputError, CompileError, MeasurementError.
    """
    check_runtimes(against)
    check_sparsity(sparsity)
    if batch < 1 or rounds < 1:
        raise InputError(f"`batch` and `rounds` must be at least 1, but got {batch} and {rounds}")
    wants_best = tuple(patterns) == (BEST,)
    blocks = check_patterns(SpaceSpec().patterns if wants_best else patterns)
    model, inputs = build_network(name, sample=sample, batch=batch, seed=seed, trust_code=trust_code)
    platform = detect(threads)
    network = layers_of(name, model, inputs)
    if wants_best:
        blocks = [block for block in blocks if any(fits(layer.op, block) for layer in network.layers)]
    if sparsity == 0:
        blocks = []
    candidates = [prune(model, network, inputs, block, sparsity) for block in blocks]
    place = Place(platform)
    warnings = place.warnings()
    others = [first if first != sparsity else second for first, second in _OTHER_SPARSITIES]
    table = measure_ops([layer.op for layer in network.layers], blocks, [sparsity, *others], platform, progress)
    dense = plan_layers(network, {}, table)
    chosen = [alike(network, block, sparsity) for block in blocks]
    candidates = [replace(c, plans=plan_layers(network, choices, table)) for c, choices in zip(candidates, chosen)]
    tried, best = benching.fastest(candidates, blocks, place, rounds, progress)
    pattern = None if best is None else blocks[best]
    # What predicts the network is measured in the same turns: a drift of the machine between them is no error of it.
    sampled = None if pattern is None else sample_network(model, inputs, network, table, pattern, [*others, 0.0])
    times = benching.measure(
        place,
        against,
        dense=Subject(OWN_DENSE, model, export_program(model, inputs), network, dense),
        pruned=None if best is None else candidates[best],
        more=() if sampled is None else sampled.subjects[:-1],
        rounds=rounds,
        progress=progress,
    )
    rest, predicted_us = None, None
    if best is not None and sampled is not None:
        times, samples = times[: -len(others)], times[-len(others) :]
        rest = sampled.rest([*samples, times[-2]])  # the last but one is dense, the last pruned
        predicted_us = predict(network, chosen[best], table.scaled(rest.layer_factor), rest.rest_us).total_us
    return {
        "network": name,
        "pattern": pattern,
        "sparsity": sparsity,
        "batch": batch,
        **benching.described(times, platform, against),
        "predicted_ms": None if predicted_us is None else predicted_us / 1e3,
        "rest": None if rest is None else asdict(rest),
        "patterns": tried,
        "kept_dense": kept_dense(network, pattern),
        "warnings": [*warnings, *benching.disturbances(times)],
    }


def is_checkpoint(name: str) -> bool:
    """Whether `name` is that of a checkpoint's folder rather than of a network."""
    if ":" in name or name in MODELS.names():
        return (Path(name) / INFO).exists()
    return Path(name).exists() or "/" in name


def build_network(
    name: str, *, sample: Sample | None = None, batch: int = 1, seed: int = 0, trust_code: bool = False
) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """The network in eval mode, its weights random, and random inputs for it. Raises InputError."""
    if ":" in name and not trust_code:
        raise InputError(f"{name!r} is code of its own; give `trust_code=True` (--trust-code) to run it")
    if ":" not in name and name not in MODELS.names():
        raise InputError(
            f"a benchmark needs a checkpoint folder or the name of a network, but {name!r} is neither"
            f"{did_you_mean(name, MODELS.names())}; networks are {', '.join(MODELS.names())}, and your own by "
            "'package.module:callable'"
        )
    asked, usual = sample or Sample(), SAMPLES.get(name, Sample())
    sample = Sample(asked.shape or usual.shape, asked.vocabulary or usual.vocabulary)
    if not sample.shape or min(sample.shape) < 1:
        raise InputError(
            f"the network {name!r} needs the shape of one input, but got {list(sample.shape) or 'none'}; for example "
            "--shape 3x224x224 for an image, or --shape 128 --vocabulary 30522 for a text"
        )
    facts: dict[str, int] = {}
    if len(sample.shape) == 3:
        facts |= {"in_channels": sample.shape[0], "image_size": sample.shape[1]}
    if sample.vocabulary is not None:
        facts["vocab_size"] = sample.vocabulary
    options = {"seed": seed} if "seed" in argument_names(MODELS.load(name)) else {}
    model = NetworkSource(PlugIn(name=name, options=options)).build(**facts)
    generator, size = torch.Generator().manual_seed(seed), (batch, *sample.shape)
    if sample.vocabulary is None:
        return model.eval(), (torch.randn(size, generator=generator),)
    return model.eval(), (torch.randint(0, sample.vocabulary, size, generator=generator),)


def layers_of(name: str, model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Network:
    """`find_layers`, for inputs whose shape came from a Sample. Raises InputError if the network does not take them."""
    try:
        return find_layers(model, inputs)
    except NetworkError as error:
        if error.__cause__ is None:
            raise
        shape = "x".join(map(str, inputs[0].shape[1:]))
        kind = "numbers" if inputs[0].is_floating_point() else "tokens"
        known = SAMPLES.get(name)
        usual = "" if known is None else f"; it is built for {'x'.join(map(str, known.shape))}"
        raised = f"{type(error.__cause__).__name__}: {error.__cause__}"
        raise InputError(
            f"the network {name!r} must run on inputs of the `sample` (--shape), but with {kind} of {shape} it raised "
            f"{raised}{usual}; give --shape CHANNELSxHEIGHTxWIDTH, or --shape TOKENS --vocabulary SIZE"
        ) from error


def prune(model: nn.Module, network: Network, inputs: tuple[torch.Tensor, ...], block: str, sparsity: float) -> Subject:
    """The network with every layer that holds a block pruned by magnitude; `model` stays as it is.

    Raises InputError if no layer does.
    """
    pruned = copy.deepcopy(model)
    masks = Magnitude().prune(pruned, network, assign(network, block, sparsity), None).masks
    apply_masks(pruned, masks)
    return Subject(OWN_SPARSE, pruned, export_program(pruned, inputs), network, masks=masks)


def assign(network: Network, block: str, sparsity: float, names: Sequence[str] = ("*",)) -> Assignment:
    """The same choice for every layer that holds a block and whose name matches one of `names`, as in "*.query".

    Raises InputError if no layer holds one, or a name matches none of those that do.
    """
    assignment = alike(network, block, sparsity)
    if not assignment:
        sizes = ", ".join(dict.fromkeys(matrix_size(layer.op) for layer in network.layers))
        raise InputError(f"{block} must fit the weight matrix of some layer, but these are {sizes}; choose a smaller")
    for pattern in names:
        if not any(_matches(name, [pattern]) for name in assignment):
            raise InputError(
                f"`layers` must match prunable layers that hold a {block}, but {pattern!r} matches none; the first "
                f"are {', '.join(list(assignment)[:8])}"
            )
    return {name: choice for name, choice in assignment.items() if _matches(name, names)}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def kept_dense(network: Network, block: str | None, names: Sequence[str] = ("*",)) -> list[dict[str, str]]:
    """The layers that are not pruned, each with the reason; none if nothing is to be pruned. `names` as of `assign`."""
    if block is None:
        return []
    small = [
        {"name": layer.name, "reason": f"its weight matrix is only {matrix_size(layer.op)}, too small for {block}"}
        for layer in network.layers
        if not fits(layer.op, block)
    ]
    other = [
        {"name": layer.name, "reason": f"its name matches none of {', '.join(names)}"}
        for layer in network.layers
        if fits(layer.op, block) and not _matches(layer.name, names)
    ]
    return [*small, *other, *({"name": kept.name, "reason": kept.reason} for kept in network.kept_dense)]
