"""A network that returns a class of its own, measured in another process."""

import pytest
import torch

from pruneaug.network.layers import find_layers
from pruneaug.platforms import detect
from pruneaug.profiler.network import Subject, time_networks
from pruneaug.runtime.graph import export_program

transformers = pytest.importorskip("transformers")


def test_a_network_with_an_output_class_of_its_library_is_measured():
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=50, attn_implementation="eager", **sizes)
    model, inputs = transformers.BertForSequenceClassification(config).eval(), (torch.randint(0, 50, (1, 7)),)
    network, program = find_layers(model, inputs), export_program(model, inputs)
    subjects = [Subject("torch", model, program), Subject("pruneaug-dense", model, program, network)]
    for result in time_networks(subjects, detect(), rounds=1, turn_s=0.01):
        assert result.error is None
        assert result.max_relative_error < 1e-5
