"""The libraries that single layers are compared with, each as its users call it.

Inputs, weights and outputs have the dtype already, in the order that each library computes in. So a library is timed on
the layer alone, as our kernels are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pruneaug.errors import InputError
from pruneaug.profiler.op_peers import onnx_runtime, open_vino, pytorch
from pruneaug.profiler.op_peers.layer import DenseLayer, PeerCall
from pruneaug.profiler.runtimes import installed_versions, why_absent
from pruneaug.registry import did_you_mean

__all__ = ["PEERS", "DenseLayer", "Peer", "PeerCall", "absent_peer", "check_peers", "peer_versions"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A library's layer, and the packages that it imports; those that are no part of pruneaug are in its `peers`."""

    make: Callable[[DenseLayer], PeerCall]
    packages: tuple[str, ...] = ()


_ONNXRUNTIME, _OPENVINO = ("onnxruntime", "onnx"), ("openvino",)

PEERS: Mapping[str, Mapping[str, Peer]] = {
    "float32": {
        "torch": Peer(pytorch.float32),
        "onnxruntime": Peer(onnx_runtime.float32, _ONNXRUNTIME),
        "openvino": Peer(open_vino.float32, _OPENVINO),
    },
    "bfloat16": {  # ONNX Runtime has no bfloat16 on x86
        "torch": Peer(pytorch.bfloat16),
        "openvino": Peer(open_vino.bfloat16, _OPENVINO),
    },
    "int8": {
        "torch": Peer(pytorch.int8),
        "onnxruntime": Peer(onnx_runtime.int8, _ONNXRUNTIME),
        "openvino": Peer(open_vino.int8, _OPENVINO),
    },
}
"""dtype -> name of the library -> the library."""


def check_peers(names: Sequence[str], dtype: str) -> None:
    """Raises InputError for a name that is not in PEERS for `dtype`."""
    if unknown := [name for name in names if name not in PEERS[dtype]]:
        raise InputError(
            f"`against` must name libraries of {', '.join(PEERS[dtype])} for {dtype}, but got {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], PEERS[dtype])}"
        )


def absent_peer(name: str, dtype: str) -> str | None:
    """Why a library of PEERS cannot run here, and how to install it; None if it can."""
    return why_absent(PEERS[dtype][name].packages)


def peer_versions(names: Sequence[str], dtype: str) -> dict[str, str]:
    """The versions of the packages that these libraries import."""
    return installed_versions(package for name in names for package in PEERS[dtype][name].packages)
