"""The verbs of pruneaug: what the command line calls, for Python."""

from pruneaug.api.bench_checkpoint import bench
from pruneaug.api.compiling import compile
from pruneaug.api.exporting import export
from pruneaug.api.loading import load
from pruneaug.api.planning import dry_run
from pruneaug.api.profiling import profile
from pruneaug.api.running import run
from pruneaug.api.searching import search

__all__ = ["bench", "compile", "dry_run", "export", "load", "profile", "run", "search"]
