"""The measuring process of a test finds the fakes."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def with_fakes(monkeypatch):
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
