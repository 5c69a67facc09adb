"""What a network takes beside its layers: the networks to run for it, and what their times say."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from torch import nn

from pruneaug.errors import MeasurementError
from pruneaug.latency.network import predict
from pruneaug.latency.rest import Rest, Sample, alike, network_digest
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Network, apply_masks
from pruneaug.profiler.masks import synthetic_masks
from pruneaug.profiler.network import NetworkTime, Progress, Subject
from pruneaug.profiler.place import Place
from pruneaug.runtime.graph import export_program
from pruneaug.runtime.plan import plan_layers

_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Sampled:
    """A network pruned alike in all layers, at several sparsities: what is to be timed, in this order."""

    network: str  # digest
    pattern: str
    sparsities: tuple[float, ...]
    layers_us: tuple[float, ...]
    subjects: tuple[Subject, ...]

    def rest(self, times: Sequence[NetworkTime]) -> Rest:
        """From the times of the subjects. Raises MeasurementError if one of them does not run."""
        samples = []
        for time, sparsity, layers_us in zip(times, self.sparsities, self.layers_us, strict=True):
            if time.latency_ms is None:
                raise MeasurementError(f"the network must run on this platform, but {time.error}")
            samples.append(Sample(self.pattern, sparsity, time.latency_ms * 1e3, layers_us))
        return Rest(self.network, tuple(samples), datetime.now(UTC).isoformat(timespec="seconds"))


def sample_network(
    model: nn.Module,
    inputs: tuple[Any, ...],
    network: Network,
    table: LatencyTable,
    pattern: str = "dense",
    sparsities: Sequence[float] = (0.0,),
) -> Sampled:
    """The network with every layer that holds a block pruned alike, as its table plans it, at each sparsity.

    `model` stays as it is, and a layer whose choice could not be measured stays dense. Raises LatencyTableError if the
    table lacks a dense layer.
    """
    ops = {layer.name: layer.op for layer in network.layers}
    subjects, layers_us = [], []
    for sparsity in sparsities:
        choices = {
            name: choice
            for name, choice in alike(network, pattern, sparsity).items()
            if not table.missing([ops[name]], [choice.pattern], [choice.sparsity])
        }
        plans, masks = plan_layers(network, choices, table), synthetic_masks(network, choices)
        pruned = copy.deepcopy(model)
        apply_masks(pruned, masks)
        runtime = "pruneaug-sparse" if choices else "pruneaug-dense"
        subjects.append(Subject(runtime, pruned, export_program(pruned, inputs), network, plans, masks=masks))
        layers_us.append(predict(network, choices, table, 0.0).total_us)
    digest = network_digest(subjects[0].program, network)
    return Sampled(digest, pattern, tuple(sparsities), tuple(layers_us), tuple(subjects))


def measure_rest(sampled: Sampled, place: Place, progress: Progress | None = None) -> Rest:
    """Time the sampled networks there.

    Raises MeasurementError if one of them does not run, DeviceError if the device is lost or is another.
    """
    return sampled.rest(place.time(sampled.subjects, rounds=_ROUNDS, progress=progress))
