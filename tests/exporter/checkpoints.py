"""A small checkpoint: a pruned convolution and a pruned linear layer, and a dense one."""

import json

import torch
from torch import nn

from pruneaug.exporter.checkpoint import write_checkpoint
from pruneaug.network.layers import apply_masks, find_layers
from pruneaug.platforms import detect
from pruneaug.pruners.magnitude import Magnitude
from pruneaug.sparsity.patterns import Block, LayerChoice

CHOICES = {"0": LayerChoice(Block(4, 2), 0.5), "3": LayerChoice(Block(8, 1), 0.75)}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(360, 30), nn.Linear(30, 4)).eval()


def make_checkpoint(folder, model=None, choices=CHOICES, **facts):
    """(model, inputs) of a checkpoint."""
    model = model or make_model()
    inputs = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)),)
    network = find_layers(model, inputs)
    apply_masks(model, Magnitude().prune(model, network, choices, None).masks)
    write(folder, model, network, choices, inputs, **facts)
    return model, inputs


def write(folder, model, network, choices, inputs, **facts):
    plans = {layer.name: "" for layer in network.layers}
    known = {"platform": detect(1).to_json(), "latency": {"ms_predicted": 1.5}, "spec": None, "model_facts": {}}
    return write_checkpoint(folder, model.state_dict(), network, choices, plans, plans, inputs, {**known, **facts})


def edit(folder, **changes):
    """Change entries of pruneaug.json; `...` removes one."""
    path = folder / "pruneaug.json"
    info = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in info.items() if value is not ...}))
