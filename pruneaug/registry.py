"""Plug-ins by name: a built-in, an installed package's entry point, or `package.module:attr`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from pruneaug.errors import PluginError, PruneaugError


class Registry:
    """The plug-ins of one kind; installed packages add to it by entry points of the group `pruneaug.<kind>`."""

    def __init__(self, kind: str, builtins: Mapping[str, str]) -> None:
        """`builtins` maps a name to `"package.module:attr"`, imported only when it is asked for."""
        self.kind = kind
        self._builtins = dict(builtins)

    def names(self) -> tuple[str, ...]:
        """Built-in names in their own order, then those of installed packages, sorted."""
        installed = {entry.name for entry in entry_points(group=f"pruneaug.{self.kind}")}
        return (*self._builtins, *sorted(installed - self._builtins.keys()))

    def load(self, name: str) -> Any:
        """The plug-in of this name. Raises PluginError if there is none or if it does not import."""
        if name in self._builtins:
            return _import(self._builtins[name], f"the built-in {self.kind} plug-in {name!r}")
        if ":" in name:
            _put_current_directory_first()
            return _import(name, f"the {self.kind} plug-in {name!r}")
        for entry in entry_points(group=f"pruneaug.{self.kind}", name=name):
            return _import(entry.value, f"the {self.kind} plug-in {name!r} (entry point {entry.value!r})")
        known = self.names()
        raise PluginError(
            f"{name!r} is not one of the {self.kind} plug-ins{did_you_mean(name, known)}; "
            f"known are {', '.join(known)}, and your own by 'package.module:attr'"
        )

    def check(self, name: str, options: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The plug-in, if it may be called as `create` does. Raises PluginError if an option is unknown or missing."""
        plugin = self.load(name)
        who = f"the {self.kind} plug-in {name!r}"
        if not callable(plugin):
            raise PluginError(f"{who} must be a class or a function, but is {plugin!r}")
        check_options(who, plugin, options, args, kwargs)
        return plugin

    def create(self, name: str, options: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """`load(name)(*args, **kwargs, **options)`: `options` come from the user, the rest from pruneaug.

        Raises PluginError if an option is unknown or missing, or if the plug-in refuses its value.
        """
        plugin = self.check(name, options, *args, **kwargs)
        who = f"the {self.kind} plug-in {name!r}"
        try:
            return plugin(*args, **kwargs, **options)
        except PruneaugError:
            raise
        except (TypeError, ValueError) as error:
            raise PluginError(f"{who} does not accept the options {dict(options)!r}: {error}") from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest known name, or `""`."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _import(target: str, who: str) -> Any:
    module_name, _, attribute = target.partition(":")
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")) or module_name.endswith(".py"):
        example = Path(module_name).stem.replace("-", "_") or "my_module"
        raise PluginError(
            f"{who} must read 'package.module:attr' with a dotted module name, not a file; "
            f"for example '{example}:{attribute or 'build'}'"
        )
    try:
        value = importlib.import_module(module_name)
    # A module that runs as a script may leave by SystemExit; that must not end a search without a word.
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"{who} does not import: {type(error).__name__}: {error}; "
            f"looked in the current directory {Path.cwd()} and the installed packages"
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            known = [item for item in dir(value) if not item.startswith("_")]
            owner = getattr(value, "__file__", None) or value
            raise PluginError(f"{who}: {owner} has no {part!r}{did_you_mean(part, known)}")
        value = getattr(value, part)
    return value


def _put_current_directory_first() -> None:
    """Users keep `my_model.py` beside their job; a console script, unlike `python -m`, does not look there."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()


def check_options(
    who: str, plugin: Callable[..., Any], options: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Raises PluginError unless `plugin(*args, **kwargs, **options)` fits the plug-in's signature."""
    try:
        signature = inspect.signature(plugin)
    except ValueError:  # some callables written in C have none
        return
    try:
        given = signature.bind_partial(*args, **kwargs).arguments.keys()
    except TypeError as error:
        raise PluginError(f"{who} must accept what pruneaug gives it, but has {signature}: {error}") from error
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    free = {key: item for key, item in signature.parameters.items() if item.kind in kinds and key not in given}
    any_name = any(item.kind is inspect.Parameter.VAR_KEYWORD for item in signature.parameters.values())
    taken = sorted(options.keys() & given)
    unknown = [] if any_name else sorted(options.keys() - free.keys() - given)
    if taken:
        raise PluginError(f"{who}: {', '.join(taken)} comes from pruneaug and cannot be an option")
    if unknown:
        valid = f"valid are {', '.join(free)}" if free else "it takes none"
        raise PluginError(f"{who} has no option {unknown[0]!r}{did_you_mean(unknown[0], free)}; {valid}")
    missing = [key for key, item in free.items() if item.default is inspect.Parameter.empty and key not in options]
    if missing:
        raise PluginError(f"{who} needs the option {missing[0]!r}; valid are {', '.join(free)}")
