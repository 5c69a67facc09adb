"""Optional packages: imported where they are needed, and named with the extra that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from pruneaug.errors import TaskError


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """The imported module. Raises TaskError naming the extra to install if it does not import."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(
            f"{purpose} needs the package {module.partition('.')[0]!r}, which does not import ({error}); "
            f"run: pip install 'pruneaug[{extra}]'"
        ) from error
