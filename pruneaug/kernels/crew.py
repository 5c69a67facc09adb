"""The threads that kernels share their work among: our own (`crew.c`), or TVM's where there is no C compiler.

A process has one crew. That of the first compiled network that it loads is taken, or one is compiled, before kernels
are.
"""

from __future__ import annotations

import ctypes
import tempfile
import threading
from pathlib import Path
from typing import Any

from tvm.support import cc

SOURCE = Path(__file__).parent / "crew.c"
OPTIONS = ("-O2", "-pthread")
"""What a compiler that links the source to kernels needs."""

_LAUNCH = b"__TVMBackendParallelLaunch"  # what a library of kernels starts its threads by

_lock = threading.Lock()
_crew: Any = None  # the library
_is_compiled = False  # or was tried to


def take_crew(library: Path) -> None:
    """Let kernels that are loaded from now on use the crew in this library, if there is one and none was taken yet.

    The library stays loaded.
    """
    global _crew
    with _lock:
        if _crew is not None:
            return
        crew = ctypes.CDLL(str(library))
        if not hasattr(crew, "pruneaug_crew_launch"):
            return
        process = ctypes.CDLL(None)
        crew.pruneaug_crew_begin(ctypes.cast(process.TVMBackendParallelLaunch, ctypes.c_void_p))
        launch = ctypes.cast(crew.pruneaug_crew_launch, ctypes.c_void_p)
        process.TVMFFIEnvModRegisterContextSymbol(_LAUNCH, launch)
        _crew = crew


def make_crew() -> None:
    """Let kernels that are compiled from now on use a crew, if this machine has a compiler."""
    global _is_compiled
    with _lock:
        if _crew is not None or _is_compiled:
            return
        _is_compiled = True
    with tempfile.TemporaryDirectory(prefix="pruneaug-") as folder:
        library = Path(folder) / "crew.so"
        try:
            cc.create_shared(str(library), [str(SOURCE)], options=list(OPTIONS))
        except (OSError, RuntimeError, TypeError):  # TVM's for: no compiler
            return
        take_crew(library)


def set_crew_threads(threads: int) -> None:
    """How many threads the kernels use that the calling thread starts, if there is a crew."""
    if _crew is not None:
        _crew.pruneaug_crew_threads(threads)
