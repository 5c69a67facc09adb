import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaug.errors import SpecError
from pruneaug.spec import (
    JobSpec,
    TaskSpec,
    dump_job,
    hide_password,
    job_digest,
    load_job,
    parse_job,
    public_settings,
    result_settings,
)

JOB = {"task": {"name": "digits", "model": {"name": "digits_cnn"}, "options": {"size": 32}}}

tricky = st.sampled_from(
    ["no", "1e-3", "089", "0o7", "12:30", "2026-01-01", "~", "", "null", "<<", ".nan", "0x1F", "a: b", "# c"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | tricky
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("resolve") / "resolved.yaml"


@settings(max_examples=150, deadline=None)
@given(options=st.dictionaries(st.text() | tricky, values, max_size=3))
def test_a_dumped_job_loads_back_equal(path, options):
    job = JobSpec(task=TaskSpec(name="digits", options=options))
    path.write_text(dump_job(job), encoding="utf-8")
    assert load_job(path) == job


def test_a_dumped_job_has_every_default_written_out():
    dumped = yaml.safe_load(dump_job(parse_job(JOB)))
    assert dumped["search"]["trials"] == 30
    assert dumped["finetune"]["final"]["learning_rate"] == 0.02


def test_options_that_are_not_plain_data_are_an_error():
    with pytest.raises(SpecError, match="options must be text, numbers"):
        dump_job(JobSpec(task=TaskSpec(name="digits", options={"transform": object()})))


@pytest.mark.parametrize(
    "override", ["run=elsewhere", "search.trials=99", "search.timeout_s=5", "search.storage='sqlite:///x.db'"]
)
def test_the_digest_ignores_where_and_how_long(override):
    assert job_digest(parse_job(JOB, [override])) == job_digest(parse_job(JOB))


@pytest.mark.parametrize(
    "override",
    [
        "task.options.size=16",
        "task.checkpoint=a.safetensors",
        "search.seed=1",
        "search.max_accuracy_loss=0.02",
        "space.patterns=[block:2x1]",
        "space.layers=[{match: a, dense: true}]",
        "finetune.trial.epochs=2",
        "platform.threads=1",
    ],
)
def test_the_digest_changes_with_what_decides_results(override):
    changed = parse_job(JOB, [override])
    assert job_digest(changed) != job_digest(parse_job(JOB))
    differing = [
        key for key, value in result_settings(changed).items() if result_settings(parse_job(JOB)).get(key) != value
    ]
    assert differing == [override.partition("=")[0]]


def test_the_digest_is_the_same_however_a_job_is_written():
    spelled_out = parse_job(yaml.safe_load(dump_job(parse_job(JOB))))
    assert job_digest(spelled_out) == job_digest(parse_job(JOB))
    assert len(job_digest(spelled_out)) == 64


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("postgresql://host/name", "postgresql://host/name"),
        ("postgresql://me@host:5432/name", "postgresql://me@host:5432/name"),
        ("postgresql://me:secret@host:5432/name", "postgresql://me:***@host:5432/name"),
        ("mysql+pymysql://me:se/c:r@et@host/name", "mysql+pymysql://me:***@host/name"),
        ("postgresql://:secret@/name", "postgresql://:***@/name"),
        ("postgresql://host/name?user=me&password=secret&x=1", "postgresql://host/name?user=me&password=***&x=1"),
    ],
)
def test_a_password_is_hidden_wherever_a_storage_url_has_it(url, shown):
    assert hide_password(url) == shown
    job = parse_job({"task": {"name": "digits"}, "search": {"storage": url}})
    assert public_settings(job)["search"]["storage"] == shown
    assert job.search.storage == url
