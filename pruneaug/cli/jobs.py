"""Commands that do a job: run, profile, search, export, report."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pruneaug import api
from pruneaug.api.profiling import compile_job
from pruneaug.api.reporting import compare, write_page
from pruneaug.api.reporting import report as read_report
from pruneaug.cli.gpu import compiled_summary
from pruneaug.cli.interrupts import stoppable
from pruneaug.cli.output import Job, Json, Run, Set, console, print_json, say
from pruneaug.cli.tables import plan_table, profile_summary, search_summary
from pruneaug.errors import InfeasibleError, MeasurementError, PruneaugError, StorageError
from pruneaug.report import Progress, comparison_table, console_report, outcome
from pruneaug.spec import load_job


def run(job: Job, set_: Set = None, as_json: Json = False) -> None:
    """Do the whole job: profile, search, export, measure, report. Goes on where an earlier run stopped."""
    spec = load_job(job, set_ or ())
    with stoppable(Progress(run=spec.run)) as progress:
        exported = api.run(spec, progress=progress.update)
    _finish(exported.report, spec.run, as_json)


def profile(
    job: Job,
    set_: Set = None,
    compile_for: Annotated[
        str | None, typer.Option(help="Only compile the job's kernels for a GPU, such as sm_90a; no GPU is needed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure this machine for the layers of the job's network. A second profile measures only what is missing."""
    spec = load_job(job, set_ or ())
    with stoppable(Progress()) as progress:
        if compile_for is not None:
            compiled = compile_job(spec, compile_for, progress=progress.update)
        else:
            result = api.profile(spec, progress=progress.update)
    if compile_for is not None:
        compiled_summary(compiled, spec.platform.kernels, as_json)
    else:
        profile_summary(result, as_json)


def search(
    job: Job,
    set_: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what the search would do, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Search the fastest network that is accurate enough. Goes on where an earlier search stopped."""
    spec = load_job(job, set_ or ())
    if dry_run:
        plan = api.dry_run(spec)
        print_json(plan) if as_json else console().print(plan_table(plan))
        return
    with stoppable(Progress(run=spec.run)) as progress:
        result = api.search(spec, progress=progress.update)
    search_summary(result, spec.run, as_json)
    _check(result.outcome, result.how_close)


def export(
    run: Run,
    measured: Annotated[bool, typer.Option("--bench/--no-bench", help="Measure it against the dense network.")] = True,
    as_json: Json = False,
) -> None:
    """Write the best network of a search as RUN/checkpoint, measure it, and write the report."""
    with stoppable(Progress()) as progress:
        exported = api.export(run, measured=measured, progress=progress.update)
    _finish(exported.report, run, as_json)


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="A run folder; several of one task: compared.")],
    page: Annotated[
        str | None,
        typer.Option(help="The page's file; default: RUN/report.html, or of several FIRST_RUN/comparison.html."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the report of a run at any moment, also while it is searched, and write its page. Several are compared."""
    data = read_report(runs[0]) if len(runs) == 1 else compare(runs)
    shown = console_report(data) if len(runs) == 1 else comparison_table(data["runs"])
    print_json(data) if as_json else console().print(shown)
    path = page or f"{runs[0]}/{'report' if len(runs) == 1 else 'comparison'}.html"
    try:
        write_page(path, data)
    except StorageError as error:  # what was asked is shown; the folder may be another's
        if page is not None:
            raise
        say(f"warning: {error}", style="yellow")
    if len(runs) > 1 and not as_json:
        console().print(f"Page: {path}", markup=False, highlight=False, soft_wrap=True)


def _finish(report: Any, folder: str, as_json: bool) -> None:
    print_json(report) if as_json else console().print(console_report(report))
    if not as_json:
        files = {"Report": "report.html", "Compiled network": report["artifact"]}
        for what, path in files.items():
            if path is not None:
                console().print(f"{what}: {folder}/{path}", markup=False, highlight=False, soft_wrap=True)
    _check(outcome(report), report["verdict"])
    if (report["best"] or {}).get("error") is not None:
        raise MeasurementError(f"the pruned network must run on this machine, but {report['best']['error']}; report it")


def _check(outcome: str, words: str) -> None:
    """Raise what makes the exit code of a search that found no network that is accurate enough."""
    if outcome == "infeasible":
        raise InfeasibleError(f"nothing met the constraint, so dense is the answer: {words}")
    if outcome == "failed":
        raise PruneaugError(f"a search needs trials that succeed, but: {words}; mend that, then choose a new `run`")
