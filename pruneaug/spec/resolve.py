"""A job with every default filled in: as text to keep beside its results, and as a digest to tell jobs apart."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import yaml
from pydantic_core import PydanticSerializationError

from pruneaug.errors import SpecError
from pruneaug.spec.document import SCALARS
from pruneaug.spec.models import JobSpec

_PASSWORDS = (r"(://[^:/@]*:).*(?=@)", r"([?&](?:password|passwd|pwd)=)[^&]*")
NO_RESULT = (
    "run",
    "platform.device",
    "platform.kernels",
    "platform.latency_db",
    "platform.remote.address",
    "platform.remote.compiler",
    "platform.remote.devices",
    "platform.remote.timeout_s",
    "platform.remote.tracker_key",
    "search.executor",
    "search.final_timeout_s",
    "search.keep_weights",
    "search.retries",
    "search.storage",
    "search.timeout_s",
    "search.trackers",
    "search.trial_timeout_s",
    "search.trials",
    "finetune.finalists",
    "finetune.repeats",
)
"""The keys that do not decide what a trial gives: where things are kept, and how many trials there are; with all
below them."""
_NO_RESULT = tuple(f"{key}." for key in NO_RESULT)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would take for something else than text."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape what PyYAML writes but does not read back, such as U+0085."""
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _name, (_pattern, _first) in SCALARS.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), list(_first))


def dump_job(job: JobSpec) -> str:
    """The job as YAML with every default written out; `load_job` gives an equal job back."""
    return yaml.dump(_plain(job), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def result_settings(job: JobSpec) -> dict[str, Any]:
    """What decides a job's results, as dotted key -> value; two runs may be continued by one another if these agree."""
    settings = _flatten(_plain(job))
    return {key: value for key, value in settings.items() if not f"{key}.".startswith(_NO_RESULT)}


def job_digest(job: JobSpec) -> str:
    """SHA-256 of `result_settings`, in hexadecimal."""
    text = json.dumps(result_settings(job), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def public_settings(job: JobSpec) -> dict[str, Any]:
    """The job as JSON values, to be kept in what others get to see: passwords in URLs of the search are hidden."""
    settings = _plain(job)
    search = settings["search"]
    if job.search.storage is not None:
        search["storage"] = hide_password(job.search.storage)
    for options in (tracker["options"] for tracker in search["trackers"] if isinstance(tracker, dict)):
        options |= {key: hide_password(value) for key, value in options.items() if isinstance(value, str)}
    return settings


def hide_password(url: str) -> str:
    """The URL with `***` in place of its password."""
    for pattern in _PASSWORDS:
        url = re.sub(pattern, r"\1***", url)
    return url


def _plain(job: JobSpec) -> dict[str, Any]:
    try:
        return job.model_dump(mode="json")
    except (PydanticSerializationError, UnicodeDecodeError) as error:
        raise SpecError(f"options must be text, numbers, true, false, null, lists and mappings, but: {error}") from None


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
