import re
from pathlib import Path

import pytest

from pruneaug.spec import initial_job, json_schema, load_job, parse_job, reference_markdown
from pruneaug.spec.fields import walk

ROOT = Path(__file__).parents[2]
MINIMAL = {"task": {"name": "digits", "model": {"name": "digits_cnn"}}}


@pytest.fixture(scope="module")
def validator():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_every_key_has_a_description():
    assert [".".join(path) for path, field in walk() if not field.description] == []


def test_the_reference_page_is_in_step_with_the_models():
    assert (ROOT / "docs/spec-reference.md").read_text() == reference_markdown(), (
        "write it anew: python -c 'from pruneaug.spec import reference_markdown as r; print(r(), end=\"\")'"
    )


def test_the_reference_page_names_every_key():
    page = reference_markdown()
    assert [path for path, _ in walk() if f"| `{path[-1]}` |" not in page] == []


@pytest.mark.parametrize(
    "job",
    [
        MINIMAL,
        {"extends": "base.yaml"},
        {**MINIMAL, "space": {"extends": ["a.yaml", "b.yaml"], "layers": [{"match": "x", "dense": True}]}},
        parse_job(MINIMAL).model_dump(mode="json"),
    ],
)
def test_the_json_schema_accepts_valid_jobs(validator, job):
    validator.validate(job)


@pytest.mark.parametrize(
    "job",
    [{}, {"task": {}}, {**MINIMAL, "serach": {}}, {**MINIMAL, "search": {"trials": 0}}, {**MINIMAL, "run": 3}],
)
def test_the_json_schema_refuses_invalid_jobs(validator, job):
    assert not validator.is_valid(job)


def test_the_json_schema_holds_the_defaults_of_a_section():
    trial = json_schema()["$defs"]["FineTuneSpec"]["properties"]["trial"]
    assert trial["default"] == {"epochs": 1.0, "learning_rate": 0.02}


def test_the_initial_job_is_valid_and_has_the_defaults(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(initial_job())
    assert load_job(path) == parse_job(MINIMAL)


def test_the_initial_job_with_every_key_uncommented_is_the_same_job(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(re.sub(r"^# ( *\w+:)", r"\1", initial_job(), flags=re.MULTILINE))
    assert load_job(path) == parse_job(MINIMAL)
    assert len(path.read_text().splitlines()) > 60
