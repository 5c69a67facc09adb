"""Profiling: what to measure on this platform, and a process that measures it."""

from pruneaug.profiler.plan import Cell, plan
from pruneaug.profiler.run import ProfileResult, profile_ops

__all__ = ["Cell", "ProfileResult", "plan", "profile_ops"]
