"""`extends:`: a section, or a whole file, that starts from other files."""

from __future__ import annotations

from pathlib import Path

from pruneaug.errors import SpecError
from pruneaug.registry import did_you_mean
from pruneaug.spec.document import Node, describe, read_document

KEY = "extends"
OWN = "pruneaug:"
"""Before the name of a search space that comes with the package."""
OPAQUE = "options"
"""A plug-in's own mapping: nothing in it is pruneaug's."""


def read_expanded(path: Path, chain: tuple[Path, ...] = ()) -> Node:
    """The tree of a file with every `extends` in it replaced by what it names.

    `chain` holds the files that are being read, outermost first. Raises SpecError.
    """
    return expand(read_document(path), path.parent, (*chain, path))


def expand(node: Node, folder: Path, chain: tuple[Path, ...] = ()) -> Node:
    """`node` merged over the files that its `extends` keys name, relative to `folder`."""
    if isinstance(node.content, list):
        return Node([expand(item, folder, chain) for item in node.content], node.place)
    if not isinstance(node.content, dict):
        return node
    own = {
        key: value if key == OPAQUE else expand(value, folder, chain)
        for key, value in node.content.items()
        if key != KEY
    }
    result = Node(own, node.place)
    if KEY in node.content:
        base = Node({}, node.place)
        for name in _names(node.content[KEY]):
            base = merge(base, _read_base(name, folder, chain))
        return merge(base, result) if own else base
    return result


def merge(base: Node, over: Node) -> Node:
    """Mappings are merged key by key; anything else in `over`, an empty mapping included, replaces what `base` has."""
    if not (isinstance(base.content, dict) and isinstance(over.content, dict) and over.content):
        return over
    merged = dict(base.content)
    for key, value in over.content.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return Node(merged, over.place)


def _names(node: Node) -> list[Node]:
    names = node.content if isinstance(node.content, list) else [node]
    for name in names:
        if not isinstance(name.content, str) or not name.content:
            raise SpecError(f"{name.place}: {KEY} must be a file name or a list of them, but got {describe(name)}")
    return names


def _read_base(name: Node, folder: Path, chain: tuple[Path, ...]) -> Node:
    path = _own(name) if name.content.startswith(OWN) else folder / Path(name.content).expanduser()
    if any(path.resolve() == other.resolve() for other in chain):
        circle = " -> ".join(str(item) for item in (*chain, path))
        raise SpecError(f"{name.place}: files must not extend each other in a circle: {circle}")
    if not path.is_file():
        raise SpecError(f"{name.place}: {KEY}: there is no file {path}; names are relative to the file that holds them")
    return read_expanded(path, chain)


def _own(name: Node) -> Path:
    """The file of a search space of the package: within it if it was built, beside it in a checkout."""
    package = Path(__file__).parents[1]
    folder = package / "search_spaces"
    if not folder.is_dir():
        folder = package.parent / "search_spaces"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    wanted = name.content.removeprefix(OWN)
    if wanted not in known:
        raise SpecError(
            f"{name.place}: {KEY} must name one of the search spaces {', '.join(OWN + stem for stem in known)}, but "
            f"got {name.content!r}{did_you_mean(wanted, known)}"
        )
    return folder / f"{wanted}.yaml"
