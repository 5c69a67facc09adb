"""The spec: YAML files and `--set` overrides -> one validated JobSpec, and back."""

from pruneaug.spec.load import load_job, parse_job
from pruneaug.spec.models import (
    FineTuneSpec,
    JobSpec,
    LayerRule,
    PlugIn,
    SearchSpec,
    SpaceSpec,
    TaskSpec,
    TrainSpec,
)
from pruneaug.spec.platform import PlatformSpec
from pruneaug.spec.resolve import dump_job, hide_password, job_digest, public_settings, result_settings
from pruneaug.spec.schema import initial_job, json_schema, reference_markdown

__all__ = [
    "FineTuneSpec",
    "JobSpec",
    "LayerRule",
    "PlatformSpec",
    "PlugIn",
    "SearchSpec",
    "SpaceSpec",
    "TaskSpec",
    "TrainSpec",
    "dump_job",
    "hide_password",
    "initial_job",
    "job_digest",
    "json_schema",
    "load_job",
    "parse_job",
    "public_settings",
    "reference_markdown",
    "result_settings",
]
