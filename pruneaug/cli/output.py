"""What every command prints with."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job, as search.trials=50.")
]
Job = Annotated[str, typer.Argument(metavar="JOB", help="The job's YAML file.")]
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run folder.")]


def console() -> Console:
    """stdout, wide enough for tables where it is not a terminal. `:100:` stays what it is, and no emoji."""
    out = Console(emoji=False)
    return out if out.is_terminal else Console(emoji=False, width=120)


def say(text: str, style: str | None = None) -> None:
    """One message on stderr, as it is."""
    Console(stderr=True, emoji=False).print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))
