"""Commands about the installation: doctor, plugins."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer

from pruneaug.api.planning import examine_device
from pruneaug.cli.output import Json, console, print_json
from pruneaug.platforms.doctor import doctor as examine
from pruneaug.registry import Registry

_REGISTRIES = (
    "tasks:TASKS",
    "tasks:MODELS",
    "pruners:PRUNERS",
    "finetune:FINETUNERS",
    "searcher:STRATEGIES",
    "searcher.stoppers:STOPPERS",
    "searcher.executors:EXECUTORS",
    "trackers:TRACKERS",
)


def doctor(
    job: Annotated[str | None, typer.Option(help="Tell what the remote device of this job is instead.")] = None,
    as_json: Json = False,
) -> None:
    """Versions, CPU features, threads, governor, load, and why there is no CUDA."""
    sections = examine() if job is None else examine_device(job)
    if as_json:
        print_json(sections)
        return
    for title, facts in sections.items():
        console().print(f"[bold]{title}[/bold]")
        for name, value in facts.items() if isinstance(facts, dict) else [("", facts)]:
            console().print(f"  {name:<22} {value}", markup=False, highlight=False)


def plugins(as_json: Json = False) -> None:
    """Every plug-in that a job can name."""
    found = {}
    for path in _REGISTRIES:
        room, _, name = path.partition(":")
        registry: Registry = getattr(importlib.import_module(f"pruneaug.{room}"), name)
        found[name.lower()] = list(registry.names())
    if as_json:
        print_json(found)
        return
    for kind, names in found.items():
        console().print(f"[bold]{kind}[/bold]  {', '.join(names)}", highlight=False)
