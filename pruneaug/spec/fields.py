"""What keys a spec has at each path, read off the pydantic models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from pruneaug.registry import did_you_mean
from pruneaug.spec.base import Spec
from pruneaug.spec.models import JobSpec

Step = str | int


def section_of(annotation: Any) -> type[Spec] | None:
    """The spec section that a field holds, directly or as items of a list; None if it holds plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return annotation
    return next((found for item in get_args(annotation) if (found := section_of(item))), None)


def is_open(annotation: Any) -> bool:
    """Whether a field takes any key (a plug-in's options)."""
    return get_origin(annotation) is dict


def field_at(path: Sequence[Step]) -> FieldInfo | None:
    """The field of a job at a path, list positions left out; None if there is none."""
    section: type[Spec] | None = JobSpec
    field: FieldInfo | None = None
    for step in path:
        if isinstance(step, int):
            continue
        field = section.model_fields.get(step) if section else None
        if field is None:
            return None
        section = section_of(field.annotation)
    return field


def keys_at(path: Sequence[Step]) -> tuple[str, ...]:
    """The keys of the section at a path; empty if it is none."""
    names = [step for step in path if isinstance(step, str)]
    if not names:
        return tuple(JobSpec.model_fields)
    field = field_at(names)
    section = section_of(field.annotation) if field else None
    return tuple(section.model_fields) if section else ()


def walk(section: type[Spec] = JobSpec, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every field under a section with its path, a section before its own fields."""
    for key, field in section.model_fields.items():
        yield (*path, key), field
        inner = section_of(field.annotation)
        if inner:
            yield from walk(inner, (*path, key))


def suggest(key: str, parent: Sequence[Step]) -> str:
    """What to write instead of an unknown key: the same name elsewhere, a sibling like it, or all siblings."""
    siblings = keys_at(parent)
    elsewhere = [path for path, _ in walk() if path[-1] == key]
    least_nested = [path for path in elsewhere if len(path) == min(map(len, elsewhere))]
    if len(least_nested) == 1:
        return f"; did you mean {'.'.join(least_nested[0])!r}?"
    return did_you_mean(key, siblings) or f"; valid keys: {', '.join(siblings)}"
