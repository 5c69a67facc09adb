"""The `pruneaug` command."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console

import pruneaug
from pruneaug.cli import database, jobs, platform, specs
from pruneaug.errors import PruneaugError

INTERRUPTED = 130

app = typer.Typer(
    name="pruneaug",
    help="Find, fine-tune and compile the block-sparse version of a PyTorch network that is fastest on your machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (jobs.run, jobs.profile, jobs.search, jobs.export, jobs.bench, jobs.report):
    app.command()(command)
for about in (platform.doctor, platform.plugins):
    app.command()(about)
app.add_typer(specs.app, name="spec")
app.add_typer(database.app, name="db")


def _version(value: bool) -> None:
    if value:
        typer.echo(pruneaug.__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line; an error that pruneaug raises on purpose becomes one message and an exit code."""
    warnings.showwarning = lambda message, *_args, **_kwargs: Console(stderr=True).print(
        f"warning: {message}", style="yellow", markup=False, highlight=False
    )
    try:
        app()
    except PruneaugError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        Console(stderr=True).print("stopped; the same command goes on where it was", markup=False)
        sys.exit(INTERRUPTED)
