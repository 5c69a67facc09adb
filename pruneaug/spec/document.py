"""YAML files as trees in which every value knows its file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from pruneaug.errors import SpecError

SCALARS = {  # tag -> (the plain scalars that have it, their first characters)
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "merge": (r"<<", "<"),
}
"""The scalars of YAML 1.2: `1e-3` is a number, while `no`, `12:30` and `2026-01-01` are strings."""

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it stands: `"examples/digits.yaml:12"`, or the `--set` that it comes from.

    `content` is a scalar, a `dict[key, Node]` or a `list[Node]`.
    """

    content: Any
    place: str


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML keeps its tables on the class

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse what PyYAML would let pass: a key that is given twice, or that is itself a mapping or a list."""
        node = super().compose_mapping_node(anchor)
        first: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a plain name, but this one is a mapping or a list"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            if key.value in first:
                problem = f"the key {key.value!r} is given twice, first on line {first[key.value]}; keep one"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            first[key.value] = key.start_mark.line + 1
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """PyYAML would read a leading zero as octal, and fail on `089`."""
        text = str(self.construct_scalar(node))
        return int(text, 16) if text.startswith("0x") else int(text)


Loader.add_constructor(f"{_TAG}int", Loader.construct_yaml_int)
for _name, (_pattern, _first) in SCALARS.items():
    Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def read_document(path: Path) -> Node:
    """The tree of a YAML file, whose root is a mapping. Raises SpecError naming the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: there is no such file; relative names start from {Path.cwd()}") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: a spec must be UTF-8 text, but byte {error.start} is not; save it as UTF-8") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}; name a YAML file that is readable") from error
    root = parse_yaml(text, lambda line: f"{path}:{line}")
    if not isinstance(root.content, dict):
        raise SpecError(f"{root.place}: a spec must be a mapping of keys, but this file holds {describe(root)}")
    return root


def parse_yaml(text: str, place: Callable[[int], str]) -> Node:
    """The tree of a YAML text; `place` turns a line number, from 1, into a place. Raises SpecError."""
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        return Node(None, place(1)) if root is None else _TreeBuilder(loader, place).build(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(
            f"{place(mark.line + 1 if mark else 1)}: not valid YAML: {error.problem or error.context}"
        ) from None
    except yaml.YAMLError as error:
        raise SpecError(f"{place(1)}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{place(1)}: the YAML is nested too deeply") from None


def tree(value: object, place: str) -> Node:
    """The tree of plain Python data, all at one place."""
    if isinstance(value, Mapping):
        return Node({key: tree(item, place) for key, item in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([tree(item, place) for item in value], place)
    return Node(value, place)


def plain(node: Node) -> Any:
    """The values without their places."""
    if isinstance(node.content, dict):
        return {key: plain(item) for key, item in node.content.items()}
    if isinstance(node.content, list):
        return [plain(item) for item in node.content]
    return node.content


def describe(node: Node) -> str:
    """What a node is, in words for a message."""
    if isinstance(node.content, dict):
        return "a mapping"
    if isinstance(node.content, list):
        return "a list"
    return "nothing" if node.content is None else repr(node.content)


class _TreeBuilder:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, loader: Loader, place: Callable[[int], str]) -> None:
        self._loader = loader
        self._place = place
        self._above: list[yaml.Node] = []
        self._built: dict[yaml.Node, Node] = {}

    def build(self, node: yaml.Node, key: yaml.Node | None = None) -> Node:
        """`key` is the mapping key that holds `node`: its line is the one that a reader looks for."""
        place = self._at(key or node)
        if node in self._above:
            raise SpecError(f"{place}: an alias must not contain itself")
        if node in self._built:  # an alias
            return replace(self._built[node], place=place)
        if node.tag not in _PLAIN_TAGS:
            raise SpecError(
                f"{place}: a value must be text, a number, true, false, null, a list or a mapping, "
                f"but has the tag {node.tag.removeprefix(_TAG)!r}"
            )
        self._above.append(node)
        content: Any
        if isinstance(node, yaml.MappingNode):
            self._loader.flatten_mapping(node)
            content = {self._scalar(k): self.build(v, k) for k, v in node.value}
        elif isinstance(node, yaml.SequenceNode):
            content = [self.build(item) for item in node.value]
        else:
            content = self._scalar(node)
        self._above.pop()
        self._built[node] = Node(content, place)
        return self._built[node]

    def _at(self, node: yaml.Node) -> str:
        return self._place(node.start_mark.line + 1)

    def _scalar(self, node: yaml.Node) -> str | int | float | bool | None:
        name = node.tag.removeprefix(_TAG)
        try:
            return self._loader.construct_object(node)  # type: ignore[no-any-return]
        except (ValueError, LookupError):
            raise SpecError(f"{self._at(node)}: {str(node.value)[:40]!r} is not a valid {name}") from None
