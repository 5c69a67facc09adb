"""`--set a.b=c`: one value of a job replaced on the command line."""

from __future__ import annotations

from pathlib import Path

from pruneaug.errors import SpecError
from pruneaug.spec.document import Node, describe, parse_yaml
from pruneaug.spec.extends import expand
from pruneaug.spec.fields import Step, field_at, is_open, keys_at, suggest


def apply_override(root: Node, text: str) -> Node:
    """The job's tree with the value of `text` (`"a.b=YAML"`, list positions as numbers) put in.

    Raises SpecError if there is no such key or position.
    """
    place = f"--set {text}"
    path_text, equals, value_text = text.partition("=")
    steps = path_text.strip().split(".")
    if not equals or not all(steps):
        raise SpecError(f"{place}: must read KEY=VALUE, such as search.trials=10")
    value = expand(parse_yaml(value_text, lambda _: place), Path.cwd())
    return _put(root, steps, (), Node(value.content, place), place)


def _put(node: Node, steps: list[str], done: tuple[Step, ...], value: Node, place: str) -> Node:
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    where = ".".join(map(str, done))
    if isinstance(node.content, list):
        if not step.isdigit() or int(step) >= len(node.content):
            count = len(node.content)
            raise SpecError(
                f"{place}: {where} has {count} items, the first is 0, but got {step!r}; or set the whole list"
            )
        items = list(node.content)
        items[int(step)] = _put(items[int(step)], rest, (*done, int(step)), value, place)
        return Node(items, node.place)
    if node.content is not None and not isinstance(node.content, dict):
        raise SpecError(f"{place}: {where} is {describe(node)} and has no key {step!r}")
    _check_key(step, done, place)
    items_by_key = dict(node.content or {})
    items_by_key[step] = _put(items_by_key.get(step, Node(None, place)), rest, (*done, step), value, place)
    return Node(items_by_key, node.place)


def _check_key(step: str, done: tuple[Step, ...], place: str) -> None:
    if any(is_open(field.annotation) for end in range(len(done) + 1) if (field := field_at(done[:end]))):
        return
    keys = keys_at(done)
    where = ".".join(map(str, done)) or "the job"
    if step.isdigit():
        raise SpecError(f"{place}: {where} is not given in the job, so it has no positions; set the whole list")
    if not keys:
        raise SpecError(f"{place}: {where} is a single value and has no key {step!r}")
    if step not in keys:
        raise SpecError(f"{place}: {where} has no key {step!r}{suggest(step, done)}")
