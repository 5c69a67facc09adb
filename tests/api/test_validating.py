"""What is said of a job before its data, its profile and the user's own code are touched."""

import pytest

from pruneaug.api.validating import validate
from pruneaug.errors import SpecError
from pruneaug.spec import parse_job


def digits(**sections):
    return parse_job({"task": {"name": "digits", "model": {"name": "digits_cnn"}}, **sections})


def task(**changes):
    return {"task": {"name": "digits", "model": {"name": "digits_cnn"}, **changes}}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (task(name="digitz"), r"^task: 'digitz' is not one of .*; did you mean 'digits'"),
        (task(options={"sise": 8}), r"^task: .* has no option 'sise'; did you mean 'size'"),
        (task(model=None), r"^task: .* needs a network, but `model` is missing"),
        (task(checkpoint="no.pt"), r"^task: `checkpoint` must exist, but there is no no\.pt"),
        (task(model={"name": "resnet2"}), r"^task\.model: .*did you mean 'resnet20'"),
        (task(model={"name": "resnet20", "options": {"widht": 3}}), r"^task\.model: .* has no option 'widht'"),
        ({"pruner": {"name": "magnitud"}}, r"^pruner: .*did you mean 'magnitude'"),
        ({"pruner": {"name": "magnitude", "options": {"scop": 1}}}, r"^pruner: .*did you mean 'scope'"),
        ({"pruner": {"name": "gradual", "options": {"pruner": "tailor"}}}, r"^pruner: .*did you mean 'taylor'"),
        ({"finetune": {"name": "trian"}}, r"^finetune: .*did you mean 'train'"),
        ({"finetune": {"options": {"x": 1}}}, r"^finetune: .* has no option 'x'; it takes none"),
        ({"search": {"strategy": "unifrom"}}, r"^search\.strategy: .*did you mean 'uniform'"),
        ({"search": {"stopper": {"name": "ahsa"}}}, r"^search\.stopper: .*did you mean 'asha'"),
        ({"search": {"executor": {"name": "process"}}}, r"^search\.executor: .*did you mean 'processes'"),
        ({"search": {"executor": {"name": "processes", "options": {"threads": 0}}}}, r"^search\.executor: .*got 0"),
        ({"search": {"trackers": ["tensorbord"]}}, r"^search\.trackers\.0: .*did you mean 'tensorboard'"),
        ({"search": {"stopper": {"name": "asha"}}}, r"^search: .*search\.rungs has none below 1"),
        (
            {"space": {"layers": [{"match": "head.*", "dense": True}]}},
            r"^space: space\.layers\.0\.match: .*matches none",
        ),
        ({"space": {"layers": [{"op": "conv2d-1x1", "dense": True}]}}, r"^space: .*of op 'conv2d-1x1' matches none"),
    ],
)
def test_a_wrong_name_option_or_rule_is_told_with_its_key(sections, message):
    with pytest.raises(SpecError, match=message):
        validate(digits(**sections))


def test_each_problem_has_its_line():
    with pytest.raises(SpecError) as raised:
        validate(digits(pruner={"name": "magnitud"}, search={"strategy": "joit", "trackers": ["x"]}))
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        "pruner", "search.strategy", "search.trackers.0",
    ]  # fmt: skip


def test_a_job_that_is_right_leaves_nothing():
    rules = [{"match": "3", "dense": True}, {"op": "linear", "dense": True}]
    assert validate(digits(space={"layers": rules}, search={"trackers": ["tensorboard"]})) == ()


def test_the_users_own_code_is_left_to_the_dry_run_and_not_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_and_wrong.py").write_text("raise SystemExit('imported')\n")
    job = parse_job(
        {
            "task": {"name": "own_and_wrong:task"},
            "pruner": {"name": "gradual", "options": {"pruner": "own_and_wrong:Pruner"}},
            "search": {"trackers": [{"name": "own_and_wrong:Tracker"}]},
            "space": {"layers": [{"match": "x", "dense": True}]},
        }
    )
    own = "'own_and_wrong:"
    assert validate(job) == (f"task {own}task'", "pruner 'gradual'", f"search.trackers.0 {own}Tracker'", "space.layers")


def test_rules_are_held_against_the_network_that_the_jobs_options_give():
    model = {"name": "resnet20", "options": {"in_channels": 1}}
    for match, is_wrong in (("conv1", False), ("stem", True)):
        job = digits(**task(model=model), space={"layers": [{"match": match, "dense": True}]})
        if is_wrong:
            with pytest.raises(SpecError, match="'stem' matches none"):
                validate(job)
        else:
            assert validate(job) == ()
