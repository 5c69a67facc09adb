import re
from pathlib import Path

import pytest

from pruneaug.errors import SpecError
from pruneaug.spec import TrainSpec, load_job, parse_job

MINIMAL = {"task": {"name": "digits", "model": {"name": "digits_cnn"}}}
HEAD = "task: {name: digits, model: {name: digits_cnn}}\n"


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file into the current directory, and give its name."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "job.yaml") -> Path:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
        return Path(name)

    return write_file


def problems(action) -> list[str]:
    with pytest.raises(SpecError) as caught:
        action()
    return str(caught.value).splitlines()


def test_a_minimal_job_has_all_defaults(write):
    job = load_job(write(HEAD))
    assert (job.task.name, job.search.strategy, job.pruner.name, job.search.trials) == (
        "digits",
        "allocate",
        "magnitude",
        30,
    )
    assert job == parse_job(MINIMAL)


def test_a_section_given_in_part_keeps_the_rest_of_its_own_default(write):
    text = HEAD + "finetune: {trial: {batch_size: 32}, final: {epochs: 2}}\npruner: {options: {scope: global}}\n"
    job = load_job(write(text))
    assert job.finetune.trial == TrainSpec(epochs=1.0, learning_rate=0.02, batch_size=32)
    assert job.finetune.final == TrainSpec(epochs=2.0, learning_rate=0.02)
    assert job.pruner.name == "magnitude"


def test_an_empty_section_has_its_defaults(write):
    assert load_job(write(HEAD + "search:\nspace: {}\n")) == parse_job(MINIMAL)


def test_numbers_and_words_are_those_of_yaml_1_2(write):
    lines = [
        "a: 1e-3",
        "b: no",
        "c: 12:30",
        "d: 2026-01-01",
        "e: 012",
        "f: 0x1F",
        "g: -.5",
        "h: ~",
        "i: true",
        "j: 089",
    ]
    text = "task:\n  name: digits\n  options:\n" + "".join(f"    {line}\n" for line in lines)
    assert load_job(write(text)).task.options == {
        "a": 0.001,
        "b": "no",
        "c": "12:30",
        "d": "2026-01-01",
        "e": 12,
        "f": 31,
        "g": -0.5,
        "h": None,
        "i": True,
        "j": 89,
    }


def test_anchors_and_merge_keys_work(write):
    text = "task:\n  name: digits\n  train: &train {epochs: 3, batch_size: 8}\n"
    text += "finetune:\n  trial: &trial {<<: *train, epochs: 1}\n  final: *trial\n"
    job = load_job(write(text))
    assert job.finetune.trial == job.finetune.final
    assert (job.finetune.trial.batch_size, job.finetune.trial.epochs, job.task.train.epochs) == (8, 1.0, 3.0)


def test_patterns_are_canonical_and_sparsities_sorted_each_once(write):
    text = HEAD + "space: {patterns: [element, block:8x1, block:1x1], sparsities: [0.9, 0.5, 0.9]}\n"
    space = load_job(write(text)).space
    assert (space.patterns, space.sparsities) == (["block:1x1", "block:8x1"], [0.5, 0.9])


@pytest.mark.parametrize(
    ("text", "line", "key", "rule"),
    [
        ("search:\n  trails: 3\n", 3, "search.trails", "unknown key; did you mean 'trials'?"),
        ("patterns: [block:1x1]\n", 2, "patterns", "unknown key; did you mean 'space.patterns'?"),
        ("zzz: 1\n", 2, "zzz", "unknown key; valid keys: version, run, task"),
        ("search:\n  seed: 1\n  trials: 0\n", 4, "search.trials", "greater than or equal to 1, but got 0"),
        ("search: {trials: true}\n", 2, "search.trials", "valid integer, but got True"),
        ("search: {trials: '3'}\n", 2, "search.trials", "valid integer, but got '3'"),
        ("search: {max_accuracy_loss: .nan}\n", 2, "search.max_accuracy_loss", "finite number, but got nan"),
        ("search: 3\n", 2, "search", "a mapping with the keys strategy, options"),
        ("run: [a]\n", 2, "run", "valid string, but got ['a']"),
        ("version: 2\n", 2, "version", "must be 1, but got 2"),
        ("finetune:\n  trial:\n    optimizer: sdg\n", 4, "finetune.trial.optimizer", "'sgd' or 'adamw', but got 'sdg'"),
        (
            "finetune:\n  trial:\n    mixed_precision: maybe\n",
            4,
            "finetune.trial.mixed_precision",
            "boolean or must be 'auto', but got 'maybe'",
        ),
        ("space:\n  patterns:\n  - block:8x1\n  - blok:8x1\n", 3, "space.patterns", "'block:ROWSxCOLS'"),
        ("space: {patterns: [dense]}\n", 2, "space.patterns", "always a choice"),
        ("space: {patterns: []}\n", 2, "space.patterns", "at least 1 item"),
        ("space:\n  sparsities:\n  - 0.5\n  - 1.5\n", 5, "space.sparsities.1", "less than or equal to 1, but got 1.5"),
        ("space:\n  layers:\n  - {match: a}\n  - {dense: true}\n", 5, "space.layers.1", "neither `match` nor `op`"),
        ("space:\n  layers:\n  - match: a\n    dens: true\n", 5, "space.layers.0.dens", "did you mean 'dense'"),
        ("3: x\n", 2, "3", "strings"),
    ],
)
def test_a_wrong_value_is_named_with_file_line_and_key(write, text, line, key, rule):
    (problem,) = problems(lambda: load_job(write(HEAD + text)))
    assert problem.startswith(f"job.yaml:{line}: {key}: ")
    assert rule in problem


def test_all_problems_are_reported_at_once(write):
    found = problems(lambda: load_job(write("search:\n  trails: 3\n  trials: 0\n")))
    assert sorted(re.match(r"job.yaml:(\d+): ([\w.]+):", line).groups() for line in found) == [
        ("1", "task"),
        ("2", "search.trails"),
        ("3", "search.trials"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["job.yaml:1", "mapping", "nothing"]),
        ("- 1\n", ["job.yaml:1", "mapping", "a list"]),
        ("a: 1\nb: [\n", ["job.yaml:3", "not valid YAML"]),
        ("a: 1\n\tb: 2\n", ["job.yaml:2", "not valid YAML"]),
        ("a: 1\na: 2\n", ["job.yaml:2", "'a' is given twice", "line 1"]),
        ("a: 1\n---\nb: 2\n", ["another document"]),
        ("a: \x07\n", ["not valid YAML"]),
        ("a: *x\n", ["job.yaml:1", "undefined alias"]),
        ("a: &x [*x]\n", ["must not contain itself"]),
        ("a: " + "[" * 5000, ["nested too deeply"]),
        ("? [1]\n: 2\n", ["job.yaml:1", "a key must be a plain name"]),
        ("a: !!python/object/apply:os.getcwd []\n", ["job.yaml:1", "tag"]),
        ("a: !!python/name:os.getcwd ''\n", ["job.yaml:1", "tag"]),
        ("a: !!int x\n", ["job.yaml:1", "'x' is not a valid int"]),
    ],
)
def test_a_broken_file_is_an_error_with_its_line(write, text, words):
    (problem,) = problems(lambda: load_job(write(text)))
    assert [word for word in words if word not in problem] == []


def test_a_missing_or_binary_file_is_an_error(write, tmp_path):
    assert "there is no such file" in problems(lambda: load_job("nowhere.yaml"))[0]
    assert "cannot be read" in problems(lambda: load_job(tmp_path))[0]
    Path("binary.yaml").write_bytes(b"a: \xff\xfe")
    assert "UTF-8" in problems(lambda: load_job("binary.yaml"))[0]


def test_plain_data_is_named_by_its_source():
    assert problems(lambda: parse_job({**MINIMAL, "serach": {}}, source="your call")) == [
        "your call: serach: unknown key; did you mean 'search'?"
    ]
