"""While PyTorch traces a network: one thread at a time, and without what it says about its own affairs."""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

_tracing = threading.RLock()  # PyTorch keeps what it is at in global variables
_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # by copies that PyTorch makes of its own trees
    r"(?s)The tensor attributes? .* assigned during export",  # by nn.LSTM and nn.GRU
)
_LOGGER = logging.getLogger("torch.fx.experimental.symbolic_shapes")
_LOGGED = "Unable to find user code"


@contextmanager
def tracing() -> Iterator[None]:
    """Around every export and decomposition of a network.

    PyTorch prints the whole graph of a network that it cannot export. All else that is written to `sys.stderr` inside
    comes at the end.
    """
    written = io.StringIO()
    dump = ""
    with _tracing:
        _LOGGER.addFilter(_is_wanted)
        try:
            with warnings.catch_warnings(), redirect_stderr(written):
                for message in _WARNINGS:
                    warnings.filterwarnings("ignore", message)
                yield
        except Exception as error:
            dump = _graph_of(error)
            raise
        finally:
            _LOGGER.removeFilter(_is_wanted)
            sys.stderr.write(written.getvalue().replace(dump, "") if dump else written.getvalue())


def _graph_of(error: BaseException | None) -> str:
    """What PyTorch has printed of the graph where this error, or one of its causes, came from."""
    while error is not None:
        graph = getattr(error, "partial_fx_graph", None)
        if graph is not None:
            return f"{graph}\n"
        error = error.__cause__
    return ""


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LOGGED)
