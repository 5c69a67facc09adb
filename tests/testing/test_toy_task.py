import pytest

from pruneaug.errors import PluginError, TaskError
from pruneaug.finetune.train import Train
from pruneaug.network.layers import find_layers
from pruneaug.spec.models import TaskSpec, TrainSpec
from pruneaug.tasks import build_task
from pruneaug.testing.task import ToyTask


@pytest.mark.parametrize(("network", "layers"), [("mlp", 3), ("cnn", 4)])
def test_a_toy_network_learns_its_task_in_a_few_epochs(network, layers):
    task = ToyTask(network)
    model = task.build_model()
    assert len(find_layers(model, task.example_inputs(1)).layers) == layers
    before = task.evaluate(model, "test")
    Train().finetune(model, None, task, TrainSpec(epochs=10, batch_size=32, learning_rate=0.05), seed=0)
    assert task.evaluate(model, "test") > 0.9 > 0.6 > before


def test_a_job_can_name_the_toy_task():
    task = build_task(TaskSpec(name="pruneaug.testing.task:ToyTask", options={"network": "cnn", "noise": 2.0}))
    assert isinstance(task, ToyTask)
    assert task.name == "toy-cnn"


def test_an_unknown_toy_network_is_refused():
    with pytest.raises(TaskError, match="'mlp' or 'cnn'"):
        ToyTask("rnn")
    with pytest.raises((TaskError, PluginError), match="'mlp' or 'cnn'"):
        build_task(TaskSpec(name="pruneaug.testing.task:ToyTask", options={"network": "rnn"}))
