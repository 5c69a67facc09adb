import tomllib
from pathlib import Path

import pytest

from pruneaug.errors import SpecError
from pruneaug.spec import load_job, parse_job

ROOT = Path(__file__).parents[2]
TASK = {"name": "digits", "model": {"name": "digits_cnn"}}
HEAD = "task: {name: digits, model: {name: digits_cnn}}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def test_a_section_extends_a_file_relative_to_its_own():
    write("spaces/cpu.yaml", "patterns: [block:8x1]\nsparsities: [0.5, 0.9]\n")
    name = write("jobs/job.yaml", HEAD + "space:\n  extends: ../spaces/cpu.yaml\n  sparsities: [0.7]\n")
    space = load_job(name).space
    assert (space.patterns, space.sparsities) == (["block:8x1"], [0.7])


def test_a_job_extends_jobs_key_by_key_and_the_last_word_wins():
    write("a.yaml", HEAD + "search: {trials: 1, seed: 1, max_accuracy_loss: 0.1}\nrun: runs/a\n")
    write("b.yaml", "search: {trials: 2, seed: 2}\n")
    job = load_job(write("c.yaml", "extends: [a.yaml, b.yaml]\nsearch: {trials: 3}\n"))
    assert (job.search.trials, job.search.seed, job.search.max_accuracy_loss, job.run) == (3, 2, 0.1, "runs/a")


def test_extends_is_followed_through_several_files():
    write("one/a.yaml", HEAD)
    write("two/b.yaml", "extends: ../one/a.yaml\nrun: runs/b\n")
    job = load_job(write("c.yaml", "extends: two/b.yaml\n"))
    assert (job.task.name, job.run) == ("digits", "runs/b")


def test_lists_are_replaced_and_an_empty_mapping_clears():
    write(
        "a.yaml", HEAD + "space: {layers: [{match: a}, {match: b}]}\npruner: {name: mine, options: {scope: global}}\n"
    )
    job = load_job(write("b.yaml", "extends: a.yaml\nspace: {layers: [{match: c}]}\npruner: {options: {}}\n"))
    assert [rule.match for rule in job.space.layers] == ["c"]
    assert (job.pruner.name, job.pruner.options) == ("mine", {})


def test_inside_options_extends_is_an_ordinary_key():
    job = parse_job({"task": {**TASK, "options": {"extends": "nothing.yaml"}}})
    assert job.task.options == {"extends": "nothing.yaml"}


def test_the_same_file_may_be_extended_twice():
    write("base.yaml", "epochs: 3\n")
    text = HEAD + "finetune: {trial: {extends: base.yaml}, final: {extends: base.yaml}}\n"
    job = load_job(write("job.yaml", text))
    assert (job.finetune.trial.epochs, job.finetune.final.epochs) == (3.0, 3.0)


def test_a_problem_in_an_extended_file_is_named_there():
    write("spaces/cpu.yaml", "patterns: [block:8x1]\nsparsitys: [0.5]\n")
    with pytest.raises(SpecError, match=r"^jobs/\.\./spaces/cpu\.yaml:2: space\.sparsitys: unknown key; did you mean"):
        load_job(write("jobs/job.yaml", HEAD + "space: {extends: ../spaces/cpu.yaml}\n"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: job.yaml\n", ["job.yaml:1", "circle", "job.yaml -> job.yaml"]),
        ("extends: other.yaml\n", ["other.yaml:1", "circle", "job.yaml -> other.yaml"]),
        ("extends: nowhere.yaml\n", ["job.yaml:1", "no file nowhere.yaml", "relative to the file"]),
        ("extends: .\n", ["no file"]),
        ("extends: 3\n", ["job.yaml:1", "file name", "3"]),
        ("extends: [a.yaml, [b]]\n", ["file name", "a list"]),
        ("extends:\n", ["file name", "nothing"]),
        ("extends: list.yaml\n", ["list.yaml:1", "must be a mapping"]),
    ],
)
def test_a_wrong_extends_is_an_error(text, words):
    write("other.yaml", "extends: job.yaml\n")
    write("list.yaml", "- 1\n")
    write("a.yaml", HEAD)
    with pytest.raises(SpecError) as caught:
        load_job(write("job.yaml", text))
    assert [word for word in words if word not in str(caught.value)] == []


def test_search_spaces_of_the_package_are_extended_by_name():
    known = sorted(path.stem for path in (ROOT / "search_spaces").glob("*.yaml"))
    assert len(known) >= 4
    for name in known:
        shipped = parse_job({"task": TASK, "space": {"extends": f"pruneaug:{name}"}}).space
        assert (
            shipped == parse_job({"task": TASK, "space": {"extends": str(ROOT / f"search_spaces/{name}.yaml")}}).space
        )
    changed = parse_job({"task": TASK, "space": {"extends": "pruneaug:cnn_cpu", "sparsities": [0.7]}}).space
    assert changed.sparsities == [0.7]
    with pytest.raises(SpecError, match=r"one of the search spaces pruneaug:cnn_cpu, .* did you mean 'cnn_cpu'\?"):
        parse_job({"task": TASK, "space": {"extends": "pruneaug:cnn_cp"}})


def test_the_package_is_built_with_its_search_spaces():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert built["force-include"] == {"search_spaces": "pruneaug/search_spaces"}
