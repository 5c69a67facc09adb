"""YAML files and `--set` overrides -> JobSpec. Every problem names its file, its line and its key."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pruneaug.errors import SpecError
from pruneaug.spec.document import Node, plain, tree
from pruneaug.spec.extends import expand, read_expanded
from pruneaug.spec.fields import Step, keys_at, suggest
from pruneaug.spec.models import JobSpec
from pruneaug.spec.overrides import apply_override

_SELF_EXPLAINING = ("missing", "extra_forbidden", "value_error")


def load_job(path: str | PathLike[str], overrides: Sequence[str] = ()) -> JobSpec:
    """Read a job file; `overrides` are `"a.b=YAML"`, applied in order over the file and what it extends.

    Raises SpecError with one line per problem.
    """
    root = read_expanded(Path(path))
    if section := _section_of(root):
        raise SpecError(
            f"{root.place}: a job has sections, but these are the keys of `{section}`; write a job that holds "
            f"`{section}: {{extends: {Path(path)}}}`"
        )
    return _validate(root, overrides)


def parse_job(value: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "job") -> JobSpec:
    """Read a job from plain data, as `load_job` does from a file; `extends` is relative to the current directory.

    `source` names the data in messages.
    """
    return _validate(expand(tree(value, source), Path.cwd()), overrides)


def _section_of(root: Node) -> str | None:
    """The section of a job that a file is for, to be extended; None if it has a key of a job itself."""
    keys, job_keys = set(root.content), keys_at(())
    if not keys or keys & set(job_keys):
        return None
    return next((section for section in job_keys if keys <= set(keys_at((section,)))), None)


def _validate(root: Node, overrides: Sequence[str]) -> JobSpec:
    for override in overrides:
        root = apply_override(root, override)
    try:
        # Strict, or "3" and true would pass for numbers.
        return JobSpec.model_validate(plain(root), strict=True)
    except ValidationError as error:
        raise SpecError("\n".join(_problems(root, error.errors(include_url=False)))) from None


def _problems(root: Node, errors: Iterable[Any]) -> list[str]:
    """One line per wrong key; the alternatives of a union, which pydantic reports one by one, share theirs."""
    rules_at: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    for error in errors:
        path, node = _find(root, error["loc"])
        if error["type"] == "missing":
            path = (*path, str(error["loc"][-1]))
        where = f"{node.place}: {'.'.join(map(str, path)) or 'the job'}"
        rules_at.setdefault(where, []).append(_rule(error, path))
        got[where] = "" if error["type"] in _SELF_EXPLAINING else f", but got {reprlib.repr(error['input'])}"
    return [f"{where}: {' or '.join(dict.fromkeys(rules))}{got[where]}" for where, rules in rules_at.items()]


def _find(root: Node, loc: tuple[Step, ...]) -> tuple[tuple[Step, ...], Node]:
    """The deepest node on pydantic's path, which may end in names of union members, and the path to it."""
    node = root
    for depth, step in enumerate(loc):
        content = node.content if isinstance(node.content, dict) else dict(enumerate(_items(node)))
        if step not in content:
            return loc[:depth], node
        node = content[step]
    return loc, node


def _items(node: Node) -> list[Node]:
    return node.content if isinstance(node.content, list) else []


def _rule(error: Mapping[str, Any], path: tuple[Step, ...]) -> str:
    kind = error["type"]
    if kind == "missing":
        return "this key is required, but is not given"
    if kind == "extra_forbidden":
        return f"unknown key{suggest(str(path[-1]), path[:-1])}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "model_type":
        return f"must be a mapping with the keys {', '.join(keys_at(path))}"
    return str(error["msg"]).replace("Input should be", "must be").replace("a valid dictionary", "a mapping")
