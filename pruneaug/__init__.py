"""pruneaug: block-sparse networks that are measurably faster on your machine.

The verbs are functions of this module: `profile`, `search`, `export`, `compile`, `load`,
`bench`, `run`, `dry_run`.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "bench", "compile", "dry_run", "export", "load", "profile", "run", "search"]

if TYPE_CHECKING:
    from pruneaug.api import bench, compile, dry_run, export, load, profile, run, search


def __getattr__(name: str) -> Any:
    # Verbs are imported when first used: `import pruneaug` stays light, and loads neither TVM nor Optuna.
    if name in __all__:
        from pruneaug import api

        return getattr(api, name)
    raise AttributeError(f"module 'pruneaug' has no attribute {name!r}")
