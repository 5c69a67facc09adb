"""Commands about latency tables: ls, show, diff, merge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pruneaug.cli.output import Json, console, print_json
from pruneaug.errors import LatencyTableError
from pruneaug.latency.records import record_to_json
from pruneaug.latency.store import LatencyStore
from pruneaug.latency.table import LatencyTable
from pruneaug.platforms import read_platform
from pruneaug.platforms.stored import FILE_NAME, merge_folder

app = typer.Typer(help="Look into latency tables.", no_args_is_help=True)

Database = Annotated[str, typer.Argument(metavar="DATABASE", help="Folder with one folder for each platform.")]
Folder = Annotated[str, typer.Argument(metavar="FOLDER", help="A platform's folder in a latency database.")]


@app.command()
def ls(database: Database = "latency_db", as_json: Json = False) -> None:
    """The platforms of a latency database."""
    if not Path(database).is_dir():
        raise LatencyTableError(
            f"a latency database must be a folder, but {database} is none; name the `platform.latency_db` of a job"
        )
    rows = []
    for path in sorted(Path(database).glob(f"*/{FILE_NAME}")):
        platform, table = read_platform(path.parent), LatencyTable(LatencyStore(path.parent).load())
        rows.append(
            {
                "platform": platform.name,
                "cpu": platform.cpu,
                "threads": platform.threads,
                "dtype": platform.dtype,
                "ops": len(table.ops()),
                "times": len(table.latest()),
            }
        )
    if as_json:
        print_json(rows)
        return
    _print(("platform", "cpu", "threads", "dtype", "ops", "times"), [list(row.values()) for row in rows])


@app.command()
def show(folder: Folder, op: str = typer.Option("", help="Only ops that contain this."), as_json: Json = False) -> None:
    """The times of one platform; GFLOP/s count the weights that are kept."""
    read_platform(folder)
    latest = LatencyTable(LatencyStore(folder).load()).latest().values()
    records = sorted((r for r in latest if op in r.op.key), key=lambda r: (r.op.key, r.pattern, r.sparsity, r.library))
    if as_json:
        print_json([json.loads(record_to_json(record)) for record in records])
        return
    _print(
        ("op", "pattern", "sparsity", "library", "variant", "us", "p10", "p90", "GFLOP/s"),
        [
            (
                *(r.op.key, r.pattern, f"{r.sparsity:g}", r.library, r.variant),
                *_times(r.latency_us, r.p10_us, r.p90_us),
                f"{2 * r.op.macs * (1 - r.sparsity) / r.latency_us / 1e3:.0f}",  # on the weights that are kept
            )
            for r in records
        ],
    )


@app.command()
def diff(folder: Folder, other: Folder, as_json: Json = False) -> None:
    """The times in which two folders differ."""
    for path in (folder, other):
        read_platform(path)
    rows = [
        (d.op.key, d.pattern, d.sparsity, d.library, d.latency_us, d.other_latency_us)
        for d in LatencyStore(folder).diff(LatencyStore(other))
    ]
    columns = ("op", "pattern", "sparsity", "library", "us", "us there")
    if as_json:
        print_json([dict(zip(columns, row)) for row in rows])
        return
    _print(columns, [(*row[:4], *_times(*row[4:])) for row in rows])


@app.command()
def merge(folder: Folder, other: Folder, as_json: Json = False) -> None:
    """Add the records of another folder of the same platform."""
    added = merge_folder(folder, other)
    print_json({"added": added}) if as_json else typer.echo(f"{added} records added")


def _times(*values: float | None) -> list[str]:
    return ["none" if value is None else f"{value:.1f}" for value in values]


def _print(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    console().print(table)
