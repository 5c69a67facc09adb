import sys
from importlib.metadata import EntryPoint
from textwrap import dedent

import pytest

import pruneaug.registry
from pruneaug.errors import PluginError, TaskError
from pruneaug.registry import Registry, did_you_mean

BUILTINS = {"fraction": "fractions:Fraction", "counter": "collections:Counter", "broken": "pruneaug.no_such_room:thing"}
USER_MODULE = dedent(
    """
    class Pruner:
        def __init__(self, network, *, scope="layer", power=2):
            self.made_of = (network, scope, power)

    class Recipes:
        @staticmethod
        def fast(level):
            return level

    def needs(network, level, mode="a"):
        return level

    def takes_anything(**options):
        return options

    def picky(level=1):
        raise ValueError(f"level must be 1, but got {level}")

    def picky_in_our_words(level=1):
        from pruneaug.errors import TaskError
        raise TaskError("the data is missing")

    constant = 3
    """
)


@pytest.fixture
def registry():
    return Registry("things", BUILTINS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with user modules in it, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [item for item in sys.path if item])
    (tmp_path / "my_plugin.py").write_text(USER_MODULE)
    (tmp_path / "my_broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "my_script.py").write_text("raise SystemExit(1)\n")
    yield tmp_path
    for name in ("my_plugin", "my_broken", "my_script"):
        sys.modules.pop(name, None)


@pytest.fixture
def installed(monkeypatch):
    """Two installed entry points, one of which has the name of a built-in."""
    group = "pruneaug.things"
    entries = [
        EntryPoint("ordered", "collections:OrderedDict", group),
        EntryPoint("fraction", "decimal:Decimal", group),
    ]

    def entry_points(*, group, name=None):
        return [entry for entry in entries if entry.group == group and name in (None, entry.name)]

    monkeypatch.setattr(pruneaug.registry, "entry_points", entry_points)


def test_names_are_builtins_then_installed_ones_each_once(registry, installed):
    assert registry.names() == ("fraction", "counter", "broken", "ordered")


def test_a_builtin_is_imported_by_its_name(registry):
    from fractions import Fraction

    assert registry.load("fraction") is Fraction


def test_an_installed_plugin_is_imported_by_its_name_and_does_not_hide_a_builtin(registry, installed):
    from collections import OrderedDict
    from fractions import Fraction

    assert registry.load("ordered") is OrderedDict
    assert registry.load("fraction") is Fraction


def test_a_plugin_in_the_current_directory_is_imported(registry, here):
    made = registry.create("my_plugin:Pruner", {"scope": "global"}, "a network", power=1)
    assert made.made_of == ("a network", "global", 1)


def test_an_attribute_may_be_nested(registry, here):
    assert registry.create("my_plugin:Recipes.fast", {"level": 3}) == 3


def test_any_option_is_passed_to_a_plugin_that_takes_keywords(registry, here):
    assert registry.create("my_plugin:takes_anything", {"a": 1, "b-c": 2}) == {"a": 1, "b-c": 2}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fractoin", ["'fractoin'", "did you mean 'fraction'", "counter", "package.module:attr"]),
        ("", ["known are fraction, counter"]),
        ("my_plugin", ["package.module:attr"]),
        ("my_plugin.py:Pruner", ["not a file", "'my_plugin:Pruner'"]),
        ("folder/my_plugin:Pruner", ["'my_plugin:Pruner'"]),
        ("my_plugin:", ["'my_plugin:build'"]),
        (":Pruner", ["package.module:attr"]),
        ("my_plugin:Prunr", ["my_plugin.py", "'Prunr'", "did you mean 'Pruner'"]),
        ("no_such_module_at_all:x", ["ModuleNotFoundError", "no_such_module_at_all", "current directory"]),
    ],
)
def test_a_name_that_is_no_plugin_is_an_error_with_the_way_out(registry, here, name, words):
    with pytest.raises(PluginError) as caught:
        registry.load(name)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("name", "cause", "word"),
    [
        ("my_broken:x", ModuleNotFoundError, "a_package_that_is_not_there"),
        ("my_script:x", SystemExit, "my_script"),
        ("broken", ModuleNotFoundError, "no_such_room"),
    ],
)
def test_a_failing_import_keeps_its_cause(registry, here, name, cause, word):
    with pytest.raises(PluginError, match=word) as caught:
        registry.load(name)
    assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("my_plugin:Pruner", {"scop": "global"}, ["'scop'", "did you mean 'scope'", "scope, power"]),
        ("my_plugin:Pruner", {"network": 1}, ["network comes from pruneaug"]),
        ("my_plugin:needs", {}, ["needs the option 'level'"]),
        ("my_plugin:picky", {"level": 2}, ["{'level': 2}", "level must be 1, but got 2"]),
        ("my_plugin:constant", {}, ["class or a function", "3"]),
        ("my_plugin:Recipes", {}, ["must accept what pruneaug gives it"]),
    ],
)
def test_options_that_do_not_fit_are_errors(registry, here, name, options, words):
    args = () if name == "my_plugin:picky" else ("a network",)
    with pytest.raises(PluginError) as caught:
        registry.create(name, options, *args)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_plugins_own_pruneaug_error_passes_unchanged(registry, here):
    with pytest.raises(TaskError, match=r"^the data is missing$"):
        registry.create("my_plugin:picky_in_our_words", {})


def test_nothing_is_suggested_for_a_name_like_no_other():
    assert did_you_mean("zzz", ["fraction"]) == ""
    assert did_you_mean("fractoin", ["fraction", "counter"]) == "; did you mean 'fraction'?"
