"""docs/pruners.md tells of every built-in pruner, and of its options as they are."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pruneaug.pruners import PRUNERS

PAGE = (Path(__file__).parents[2] / "docs" / "pruners.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]


def row(name: str, cells: int) -> list[str]:
    (found,) = [cells_ for cells_ in ROWS if cells_[0] == f"| `{name}`" and len(cells_) == cells]
    return found


@pytest.mark.parametrize("name", PRUNERS.names())
def test_each_pruner_has_its_needs_and_its_options_told(name: str) -> None:
    assert all(cell.strip() for cell in row(name, 6)[1:5])
    documented: dict[str, Any] = {}
    for option in re.findall(r"`([^`]+)`", row(name, 2)[1]):
        documented.update(yaml.safe_load(option))
    parameters = inspect.signature(PRUNERS.load(name)).parameters.values()
    actual = {parameter.name: {} if parameter.default is None else parameter.default for parameter in parameters}
    assert documented == actual
