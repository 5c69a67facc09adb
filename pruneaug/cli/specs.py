"""Commands about spec files: validate, schema, init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pruneaug.api.validating import validate as check
from pruneaug.cli.output import Job, Json, Set, print_json, say
from pruneaug.errors import SpecError
from pruneaug.files import atomic_write_text
from pruneaug.spec import dump_job, initial_job, json_schema, load_job

app = typer.Typer(help="Check, describe and begin spec files.", no_args_is_help=True)


@app.command()
def validate(job: Job, set_: Set = None, as_json: Json = False) -> None:
    """Check a job and print it with every default.

    Your own code (`package.module:attr`) is not imported, and `space.layers` is held against built-in networks only:
    `pruneaug search JOB --dry-run` checks these too, and the data.
    """
    spec = load_job(job, set_ or ())
    left = check(spec)
    print_json(spec.model_dump(mode="json")) if as_json else typer.echo(dump_job(spec), nl=False)
    if left:
        say(f"not checked here: {', '.join(left)}; `pruneaug search {job} --dry-run` does")


@app.command()
def schema() -> None:
    """Print the JSON schema of a job, for editors."""
    print_json(json_schema())


@app.command()
def init(path: Annotated[str | None, typer.Argument(help="The file to write; default: print it.")] = None) -> None:
    """Begin a job: every key with its default, commented."""
    if path is None:
        typer.echo(initial_job(), nl=False)
        return
    if Path(path).exists():
        raise SpecError(f"`spec init` writes a new file, but {path} exists; choose another name")
    atomic_write_text(path, initial_job())
