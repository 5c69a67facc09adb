import pytest

from pruneaug.errors import SpecError
from pruneaug.spec import load_job, parse_job

JOB = {
    "task": {"name": "digits", "model": {"name": "digits_cnn"}},
    "space": {"sparsities": [0.5, 0.9], "layers": [{"match": "a"}, {"match": "b"}]},
}


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("search.trials=7", lambda job: job.search.trials, 7),
        ("search.max_accuracy_loss=5e-3", lambda job: job.search.max_accuracy_loss, 0.005),
        ("search.timeout_s=", lambda job: job.search.timeout_s, None),
        ("task.checkpoint=weights/a=b.safetensors", lambda job: job.task.checkpoint, "weights/a=b.safetensors"),
        ("task.options.root=/data/x", lambda job: job.task.options, {"root": "/data/x"}),
        ("task.options.config={layers: 2}", lambda job: job.task.options, {"config": {"layers": 2}}),
        ("task.options.a.b=[1]", lambda job: job.task.options, {"a": {"b": [1]}}),
        ("space.sparsities.1=0.8", lambda job: job.space.sparsities, [0.5, 0.8]),
        ("space.sparsities=[0.7]", lambda job: job.space.sparsities, [0.7]),
        ("space.layers.1.dense=true", lambda job: [rule.dense for rule in job.space.layers], [False, True]),
        ("space.layers.0={match: c}", lambda job: [rule.match for rule in job.space.layers], ["c", "b"]),
        (
            "finetune.trial.epochs=0.25",
            lambda job: (job.finetune.trial.epochs, job.finetune.trial.learning_rate),
            (0.25, 0.02),
        ),
        (
            "pruner.options.scope=global",
            lambda job: (job.pruner.name, job.pruner.options),
            ("magnitude", {"scope": "global"}),
        ),
    ],
)
def test_an_override_sets_one_value(override, read, expected):
    assert read(parse_job(JOB, [override])) == expected


def test_overrides_apply_in_order_over_the_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("task: {name: digits}\nsearch: {trials: 1, seed: 4}\n")
    job = load_job(path, ["search.trials=2", "search.trials=3"])
    assert (job.search.trials, job.search.seed) == (3, 4)


def test_an_override_may_extend_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu.yaml").write_text("patterns: [block:8x1]\n")
    assert parse_job(JOB, ["space={extends: cpu.yaml}"]).space.patterns == ["block:8x1"]


def test_overrides_leave_the_given_data_alone():
    before = repr(JOB)
    parse_job(JOB, ["space.layers.0.dense=true", "search.trials=3"])
    assert repr(JOB) == before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.trails=3", ["search has no key 'trails'", "did you mean 'trials'"]),
        ("serach.trials=3", ["the job has no key 'serach'", "did you mean 'search'"]),
        ("trials=3", ["did you mean 'search.trials'"]),
        ("search.trials", ["KEY=VALUE"]),
        ("=3", ["KEY=VALUE"]),
        ("search..trials=3", ["KEY=VALUE"]),
        ("search.trials=[", ["not valid YAML"]),
        ("search.trials=x", ["search.trials: must be a valid integer, but got 'x'"]),
        ("search.trials.x=3", ["search.trials is a single value"]),
        ("task.name.x=3", ["task.name is 'digits'"]),
        ("space.sparsities.2=0.8", ["2 items", "'2'"]),
        ("space.sparsities.x=0.8", ["2 items", "'x'"]),
        ("space.sparsities.-1=0.8", ["2 items", "'-1'"]),
        ("space.patterns.0=element", ["space.patterns is not given in the job"]),
        ("space.layers.0.dens=true", ["space.layers.0 has no key 'dens'", "did you mean 'dense'"]),
        ("space.layers=[{match: a, x: 1}]", ["space.layers.0.x: unknown key"]),
    ],
)
def test_a_wrong_override_is_an_error_that_quotes_it(override, words):
    with pytest.raises(SpecError) as caught:
        parse_job(JOB, [override])
    message = str(caught.value)
    assert message.startswith(f"--set {override}: ")
    assert [word for word in words if word not in message] == []
