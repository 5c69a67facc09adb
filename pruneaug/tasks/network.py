"""The network that a task names, with its weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from pruneaug.errors import TaskError
from pruneaug.spec.models import PlugIn
from pruneaug.tasks.checkpoint import load_weights
from pruneaug.tasks.models import MODELS
from pruneaug.tasks.models.seeding import seeded


@dataclass(frozen=True, slots=True)
class NetworkSource:
    """Builds the network of a job: a plug-in, and the file or folder of its trained weights if there are any."""

    plugin: PlugIn
    checkpoint: str | None = None

    @property
    def trained(self) -> bool:
        return self.checkpoint is not None

    def build(self, **facts: Any) -> nn.Module:
        """The network on the CPU, the same weights on every call.

        facts: what the data says, such as num_classes or in_channels; each is passed on if the plug-in has an
        argument of this name that the job leaves open.
        """
        known = argument_names(MODELS.load(self.plugin.name))
        options = {name: value for name, value in facts.items() if name in known} | dict(self.plugin.options)
        with seeded(0):
            model = MODELS.create(self.plugin.name, options)
        if not isinstance(model, nn.Module):
            raise TaskError(f"model {self.plugin.name!r} must give a torch.nn.Module, but gave {type(model).__name__}")
        if self.checkpoint is not None:
            load_weights(model, Path(self.checkpoint))
        return model

    def builder(self, **facts: Any) -> Callable[[], nn.Module]:
        """`build` with these facts filled in."""
        return partial(self.build, **facts)


def argument_names(plugin: Any) -> frozenset[str]:
    """The names of a callable's arguments; none where Python cannot tell."""
    try:
        return frozenset(inspect.signature(plugin).parameters)
    except (TypeError, ValueError):
        return frozenset()
