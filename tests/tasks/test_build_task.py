import sys

import pytest
import torch
from safetensors.torch import save_file

from pruneaug.errors import PluginError, TaskError
from pruneaug.spec.models import PlugIn, TaskSpec
from pruneaug.tasks import TASKS, Task, build_task

USERS_CODE = """
import torch
from torch import nn
from pruneaug.tasks import task_from_modules

def data(count=4):
    return torch.zeros(count, 2), torch.arange(count) % 2

def splits():
    return {"train": data(8), "validation": data(), "test": data()}

def network(num_classes=2):
    return nn.Linear(2, num_classes)

def mapping(size=8):
    return {"model": network(), "train": data(size), "validation": data(), "test": data(), "trained": False}

def without_model():
    return splits()

def a_tuple():
    return network(), data(), data(), data()

def a_task():
    return task_from_modules(network(), **splits())

def with_jobs_model(model):
    return task_from_modules(lambda: model.build(num_classes=2), trained=model.trained, **splits())

def with_jobs_model_mapping(model):
    return {"model": lambda: model.build(num_classes=2), **splits()}

def no_test():
    return {"model": network(), "train": data(), "validation": data()}

def surplus():
    return {**mapping(), "optimizer": None}

def nothing():
    return None

not_callable = 5
"""


@pytest.fixture
def users_module(tmp_path, monkeypatch):
    name = f"users_task_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(USERS_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def build(users_module):
    def build_from(function, model=None, **changes):
        plugin = None if model is None else PlugIn(name=f"{users_module}:{model}")
        return build_task(TaskSpec(name=f"{users_module}:{function}", model=plugin, **changes))

    return build_from


def test_every_built_in_task_loads():
    assert {"digits", "parquet-images", "image-folder", "text-tsv"} <= set(TASKS.names())
    for name in TASKS.names():
        assert callable(TASKS.load(name))


@pytest.mark.parametrize(
    ("function", "model", "trained"),
    [
        ("mapping", None, False),
        ("a_tuple", None, True),
        ("a_task", None, True),
        ("without_model", "network", False),
        ("with_jobs_model", "network", False),
        ("with_jobs_model_mapping", "network", False),
    ],
)
def test_a_users_callable_gives_a_task(build, function, model, trained):
    task = build(function, model)
    assert isinstance(task, Task)
    assert task.trained == trained
    network = task.build_model()
    assert torch.equal(network.weight, task.build_model().weight)
    assert 0 <= task.evaluate(network, "test") <= 1


def test_options_are_passed_on(build):
    assert build("mapping", options={"size": 12}).size("train") == 12
    with pytest.raises(PluginError, match="did you mean 'size'"):
        build("mapping", options={"sise": 12})


@pytest.mark.parametrize(
    ("function", "model"),
    [
        ("mapping", None),
        ("without_model", "network"),
        ("with_jobs_model", "network"),
        ("with_jobs_model_mapping", "network"),
    ],
)
def test_a_checkpoint_is_loaded_into_the_network_and_makes_it_trained(build, tmp_path, function, model):
    weights = {"weight": torch.full((2, 2), 3.0), "bias": torch.zeros(2)}
    save_file(weights, tmp_path / "w.safetensors")
    task = build(function, model, checkpoint=str(tmp_path / "w.safetensors"))
    assert task.trained
    assert torch.equal(task.build_model().weight, weights["weight"])


@pytest.mark.parametrize(
    ("function", "model", "message"),
    [
        ("without_model", None, "neither .* nor the job names one; set `model`"),
        ("mapping", "network", "both .* name one; leave one of them out"),
        ("a_task", "network", "brings its own network"),
        ("with_jobs_model", None, "needs a network, but `model` is missing"),
        ("no_test", None, "'test' is missing"),
        ("surplus", None, "it gave 'optimizer'"),
        ("nothing", None, "but gave NoneType"),
    ],
)
def test_a_callable_that_gives_something_else_is_refused(build, function, model, message):
    with pytest.raises(TaskError, match=message):
        build(function, model)


def test_a_checkpoint_for_a_ready_task_is_refused(build):
    with pytest.raises(TaskError, match="brings its own network"):
        build("a_task", checkpoint="weights.safetensors")


def test_a_model_that_is_no_network_is_refused(build):
    with pytest.raises(TaskError, match=r"must give a torch.nn.Module, but gave tuple"):
        build("without_model", "data").build_model()


def test_what_cannot_be_called_is_refused(build):
    with pytest.raises(PluginError, match="must be a class or a function"):
        build("not_callable")


def test_a_built_in_task_needs_a_network():
    with pytest.raises(TaskError, match="the task 'digits' needs a network"):
        build_task(TaskSpec(name="digits"))


def test_an_unknown_task_gets_a_suggestion():
    with pytest.raises(PluginError, match="did you mean 'digits'"):
        build_task(TaskSpec(name="digit", model=PlugIn(name="resnet20")))
