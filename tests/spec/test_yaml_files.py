"""Every YAML file that is shipped loads, and names what exists."""

import re
from pathlib import Path

import pytest

from pruneaug.errors import SpecError
from pruneaug.finetune import FINETUNERS
from pruneaug.pruners import PRUNERS
from pruneaug.searcher import STRATEGIES
from pruneaug.spec import dump_job, load_job, parse_job
from pruneaug.tasks import MODELS, TASKS

ROOT = Path(__file__).parents[2]
PLATFORMS = sorted((ROOT / "examples" / "platforms").glob("*.y*ml"))
EXAMPLES = sorted({*(ROOT / "examples").rglob("*.y*ml")} - {*PLATFORMS})
SPACES = sorted((ROOT / "search_spaces").rglob("*.y*ml"))


def file_name(path: Path) -> str:
    return path.name


def test_there_are_examples_and_search_spaces():
    assert EXAMPLES
    assert SPACES
    assert PLATFORMS


@pytest.mark.parametrize("path", EXAMPLES, ids=file_name)
def test_an_example_loads_and_loads_back_from_its_dump(path, tmp_path):
    job = load_job(path)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_job(job))
    assert load_job(resolved) == job


@pytest.mark.parametrize("path", EXAMPLES, ids=file_name)
def test_an_example_names_plugins_that_exist(path):
    job = load_job(path)
    TASKS.load(job.task.name)
    if job.task.model:
        MODELS.load(job.task.model.name)
    PRUNERS.load(job.pruner.name)
    FINETUNERS.load(job.finetune.name)
    assert ":" in job.search.strategy or job.search.strategy in STRATEGIES.names()


@pytest.mark.parametrize("path", SPACES, ids=file_name)
def test_a_search_space_can_be_extended_by_a_job(path):
    job = parse_job({"task": {"name": "digits"}, "space": {"extends": str(path)}})
    assert job.space.patterns
    assert job.space.layers == [], "a rule on layer names belongs to a network, not to a shared search space"


@pytest.mark.parametrize("path", PLATFORMS, ids=file_name)
def test_a_platform_can_be_extended_by_a_job(path):
    job = parse_job({"task": {"name": "digits"}, "platform": {"extends": str(path)}})
    assert (job.platform.threads is None) == path.stem.startswith("cuda")
    assert (job.platform.gpu is not None) == path.stem.startswith("cuda")
    assert (job.platform.remote is None) == (path.stem in ("local-cpu", "cuda-local"))


@pytest.mark.parametrize(("path", "section"), [*((p, "platform") for p in PLATFORMS), *((p, "space") for p in SPACES)])
def test_a_section_that_is_given_for_a_job_is_told_how_to_be_used(path, section):
    with pytest.raises(SpecError, match=re.escape(f"`{section}: {{extends: {path}}}`")):
        load_job(path, ["task.name=digits"])


def test_the_data_folder_of_an_example_can_be_set():
    job = load_job(ROOT / "examples/cifar10_resnet20.yaml", ["task.options.root=/elsewhere"])
    assert job.task.options["root"] == "/elsewhere"
