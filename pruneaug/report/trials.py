"""The search on the page: the chart of all trials and their table."""

from __future__ import annotations

from html import escape

from pruneaug.report.data import Data, chosen_trial, difference, is_number, rows, section
from pruneaug.report.scatter import accuracy_against_latency, legend_mark, marks_in_use
from pruneaug.report.sections import titled_section
from pruneaug.report.words import epoch_words, epochs, milliseconds, percent, seconds, signed_points, trial_state


def search_section(data: Data) -> str:
    """Accuracy against latency; drawn twice, because text in a drawing shrinks with it on a phone."""
    wide = accuracy_against_latency(data, 880, 420)
    if not wide:
        return ""
    narrow = accuracy_against_latency(data, 350, 340)
    marks = "".join(f"<li>{legend_mark(kind)}{escape(words)}</li>" for kind, words in marks_in_use(data))
    figures = f'<figure class="wide">{wide}</figure>\n<figure class="narrow">{narrow}</figure>'
    content = f'<ul class="legend">{marks}</ul>\n{figures}'
    return titled_section("What the search tried", _search_words(data), content)


def _search_words(data: Data) -> str:
    search = section(data, "search")
    done, skipped, stopped, failed = (search.get(key) or 0 for key in ("trials_done", "skipped", "stopped", "failed"))
    parts = [f"Strategy {search.get('strategy', 'unknown')}: {done} trial{'' if done == 1 else 's'}"]
    if skipped:
        parts.append(f"{skipped} skipped without training")
    if stopped:
        parts.append(f"{stopped} stopped on the way")
    if failed:
        parts.append(f"{failed} failed")
    spent = f" in {seconds(search.get('seconds'))}" if is_number(search.get("seconds")) else ""
    epochs = f", {epoch_words(search['epochs'])} of training" if is_number(search.get("epochs")) else ""
    return (
        f"{', '.join(parts)}{spent}{epochs}. Up and to the left is better; the shaded part keeps the limit. "
        "The stairs are the front: what some trial reaches in that time."
    )


def trials_section(data: Data) -> str:
    trials = rows(data, "trials")
    if not trials:
        return ""
    failures = any(trial.get("error") for trial in trials)
    columns = ["Trial", "Outcome", "Latency", "Accuracy", "Change, points", "Sparsity", "Epochs", "Time"]
    head = "".join(
        f'<th scope="col"{"" if name == "Outcome" else _NUM}><button type="button">{name}</button></th>'
        for name in columns
    )
    if failures:
        head += '<th scope="col">Error</th>'
    best = chosen_trial(data).get("number") if section(data, "best") else None
    body = "".join(_trial_row(trial, trial.get("number") == best and best is not None, failures) for trial in trials)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    lead = (
        "Predicted latency and validation accuracy after the short fine-tuning of each trial. Press a heading to sort."
    )
    return titled_section("All trials", lead, table)


_NUM = ' class="num"'


def _trial_row(trial: Data, best: bool, failures: bool) -> str:
    state = trial_state(trial)
    outcome = f'<span class="chip">{legend_mark("best" if best else state)}{"best" if best else state}</span>'
    cells = [
        _cell(trial.get("number"), escape(str(trial.get("number")))),
        f'<td data-value="{state}">{outcome}</td>',
        _cell(trial.get("latency_ms_predicted"), milliseconds(trial.get("latency_ms_predicted"))),
        _cell(trial.get("accuracy_validation"), percent(trial.get("accuracy_validation"), 2)),
        _cell(difference(0.0, trial.get("accuracy_loss")), signed_points(trial.get("accuracy_loss"))),
        _cell(trial.get("sparsity"), percent(trial.get("sparsity"))),
        _cell(trial.get("epochs"), epochs(trial.get("epochs"))),
        _cell(trial.get("seconds"), seconds(trial.get("seconds"))),
    ]
    if failures:
        cells.append(f'<td class="break soft">{escape(str(trial.get("error") or ""))}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _cell(value: object, words: str) -> str:
    return f'<td class="num" data-value="{value if is_number(value) else ""}">{words}</td>'
