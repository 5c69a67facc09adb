"""The spec described from its models: a JSON schema for editors, the reference page, and a first job to edit."""

from __future__ import annotations

import json
from functools import reduce
from operator import getitem
from typing import Any

from pydantic.fields import FieldInfo

from pruneaug.spec.base import Spec
from pruneaug.spec.extends import KEY
from pruneaug.spec.fields import section_of, walk
from pruneaug.spec.models import JobSpec, PlugIn, TaskSpec

_INTRODUCTION = """\
# The spec

A job is one YAML file; `pruneaug spec init` prints a first one. This page is generated from the code.

- Only `task` is required. An unknown key is an error. A section that is left out, empty or null has its defaults.
- Scalars are those of YAML 1.2: `1e-3` is a number, `yes` and `12:30` are text.
- File names are relative to the current directory; those of `extends` are relative to the file that holds them.
- `extends: FILE`, or a list of files, starts the file or the section that holds it from other files. Later files and
  the keys beside `extends` win: mappings are merged key by key, lists and single values are replaced, and an empty
  mapping `{}` clears what it would extend. Inside `options`, `extends` is an ordinary key.
- `extends: pruneaug:cnn_cpu` in `space` starts from a search space that comes with the package. They are the files of
  the folder `search_spaces`, for convolutional networks and transformers, on CPUs and GPUs, and explain themselves.
- `--set a.b=VALUE` replaces one value; VALUE is YAML, and numbers are positions in a list:
  `--set search.trials=10`, `--set space.layers.0.dense=true`, `--set "space.patterns=[block:8x1]"`.
- A plug-in is named by a built-in name, by the name that an installed package registered, or by
  `package.module:attr`, which is also looked for in the current directory.
"""


_ABSENT = {("space", "layers"), ("search", "trackers"), ("platform", "remote")}
"""Lists without an item, and sections that are null."""
_EXAMPLE = {("task", "name"): "digits", ("task", "model", "name"): "digits_cnn"}


def json_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of a job file, `extends` included."""
    schema = JobSpec.model_json_schema()
    for model, section in _sections(schema).items():
        _complete(section, model)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "pruneaug job"}


def reference_markdown() -> str:
    """docs/spec-reference.md: every key with its type, default and meaning."""
    sections = _sections(JobSpec.model_json_schema())
    parts = [_INTRODUCTION, "## The job", "", *_table(JobSpec, sections[JobSpec])]
    first_path: dict[type[Spec], str] = {}
    for path, field in walk():
        model = section_of(field.annotation)
        if model is None:
            continue
        name = ".".join(path)
        parts += ["", f"## {name}", "", f"{field.description}.", ""]
        if model in first_path:
            parts.append(f"The keys of `{first_path[model]}`{_own_defaults(field)}.")
        else:
            first_path[model] = name
            parts += _table(model, sections[model])
    return "\n".join(parts) + "\n"


def initial_job() -> str:
    """A valid job that runs without any download, with every other key and its default in comments."""
    task = TaskSpec(name=_EXAMPLE["task", "name"], model=PlugIn(name=_EXAMPLE["task", "model", "name"]))
    defaults = JobSpec(task=task).model_dump(mode="json")
    lines = [
        "# A job for pruneaug: this one prunes a small network that reads handwritten digits.",
        "# Keys behind a '#' show their defaults. To set one, uncomment it and the sections that it is in.",
    ]
    for path, field in walk():
        if path[:2] in _ABSENT and len(path) > 2:
            continue
        value = reduce(getitem, path, defaults)
        shown = "" if isinstance(value, dict) and value else f" {json.dumps(value)}"
        used = any(active[: len(path)] == path for active in _EXAMPLE)
        lines.append(f"{'' if used else '# '}{'  ' * (len(path) - 1)}{path[-1]}:{shown}  # {field.description}")
    return "\n".join(lines) + "\n"


def _sections(schema: dict[str, Any]) -> dict[type[Spec], dict[str, Any]]:
    """The part of JobSpec's schema that describes each section."""
    models = (section_of(field.annotation) for _, field in walk())
    return {JobSpec: schema} | {model: schema["$defs"][model.__name__] for model in models if model}


def _complete(section: dict[str, Any], model: type[Spec]) -> None:
    """Add what pydantic leaves out: defaults that a function makes, and `extends`, which may give what is required."""
    for key, field in model.model_fields.items():
        if not field.is_required():
            section["properties"][key]["default"] = _default(field)
    names = {"type": "array", "items": {"type": "string"}}
    section["properties"][KEY] = {"anyOf": [{"type": "string"}, names], "description": "Files that this starts from"}
    if "required" in section:
        section["anyOf"] = [{"required": section.pop("required")}, {"required": [KEY]}]


def _table(model: type[Spec], section: dict[str, Any]) -> list[str]:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in model.model_fields.items():
        inner = section_of(field.annotation)
        default = "required" if field.is_required() else f"`{json.dumps(_default(field))}`"
        if inner is field.annotation and not field.is_required():
            default = "see below"
        rows.append(f"| `{key}` | {_type_words(section['properties'][key])} | {default} | {field.description} |")
    return rows


def _own_defaults(field: FieldInfo) -> str:
    """Where a section's defaults differ from those of its model, in words."""
    default = None if field.is_required() else _default(field)
    if not default:
        return ""
    return ", with the defaults " + ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in default.items())


def _default(field: FieldInfo) -> Any:
    """A field's default as plain data; of a section, only what differs from its model's own defaults."""
    value = field.get_default(call_default_factory=True)
    return value.model_dump(mode="json", exclude_unset=True) if isinstance(value, Spec) else value


def _type_words(schema: dict[str, Any]) -> str:
    """`"integer, at least 1"` and the like, from a property's JSON schema."""
    if "anyOf" in schema:
        return " or ".join(_type_words(item) for item in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if "$ref" in schema:
        return "section"
    if schema["type"] == "array":
        return f"list of ({_type_words(schema['items'])})"
    words = {"string": "text", "boolean": "true or false", "object": "mapping", "null": "null"}
    bounds = (("minimum", "at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"))
    kind = [words.get(schema["type"], schema["type"])]
    return ", ".join(kind + [f"{text} {schema[key]:g}" for key, text in bounds if key in schema])
