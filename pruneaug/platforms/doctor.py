"""What `pruneaug doctor` shows: everything about this machine that decides what pruneaug can do here."""

from __future__ import annotations

import os
import platform as python_platform
import shutil
from importlib import metadata
from typing import Any

from pruneaug.platforms.cuda import cuda_obstacle, detect_gpu
from pruneaug.platforms.detect import detect
from pruneaug.platforms.load import busy

_CORE = ("pruneaug", "torch", "numpy", "scipy", "optuna", "pydantic", "safetensors", "pyarrow")
_EXTRAS = {
    "apache-tvm": "tvm",
    "ray": "ray",
    "transformers": "text",
    "pillow": "vision",
    "scikit-learn": "vision",
    "tornado": "serve",
    "cuda-bindings": "gpu",
}


def doctor() -> dict[str, dict[str, Any]]:
    """Sections of JSON values: versions, cpu, threads, load, cuda. Takes about a second; imports no compiler."""
    platform = detect()
    return {
        "versions": {"python": python_platform.python_version(), **package_versions()},
        "cpu": {
            "platform": platform.name,
            "model": platform.cpu,
            "arch": platform.arch,
            "vector extensions": list(platform.isa),
            "float32 lanes": platform.vector_lanes,
            "cores": platform.cores,
            "caches": dict(platform.caches),
            "fingerprint": platform.fingerprint,
        },
        "threads": {
            "default": platform.threads,
            **{name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TVM_NUM_THREADS")},
            "compiler": _compiler()
            or "none: networks are not exported, and threads are TVM's, which start later; "
            "install g++, or name one in CXX",
        },
        "load": {"average": list(os.getloadavg()), "warnings": list(busy())},
        "cuda": cuda_state(),
    }


def package_versions() -> dict[str, str]:
    """The version of each package that pruneaug uses, or how to install it."""
    ways = dict.fromkeys(_CORE, "not installed: run `pip install pruneaug`")
    ways |= {package: f"not installed: run `pip install pruneaug[{extra}]`" for package, extra in _EXTRAS.items()}
    return {package: _version(package) or way for package, way in ways.items()}


def cuda_state() -> dict[str, Any]:
    """Whether torch can use a GPU: what its devices are, or the first reason why not."""
    import torch  # here, because it takes seconds and only this section needs it

    if torch.cuda.is_available():
        devices = [detect_gpu(index).to_json() for index in range(torch.cuda.device_count())]
        return {"available": True, "devices": devices, "runtime": torch.version.cuda}
    return {"available": False, "reason": cuda_obstacle(torch.version.cuda)}


def _compiler() -> str | None:
    """What links networks, and the threads of kernels: the command that TVM takes."""
    asked = os.environ.get("CXX") or os.environ.get("CC")
    names = [asked] if asked else ["g++", "gcc", "clang++", "clang", "c++", "cc"]
    return next(filter(None, map(shutil.which, names)), None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
