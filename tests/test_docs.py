"""What is documented works: commands parse, jobs load, records read, the example pruner prunes."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from pruneaug.errors import InputError
from pruneaug.latency.records import record_from_json
from pruneaug.network.layers import find_layers
from pruneaug.sparsity.masks import check_mask, mask_sparsity
from pruneaug.sparsity.matrix import weight_matrix
from pruneaug.sparsity.patterns import Block, LayerChoice
from pruneaug.spec import load_job, parse_job
from pruneaug.tasks.build import TASKS
from pruneaug.tasks.models import MODELS
from pruneaug.tasks.network import argument_names
from pruneaug.testing.contracts import PrunerContract

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r'^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class CodeBlock:
    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[CodeBlock]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            name = str(page.relative_to(ROOT))
            found.append(CodeBlock(name, line, match["language"], match["title"] or "", match["text"]))
    return [block for block in found if block.language in languages]


def shell_commands() -> list[tuple[str, list[str]]]:
    """(where, words) of every line of a shell block, a prompt and comments removed."""
    commands = []
    for block in blocks("sh", "bash", "console"):
        for line in block.text.replace("\\\n", "").splitlines():
            if words := shlex.split(line.removeprefix("$ "), comments=True):
                commands.append((str(block), words))
    return commands


def inline_commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every code span that reads like a command."""
    spans = []
    for page in PAGES:
        prose = FENCE.sub("", page.read_text(encoding="utf-8"))
        found = re.findall(r"`((?:pruneaug|make) [^`]+)`", prose)
        spans += [(str(page.relative_to(ROOT)), span.split()) for span in dict.fromkeys(found)]
    return spans


def named(commands: list[tuple[str, list[str]]], program: str):
    return [
        pytest.param(words[1:], id=f"{where} {' '.join(words)}") for where, words in commands if words[0] == program
    ]


def command_tree():
    import typer

    from pruneaug.cli import app

    return typer.main.get_command(app)


def parse(command, words: list[str], parent=None, name: str = "pruneaug") -> None:
    """Parse without running; raises what the command line would print."""
    context = command.make_context(name, list(words), parent=parent)
    if hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        assert rest, f"{name} needs a command"
        child_name, child, rest = command.resolve_command(context, rest)
        parse(child, rest, context, child_name)


@pytest.mark.parametrize("words", named(shell_commands(), "pruneaug"))
def test_commands_in_shell_blocks_parse(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path(word) for word in words if not word.startswith("-") and "=" not in word):
        (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
        if path.suffix:
            path.touch()
    parse(command_tree(), words)


@pytest.mark.parametrize("words", named(inline_commands(), "pruneaug"))
def test_commands_in_the_prose_exist(words):
    command = command_tree()
    for word in words:
        if not hasattr(command, "commands"):
            break
        names = word.split("|")
        assert set(names) <= command.commands.keys()
        command = command.commands[names[0]]


@pytest.mark.parametrize("words", named(shell_commands() + inline_commands(), "make"))
def test_make_targets_exist(words):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_blocks_are_yaml_and_those_titled_job_are_jobs(block):
    value = yaml.safe_load(block.text)
    if block.title == "job.yaml":
        parse_job(value, source=str(block))


@pytest.mark.parametrize(
    ("registry", "name"), [(TASKS, name) for name in TASKS.names()] + [(MODELS, name) for name in MODELS.names()]
)
def test_the_options_of_tasks_and_networks_are_documented(registry, name):
    page = (ROOT / "docs" / "tasks-and-networks.md").read_text(encoding="utf-8")
    cells = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    options = {option for option in argument_names(registry.load(name)) if option != "model"}
    own = [f"| `{name}`" == row[0] for row in cells]
    assert sum(own) == 1
    if registry is MODELS:
        documented = set(re.findall(r"`(\w+)`", cells[own.index(True)][2]))
    else:
        documented = {option for row in cells if f"`{name}`" in row[1] for option in re.findall(r"`(\w+)`", row[0])}
    assert options == documented - {"A", "B"}


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_job(path):
    load_job(path)


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.name)
def test_every_search_space_fits_into_a_job(path):
    job = parse_job({"task": {"name": "digits"}, "space": {"extends": str(path)}})
    assert job.space.patterns


@pytest.mark.parametrize("block", [block for block in blocks("json") if block.title == "latency record"], ids=str)
def test_the_documented_latency_record_reads(block):
    assert record_from_json(block.text).latency_us > 0


class FewBatches:
    """Calibration data of one linear layer: the loss is the mean of the squared output."""

    def batches(self, count):
        generator = torch.Generator().manual_seed(1)
        return [torch.randn(16, 24, generator=generator) for _ in range(count)]

    def loss(self, model, batch):
        return model(batch).square().mean()


def documented_pruner(**options):
    (block,) = [block for block in blocks("python") if block.title == "my_pruner.py"]
    assert block.text.count("\n") <= 40
    namespace: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), namespace)
    return namespace["Taylor"](**options)


class TestTheDocumentedPruner(PrunerContract):
    def make(self):
        return documented_pruner()


def test_the_documented_pruner_keeps_the_blocks_of_largest_weight_times_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))
    network = find_layers(model, (torch.zeros(1, 24),))
    data = FewBatches()
    masks = documented_pruner(batches=3).prune(model, network, {"0": LayerChoice(Block(4, 1), 0.75)}, data).masks

    loss = sum(data.loss(model, batch) for batch in data.batches(3))
    (gradient,) = torch.autograd.grad(loss, [model[0].weight])
    pooled = (gradient * model[0].weight).abs().reshape(4, 4, 24).sum(1).flatten()
    expected = torch.zeros(96, dtype=torch.bool)
    expected[pooled.topk(24).indices] = True
    assert torch.equal(masks["0"].reshape(4, 4, 24)[:, 0].flatten(), expected)
    assert check_mask(weight_matrix(masks["0"]), Block(4, 1))
    assert mask_sparsity(masks["0"]) == 0.75
    assert model[0].weight.grad is None


def test_the_documented_pruner_says_that_it_needs_data():
    model = nn.Sequential(nn.Linear(2, 2))
    network = find_layers(model, (torch.zeros(1, 2),))
    with pytest.raises(InputError, match="calibration data"):
        documented_pruner().prune(model, network, {"0": LayerChoice(Block(1, 1), 0.5)}, None)


def test_the_readme_shows_what_a_user_sees():
    text = (ROOT / "README.md").read_text()
    assert "DEMO_OUTPUT" not in text
    assert "faster than the fastest dense runtime" in text
