import copy
import json
import re
from html.parser import HTMLParser

import pytest

from pruneaug.report.analysis import trial_front
from pruneaug.report.html import render_html
from pruneaug.report.verdict import verdict

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what tests look at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("style", "script"):
            return
        self.words.append(data)
        if "h2" in self.open:
            self.headings.append(data)
        if {"td", "th"} & set(self.open) and "title" not in self.open:
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_the_page_has_every_section(report):
    page = Page(render_html(report))
    assert page.headings == [
        "Read with care",
        "Dense and pruned, side by side",
        "What the search tried",
        "What training bought",
        "What holds the network back",
        "Layer by layer",
        "Measured, whole network",
        "Layers left as they are",
        "All trials",
    ]
    assert verdict(report) in page.text
    assert "max_accuracy_loss: 0.005" in page.text
    assert "openvino" in page.text
    assert "not installed: pip install openvino" in page.text


def test_the_page_needs_nothing_from_outside(report):
    text = render_html(report)
    assert not re.search(r"(https?:)?//(?!\s)[a-z]", re.sub(r"<script>.*?</script>", "", text, flags=re.S))
    loading = {name for _, name, _ in Page(text).attributes} & {"src", "href", "srcset", "action"}
    assert loading == set()
    assert "@import" not in text
    assert "url(" not in text
    assert "fetch(" not in text


def test_every_trial_and_every_layer_is_on_the_page(report):
    page = Page(render_html(report))
    summary, holding, layers, runtimes, kept, trials = page.tables
    assert len(holding) == 1 + 12
    assert len(trials) == 1 + 60
    assert len(layers) == 1 + 20
    assert [row[0] for row in runtimes[1:3]] == ["pruneaug-sparse", "onnxruntime"]
    assert len(summary) == 1 + 8
    assert len(kept) == 1 + 2
    first = report["trials"][0]
    assert trials[1][2] == f"{first['latency_ms_predicted']:.2f} ms"
    assert trials[1][3] == f"{100 * first['accuracy_validation']:.2f} %"


def test_the_chart_marks_every_outcome_and_the_constraint(report):
    text = render_html(report)
    wide = text[text.index('<figure class="wide">') : text.index('<figure class="narrow">')]
    for kind in ("feasible", "infeasible", "below", "skipped", "failed", "dense", "best"):
        assert f"m-{kind}" in wide, kind
    assert "0.50 points below dense" in text
    assert 'class="front"' in wide
    assert wide.count("<title>Trial") == 60


def test_whatever_the_data_says_is_escaped(report):
    evil = "</script><script>alert(1)</script>\"'<b>"

    def poison(value):
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + evil if isinstance(value, str) else value

    data = poison({key: value for key, value in report.items() if key != "verdict"})
    data["verdict"] = evil
    data["job"]["spec"][evil] = evil
    page = Page(render_html(data))
    assert render_html(data).count("<script>") == 1
    assert evil in page.text


def test_a_searched_front_is_listed(report):
    report["constraint"]["objective"] = "front"
    page = Page(render_html(report))
    assert "The front" in page.headings
    (front,) = [
        table for table in page.tables if table[0] == ["Trial", "Latency", "Speed-up", "Accuracy change, points"]
    ]
    assert [int(row[0]) for row in front[1:]] == [point.trial for point in trial_front(report)]


def test_a_limit_of_the_latency_is_drawn_across_the_chart(report):
    report["constraint"] = {"objective": "accuracy", "max_latency_ms": 2.0, "max_accuracy_loss": 0.005}
    text = render_html(report)
    assert "2.00 ms, the limit" in text
    assert "points below dense" not in text
    assert re.search(r'<path d="M[\d.]+ [\d.]+V[\d.]+" class="limit">', text)


def test_an_infeasible_search_has_a_page_without_a_pruned_network(infeasible):
    page = Page(render_html(infeasible))
    assert "Nothing kept enough accuracy" in page.text
    assert "The dense network" in page.headings
    assert "Layer by layer" not in page.headings
    assert "What the search tried" in page.headings


def test_without_a_pruned_network_the_layers_are_those_of_the_dense_one(report):
    report.update(best=None)
    page = Page(render_html(report))
    (layers,) = [table for table in page.tables if table[0] == ["Layer", "Latency"]]
    assert len(layers) == 1 + len(report["layers"])
    assert "Pruned" not in page.text
    report.update(rest_us=1e-9)
    assert "rest of the network" not in Page(render_html(report)).text


def test_commands_are_code_and_not_in_back_ticks(report):
    report.update(speedup_measured=None, warnings=["`task.train` is <not> used"])
    text = render_html(report)
    assert "<code>pruneaug bench runs/vgg16/checkpoint</code>" in text
    assert "<li><code>task.train</code> is &lt;not&gt; used</li>" in text
    assert "`" not in Page(text).text


def test_a_gain_is_a_gain_everywhere(report):
    report["best"]["accuracy_validation"] = report["dense"]["accuracy_validation"] + 0.0015
    for trial in report["trials"]:
        if trial["accuracy_loss"] is not None:
            trial.update(accuracy_loss=-0.0084, accuracy_validation=0.9324 + 0.0084)
    page = Page(render_html(report))
    assert "Accuracy gained, validation" in page.text
    assert "within the noise of ± 0.50; 0.50 allowed to be lost" in page.text
    assert "+0.84" in page.text
    for words in ("-0.84", "−0.84", "lost −", "−0.15"):
        assert words not in page.text


def test_a_runtime_that_was_disturbed_does_not_shrink_the_bars_of_the_others(report):
    def bar_of_torch():
        found = re.search(r"<title>torch\.compile: .*?</title><rect [^>]*?width=\"([\d.]+)%\"", render_html(report))
        return float(found.group(1))

    calm, short = bar_of_torch(), "A whisker without an end goes further than the chart"
    assert short not in render_html(report)
    report["baselines"][0]["p90"] = 100 * max(row["latency_ms"] for row in report["baselines"] if row["latency_ms"])
    assert calm / 2 < bar_of_torch() < calm
    assert short in render_html(report)


def test_the_bars_of_the_layers_shares_say_what_a_full_one_is(report):
    layers = report["layers"]
    for layer in layers:
        layer.update(latency_us=1.0)
    layers[0].update(name="widest", latency_us=6.0)
    report["rest_us"] = 25.0  # of 50 in all
    text = render_html(report)
    assert "Share of the latency: a full bar is 25 %." in text
    found = re.search(r"<title>widest: 12.0 % of the latency</title><rect [^>]*?width=\"([\d.]+)%\"", text)
    assert float(found.group(1)) == pytest.approx(48)


def test_the_time_of_the_report_is_short(report):
    report["created_at"] = "2026-11-22T11:49:35+01:00"
    assert "2026-11-22 10:49 UTC" in Page(render_html(report)).text


def test_one_layer_and_three_trials_make_a_page(one_layer):
    page = Page(render_html(one_layer))
    assert "linear, 768 → 3072, 128 tokens" in page.text
    assert "16×1" in page.text


def test_identical_latencies_and_accuracies_make_a_chart(one_layer):
    for trial in one_layer["trials"]:
        trial.update(latency_ms_predicted=1.0, accuracy_validation=0.9)
    one_layer["dense"].update(latency_ms_predicted=1.0, accuracy_validation=0.9)
    one_layer["best"].update(latency_ms_predicted=1.0, accuracy_validation=0.9)
    assert "nan" not in render_html(one_layer).lower().split("<body>")[1].split("<script>")[0]


@pytest.mark.parametrize("missing", [None, float("nan"), "absent"])
def test_any_figure_may_be_missing(report, missing):
    def without(value):
        if isinstance(value, dict):
            kept = {key: without(item) for key, item in value.items()}
            return {k: v for k, v in kept.items() if not (missing == "absent" and isinstance(v, float))}
        if isinstance(value, list):
            return [without(item) for item in value]
        return missing if isinstance(value, float) and missing != "absent" else value

    page = Page(render_html(without(copy.deepcopy(report))))
    assert "nan" not in page.text.lower().split()


@pytest.mark.parametrize(
    "key", ["platform", "network", "best", "dense", "baselines", "layers", "kept_dense", "trials", "search", "job"]
)
def test_any_section_may_be_missing(report, key):
    Page(render_html({name: value for name, value in report.items() if name != key}))


def test_the_page_of_a_report_read_from_disk_is_the_same(report):
    assert render_html(json.loads(json.dumps(report))) == render_html(report)
