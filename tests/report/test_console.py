from rich.console import Console

from pruneaug.report.console import console_report, layer_table, summary_table


def shown(renderable, width: int = 120) -> str:
    console = Console(width=width, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_the_summary_shows_dense_and_pruned_side_by_side(report):
    lines = {line[:24].strip(): line for line in shown(summary_table(report)).splitlines()}
    assert "93.24 %" in lines["Accuracy, validation"]
    assert "92.86 %" in lines["Accuracy, validation"]
    assert "−0.38 points" in lines["Accuracy, validation"]
    assert "2.05× faster" in lines["Latency, measured"]


def test_the_terminal_shows_layers_runtimes_warnings_and_the_verdict_last(report):
    text = shown(console_report(report))
    places = [
        text.index(part) for part in ("Layer by layer", "Measured, whole", "side by side", "Warning:", "Pruning pays")
    ]
    assert places == sorted(places)
    layers = text[: text.index("rest of the network")]
    assert len([line for line in layers.splitlines() if line.startswith("features.")]) == 20


def test_names_with_brackets_are_no_markup(report):
    report["layers"][0]["name"] = "blocks[0].[bold]conv"
    assert "blocks[0].[bold]conv" in shown(layer_table(report))


def test_an_infeasible_search_shows_the_dense_network_alone(infeasible):
    text = shown(console_report(infeasible))
    assert "pruned" not in text.split("The dense network")[1].split("Stay dense")[0]
    assert "Nothing kept enough accuracy" in text


def test_a_narrow_terminal_cuts_no_figure(report):
    assert "−0.38 points" in shown(summary_table(report), width=72)
