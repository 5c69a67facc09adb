"""The `pruneaug` command."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

import pruneaug
from pruneaug.cli import bench, database, jobs, platform, specs
from pruneaug.cli.interrupts import INTERRUPTED, how_to_go_on
from pruneaug.cli.output import say
from pruneaug.errors import PruneaugError

app = typer.Typer(
    name="pruneaug",
    help="Find, fine-tune and compile the block-sparse version of a PyTorch network that is fastest on your machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (jobs.run, jobs.profile, jobs.search, jobs.export, jobs.report):
    app.command()(command)
for about in (platform.doctor, platform.plugins):
    app.command()(about)
app.add_typer(bench.app, name="bench")
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
    said: set[str] = set()

    def show_once(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
        if str(message) not in said:
            said.add(str(message))
            say(f"warning: {message}", style="yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show_once
        try:
            app()
        except PruneaugError as error:
            say(f"error: {error}", style="red")
            sys.exit(error.exit_code)
        except SystemExit as ended:  # typer turns Ctrl-C into it
            if ended.code == INTERRUPTED:
                say(f"stopped; finished work is kept. Go on with: {how_to_go_on()}")
            raise
