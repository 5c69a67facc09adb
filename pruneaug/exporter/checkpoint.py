"""The checkpoint folder: weights that plain PyTorch loads, and a description of their zeros.

model.safetensors            the state dict, dense layout, zeros in place
example_inputs.safetensors   inputs "0", "1", ... of the shapes that the latency was measured for
pruneaug.json                everything else; written last, so a folder with it is whole
artifact-<platform>/         the compiled network, see `pruneaug.exporter.artifact`
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pruneaug.errors import CheckpointError, InputError, LatencyTableError
from pruneaug.files import atomic_write_bytes, atomic_write_text, storage_errors
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import parse_op
from pruneaug.platforms.platform import Platform
from pruneaug.runtime.plan import Plans
from pruneaug.sparsity.masks import expand_blocks, pool_scores
from pruneaug.sparsity.matrix import weight_from_matrix, weight_matrix
from pruneaug.sparsity.patterns import DENSE, Assignment, LayerChoice, Pattern

VERSION = 1
_KEYS = ("layers", "weights_sha256", "platform", "latency", "spec", "model_facts")
INFO, WEIGHTS, INPUTS = "pruneaug.json", "model.safetensors", "example_inputs.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A pruned network on disk, checked: its zeros match its block maps.

    `masks` holds the bool mask of every sparse layer, True where its block is kept, in the weight's layout; `info` is
    what pruneaug.json holds.
    """

    folder: Path
    weights: Mapping[str, torch.Tensor]
    network: Network
    assignment: Assignment
    masks: Mapping[str, torch.Tensor]
    plans: Plans
    example_inputs: tuple[torch.Tensor, ...]
    info: Mapping[str, Any]

    @property
    def platform(self) -> Platform:
        """That of the export. Raises CheckpointError if it is not whole."""
        try:
            return Platform.from_json(self.info["platform"])
        except LatencyTableError as error:
            raise CheckpointError(f"{self.folder} must name its platform, but {error}") from error


def block_map(weight: torch.Tensor, block: Pattern) -> torch.Tensor:
    """Which blocks of a layer's weight hold a weight that is not zero: bool [block rows, block cols].

    With N:M each weight is a block.
    """
    return pool_scores((weight_matrix(weight.detach()) != 0).float(), block) > 0


def map_digest(kept: torch.Tensor) -> str:
    """16 hexadecimal digits of a block map, its shape included."""
    data = f"{list(kept.shape)}".encode() + kept.to(torch.uint8).contiguous().numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def write_checkpoint(
    folder: str | Path,
    weights: Mapping[str, torch.Tensor],
    network: Network,
    assignment: Assignment,
    plans: Plans,
    dense_plans: Plans,
    example_inputs: Sequence[torch.Tensor],
    facts: Mapping[str, Any],
) -> Path:
    """Write a checkpoint over whatever an earlier, perhaps interrupted, export left.

    `plans` and `dense_plans` say what computes each layer as chosen and dense; `facts` go into pruneaug.json.
    Raises StorageError.
    """
    folder = Path(folder)
    with storage_errors(folder):
        for stale in (folder / INFO, *folder.glob(".*.part")):  # the parts are of an export that was killed
            stale.unlink(missing_ok=True)
        for artifact in folder.glob("artifact-*"):  # of other weights
            shutil.rmtree(artifact)
    blob = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in weights.items()})
    atomic_write_bytes(folder / WEIGHTS, blob)
    inputs = {str(index): tensor.contiguous().clone() for index, tensor in enumerate(example_inputs)}
    atomic_write_bytes(folder / INPUTS, save(inputs))
    layers = [
        {
            **_layer_info(layer, assignment.get(layer.name, DENSE), weights[weight_name(layer.name)]),
            "variant": plans[layer.name],
            "dense_plan": {"variant": dense_plans[layer.name]},
        }
        for layer in network.layers
    ]
    info = {"version": VERSION, **facts, "layers": layers, "weights_sha256": hashlib.sha256(blob).hexdigest()}
    atomic_write_text(folder / INFO, json.dumps(info, indent=1, allow_nan=False) + "\n")
    return folder


def read_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint and check it. Raises CheckpointError that names the file or the layer that is wrong."""
    folder = Path(folder)
    info = read_info(folder)
    blob = _read_bytes(folder / WEIGHTS)
    weights = _tensors(folder / WEIGHTS, blob)
    inputs = _tensors(folder / INPUTS, _read_bytes(folder / INPUTS))
    try:
        layers = [
            (Layer(entry["name"], parse_op(entry["op"]), int(entry["calls"])), LayerChoice.from_json(entry), entry)
            for entry in info["layers"]
        ]
        plans = {entry["name"]: str(entry["variant"]) for _, _, entry in layers}
        example_inputs = tuple(inputs[str(index)] for index in range(len(inputs)))
        digests = {layer.name: entry["map_digest"] for layer, choice, entry in layers if choice.pattern is not None}
        weights_sha256 = info["weights_sha256"]
    except (InputError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder / INFO} must describe a network, but lacks or garbles something ({type(error).__name__}: "
            f"{error}); export the run again"
        ) from error
    masks = {}
    for layer, choice, _ in layers:
        weight = weights.get(weight_name(layer.name))
        if weight is None:
            raise CheckpointError(
                f"{folder / WEIGHTS} must hold the weight of layer {layer.name!r}, but does not; export the run again"
            )
        if choice.pattern is not None:
            masks[layer.name] = _checked_mask(layer.name, weight, choice.pattern, digests[layer.name])
    if hashlib.sha256(blob).hexdigest() != weights_sha256:
        raise CheckpointError(
            f"{folder / WEIGHTS} must be the file that was exported, but its SHA-256 differs from the one in {INFO}; "
            "export the run again"
        )
    return Checkpoint(
        folder=folder,
        weights=weights,
        network=Network(tuple(layer for layer, _, _ in layers)),
        assignment={layer.name: choice for layer, choice, _ in layers},
        masks=masks,
        plans=plans,
        example_inputs=example_inputs,
        info=info,
    )


def read_info(folder: Path) -> dict[str, Any]:
    """What pruneaug.json holds. Raises CheckpointError if it is missing, broken or of a newer version."""
    try:
        info = json.loads(_read_bytes(folder / INFO))
    except ValueError as error:
        raise CheckpointError(f"{folder / INFO} must be JSON, but {error}; export the run again") from error
    version = info.get("version") if isinstance(info, dict) else None
    if version != VERSION:
        raise CheckpointError(
            f"{folder / INFO} must have version {VERSION}, but has {version!r}; use the pruneaug that wrote it"
        )
    assert isinstance(info, dict)
    if missing := [key for key in _KEYS if key not in info]:
        raise CheckpointError(f"{folder / INFO} must hold {', '.join(missing)}, but does not; export the run again")
    return info


def add_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Put more facts into pruneaug.json. Raises CheckpointError, StorageError."""
    atomic_write_text(folder / INFO, json.dumps({**read_info(folder), **facts}, indent=1, allow_nan=False) + "\n")


def weight_name(layer: str) -> str:
    """The name of a layer's weight in the state dict."""
    return f"{layer}.weight" if layer else "weight"


def _layer_info(layer: Layer, choice: LayerChoice, weight: torch.Tensor) -> dict[str, Any]:
    facts = {"name": layer.name, "op": layer.op.key, "calls": layer.calls, **choice.to_json()}
    if choice.pattern is not None:
        kept = block_map(weight, choice.pattern)
        facts |= {"blocks": kept.numel(), "blocks_kept": int(kept.sum()), "map_digest": map_digest(kept)}
    return facts


def _checked_mask(name: str, weight: torch.Tensor, block: Pattern, digest: str) -> torch.Tensor:
    kept = block_map(weight, block)
    if map_digest(kept) != digest:
        raise CheckpointError(
            f"the zeros of layer {name!r} must match its block map, but they do not ({int(kept.sum())} of "
            f"{kept.numel()} blocks are kept): the weights were changed after the export; export the run again"
        )
    matrix = weight_matrix(weight)
    return weight_from_matrix(expand_blocks(kept, block, (matrix.shape[0], matrix.shape[1])), weight.shape)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        inner = path.parent / "checkpoint"  # of a run folder
        found = (inner / path.name).exists()
        hint = f"did you mean {inner}?" if found else "name the folder that `pruneaug export RUN` printed"
        raise CheckpointError(
            f"a checkpoint must hold {path.name}, but {path} cannot be read ({error.strerror}); {hint}"
        ) from error


def _tensors(path: Path, blob: bytes) -> dict[str, torch.Tensor]:
    try:
        return dict(load(blob))
    except SafetensorError as error:
        raise CheckpointError(f"{path} must be a safetensors file, but {error}; export the run again") from error
