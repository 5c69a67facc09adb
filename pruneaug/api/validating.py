"""What can be said of a job without its data, its profile and the user's own code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pruneaug.api.bench_network import SAMPLES
from pruneaug.errors import PruneaugError, SpecError, TaskError
from pruneaug.finetune import FINETUNERS
from pruneaug.network.layers import Network, find_layers
from pruneaug.pruners import PRUNERS
from pruneaug.registry import Registry
from pruneaug.searcher import STRATEGIES
from pruneaug.searcher.executors import EXECUTORS
from pruneaug.searcher.rules import check_rules
from pruneaug.searcher.stoppers import STOPPERS
from pruneaug.searcher.study import make_plugins
from pruneaug.spec.models import JobSpec, PlugIn, TaskSpec
from pruneaug.tasks import MODELS, TASKS
from pruneaug.tasks.build import takes_network
from pruneaug.tasks.network import NetworkSource, argument_names
from pruneaug.trackers import TRACKERS

_FACTS = ("num_classes", "in_channels", "image_size", "vocab_size")
"""Arguments of a network that a task fills in from its data."""

_CREATED: Mapping[str, Registry] = {
    "pruner": PRUNERS,
    "finetune": FINETUNERS,
    "search.strategy": STRATEGIES,
    "search.stopper": STOPPERS,
    "search.executor": EXECUTORS,
}
"""Key in a job -> the plug-ins that a search makes before anything else: they check the values of their options too."""


def validate(job: JobSpec) -> tuple[str, ...]:
    """Check that the job's plug-ins exist and take their options, and that every layer rule matches a layer.

    Returns what only a dry run can check: the user's own code (`package.module:attr`), which is not imported here, and
    the rules where the network is not a built-in one. Raises SpecError with one line per problem.
    """
    named = _plugins(job)
    own = [key for key, plugin in named.items() if _names_code([plugin.name, plugin.options])]
    problems = [(key, _problem(partial(_check, key, plugin, job))) for key, plugin in named.items() if key not in own]
    if not any(problem for _, problem in problems) and not _CREATED.keys() & own:
        problems.append(("search", _problem(partial(make_plugins, job))))  # whether they go together
    left = [f"{key} {named[key].name!r}" for key in own]
    if (rules := job.space.layers) and (network := _built_in_network(job.task)) is not None:
        problems.append(("space", _problem(partial(check_rules, network, rules))))
    elif rules:
        left.append("space.layers")
    if lines := [f"{key}: {problem}" for key, problem in problems if problem is not None]:
        raise SpecError("\n".join(lines))
    return tuple(left)


def _plugins(job: JobSpec) -> dict[str, PlugIn]:
    """Every plug-in of the job by its key."""
    task, search, tuner = job.task, job.search, job.finetune
    named = {"task": PlugIn(name=task.name, options=task.options)}
    if task.model is not None:
        named["task.model"] = task.model
    named |= {"pruner": job.pruner, "finetune": PlugIn(name=tuner.name, options=tuner.options)}
    named["search.strategy"] = PlugIn(name=search.strategy, options=search.options)
    named |= {"search.stopper": search.stopper, "search.executor": search.executor}
    for index, item in enumerate(search.trackers):
        named[f"search.trackers.{index}"] = PlugIn(name=item) if isinstance(item, str) else item
    return named


def _check(key: str, plugin: PlugIn, job: JobSpec) -> None:
    if key in _CREATED:
        _CREATED[key].create(plugin.name, plugin.options)
    elif key == "task":
        _check_task(job.task)
    elif key == "task.model":
        facts = dict.fromkeys(argument_names(MODELS.load(plugin.name)) & set(_FACTS))
        MODELS.check(plugin.name, {**facts, **plugin.options})
    else:  # a tracker is not created: that may begin a record
        TRACKERS.check(plugin.name, plugin.options, None)


def _names_code(value: object) -> bool:
    """Whether some text in it may be `package.module:attr`."""
    if isinstance(value, Mapping):
        return any(map(_names_code, value.values()))
    return any(map(_names_code, value)) if isinstance(value, list | tuple) else ":" in str(value)


def _problem(check: Callable[[], Any]) -> str | None:
    try:
        check()
    except PruneaugError as error:
        return str(error)
    return None


def _check_task(spec: TaskSpec) -> None:
    TASKS.check(spec.name, spec.options, **({"model": None} if takes_network(spec) else {}))
    if spec.checkpoint is not None and not Path(spec.checkpoint).exists():
        raise TaskError(
            f"`checkpoint` must exist, but there is no {spec.checkpoint}; check the path, from {Path.cwd()}"
        )


def _built_in_network(task: TaskSpec) -> Network | None:
    """The layers of a network that is built by name, whatever the data: their names and kinds are the same for all.

    None for other networks, and where the job's options ask for what an example input does not fit.
    """
    if task.model is None or (sample := SAMPLES.get(task.model.name)) is None:
        return None
    facts = {"vocab_size": sample.vocabulary} if sample.vocabulary is not None else {}
    shape = sample.shape
    if sample.vocabulary is None:
        channels, size = (task.model.options.get(*of) for of in zip(("in_channels", "image_size"), shape))
        facts, shape = {"in_channels": channels, "image_size": size}, (channels, size, size)
    try:
        model = NetworkSource(task.model).build(**facts)
        return find_layers(model, (torch.zeros(1, *shape, dtype=torch.int64 if "vocab_size" in facts else None),))
    except PruneaugError:  # of its options, or because they ask for other inputs
        return None
