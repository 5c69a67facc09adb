"""The order of the rooms, what an import costs, and the public names."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pruneaug

ROOT = Path(__file__).parents[1]
PACKAGES = [f"pruneaug.{info.name}" for info in pkgutil.iter_modules(pruneaug.__path__) if info.ispkg]
COMPILING = ("pruneaug.kernels", "pruneaug.runtime")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_module_imports_only_from_the_rooms_above_it():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    assert "0 broken" in run(code)


def test_importing_pruneaug_loads_no_compiler_no_search_and_no_cluster():
    loaded = run("import pruneaug, sys; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert set(loaded) & {"tvm", "ray", "optuna"} == set()


def test_only_the_rooms_that_compile_load_tvm():
    others = [name for name in PACKAGES if name not in COMPILING]
    code = f"""
import importlib, sys
for name in {others!r}:
    importlib.import_module(name)
    assert not {{"tvm", "ray"}} & sys.modules.keys(), name
"""
    run(code)


@pytest.mark.parametrize("package", ["pruneaug", *PACKAGES])
def test_public_names_exist_and_are_listed_once_in_order(package):
    names = list(getattr(importlib.import_module(package), "__all__", ()))
    assert len(set(names)) == len(names)
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    for name in names:
        assert getattr(importlib.import_module(package), name) is not None
