"""The report as one self-contained HTML file: no network, no library, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from pruneaug.report import sections
from pruneaug.report.compare import comparison_body
from pruneaug.report.data import Data, section
from pruneaug.report.insight import front_section, holding_section, training_section
from pruneaug.report.layers import layers_section
from pruneaug.report.runtimes import runtimes_section
from pruneaug.report.trials import search_section, trials_section


def render_html(data: Data) -> str:
    """The page for the data of `report.json`; figures that are absent are shown as missing."""
    body = [
        sections.header(data),
        sections.verdict_banner(data),
        sections.cards(data),
        sections.warnings(data),
        sections.summary(data),
        search_section(data),
        front_section(data),
        training_section(data),
        holding_section(data),
        layers_section(data),
        runtimes_section(data),
        sections.kept_dense(data),
        trials_section(data),
        sections.job(data),
        sections.footer(data),
    ]
    return _page(f"{section(data, 'job').get('name') or 'pruneaug'} · pruneaug report", body)


def render_comparison(runs: Sequence[Data]) -> str:
    """The page of several runs of one task."""
    return _page(f"{len(runs)} runs · pruneaug report", [*comparison_body(runs), sections.footer(runs[0])])


def _page(title: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(piece for piece in body if piece)
        + f"\n</main>\n<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("pruneaug.report").joinpath(name).read_text(encoding="utf-8")
