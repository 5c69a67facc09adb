import math

import pytest

from pruneaug.report.analysis import analysis, faster_cost, judged_points, reference_of, training_steps, trial_front
from pruneaug.report.insight import cost_words, faster_words, recovery_words, repeat_words


def run_of(*trials, dense_ms=4.0, allowed=0.01, examples=None):
    """A report with these trials: (latency, loss, feasible) or (latency, loss, feasible, state, epochs)."""
    rows = []
    for number, (latency, loss, feasible, *more) in enumerate(trials):
        state, epochs = (*more, "complete", 1.0)[:2] if len(more) < 2 else more
        rows.append(
            {
                "number": number,
                "state": state,
                "latency_ms_predicted": latency,
                "accuracy_loss": loss,
                "feasible": feasible,
                "epochs": epochs,
            }
        )
    return {
        "trials": rows,
        "dense": {"latency_ms_predicted": dense_ms, "accuracy_validation": 0.9},
        "constraint": {"max_accuracy_loss": allowed},
        "validation_examples": examples,
    }


def test_the_price_of_more_speed_lies_between_its_two_neighbours_on_the_front():
    data = run_of((2.0, 0.010, True), (1.9, 0.012, False), (1.7, 0.030, False), (1.0, 0.1, False), examples=900)
    cost = faster_cost(data)
    assert (cost["from_ms"], cost["to_ms"], cost["loss_now"]) == (2.0, 1.8, 0.010)
    assert (cost["low"], cost["low_trial"], cost["high"], cost["high_trial"]) == (0.012, 1, 0.030, 2)
    assert cost["estimate"] == pytest.approx(0.021)  # halfway from 1.9 to 1.7 ms
    assert cost["error"] == pytest.approx(math.sqrt(0.9 * 0.1 / 900))
    words = faster_words(data)
    assert (
        "from 2.00 ms to 1.80 ms) would cost about 1.10 points of accuracy, 2.10 points lost instead of 1.00: " in words
    )
    assert "trial 1 lost 1.20 points, and trial 2, faster than that, lost 3.00 points" in words
    assert "standard error of the accuracy is 1.00 points" in words


def test_where_nothing_faster_was_trained_no_price_is_made_up():
    data = run_of((2.0, 0.010, True), (1.9, 0.02, False), (1.0, None, False, "skipped", 0.0))
    cost = faster_cost(data)
    assert (cost["estimate"], cost["high"], cost["low"]) == (None, None, 0.02)
    assert "no trial that fast was trained to its end" in faster_words(data)
    assert faster_words(run_of((2.0, 0.03, False))) == ""


def test_a_trial_at_the_target_is_its_price():
    assert faster_cost(run_of((2.0, 0.010, True), (1.8, 0.017, False)))["estimate"] == pytest.approx(0.017)


def test_only_trials_that_were_trained_to_their_end_make_the_front():
    data = run_of(
        (2.0, 0.01, True), (1.5, 0.0, False, "stopped", 0.5), (1.4, 0.0, False, "failed", 0.5), (2.5, 0.02, False)
    )
    assert [point.trial for point in judged_points(data)] == [0, 3]
    assert [point.trial for point in trial_front(data)] == [0]
    steps = training_steps(data, reference_of([data]))
    assert steps[-1].epochs == 3.0  # what was stopped and what failed was paid for all the same
    assert analysis(data)["front"] == [0]
    assert analysis(data)["hypervolume"]["reference"] == {"latency_ms": 4.0, "accuracy_loss": 0.05}


def test_the_corner_is_the_same_for_all_runs():
    runs = [run_of(dense_ms=4.0, allowed=0.01), run_of(dense_ms=5.0, allowed=0.03)]
    assert (reference_of(runs).latency_ms, reference_of(runs).loss) == (5.0, pytest.approx(0.15))
    assert reference_of([{}]) is None
    assert analysis({}) == {"front": [], "hypervolume": None, "faster": None}


def test_the_objective_says_which_trial_was_chosen():
    data = run_of((2.0, 0.01, True), (3.0, 0.001, True))
    assert faster_cost(data)["from_ms"] == 2.0
    data["constraint"]["objective"] = "accuracy"
    assert faster_cost(data)["from_ms"] == 3.0
    data["best"] = {"number": 0}
    assert faster_cost(data)["from_ms"] == 2.0


def test_costs_and_repeats_are_told_in_words(report):
    assert cost_words(report) == (
        "The trials took 50 epochs and 1 h 15 min, the final fine-tuning 5 epochs more; "
        "the search itself took 38 s beside them (0.8 % of the trials' time)."
    )
    assert repeat_words(report) == (
        "Made again with 3 other seeds: validation accuracy 92.81 % ± 0.07 points (standard deviation), "
        "from 92.75 % to 92.88 %."
    )
    report["best"]["repeats"] = None
    report["search"] = {}
    assert (cost_words(report), repeat_words(report)) == ("", "")


def after_final(report, *, trial_lost, lost, expected=0.0):
    """The report of a search whose best trial lost `trial_lost`, and after its final fine-tuning `lost`."""
    chosen = next(t for t in report["trials"] if t["number"] == report["best"]["number"])
    chosen["accuracy_loss"] = trial_lost
    report["best"]["accuracy_validation"] = report["dense"]["accuracy_validation"] - lost
    report["constraint"] |= {"max_accuracy_loss": 0.01, "expected_recovery": expected}
    return report


def test_accuracy_that_was_won_back_beyond_the_limit_is_a_reason_to_search_faster_networks(report):
    words = recovery_words(after_final(report, trial_lost=0.0094, lost=-0.0005))
    assert words == (
        "The final fine-tuning won back 0.99 points: no accuracy is lost now, and 1.00 could be. So a search whose "
        "trials may lose as much more, with `search.expected_recovery: 0.010`, may come to a faster network."
    )
    assert "`search.expected_recovery: 0.017`" in recovery_words(
        after_final(report, trial_lost=0.018, lost=0.001, expected=0.01)
    )


@pytest.mark.parametrize(
    ("trial_lost", "lost", "expected"),
    [
        pytest.param(0.019, 0.0095, 0.0, id="within noise of the limit"),
        pytest.param(0.018, 0.001, 0.02, id="no more than was expected"),
    ],
)
def test_accuracy_that_was_won_back_is_told_alone_where_no_faster_network_is_likely(report, trial_lost, lost, expected):
    words = recovery_words(after_final(report, trial_lost=trial_lost, lost=lost, expected=expected))
    assert words.startswith("The final fine-tuning won back ")
    assert "expected_recovery" not in words


def test_nothing_is_said_of_accuracy_that_was_not_won_back(report):
    assert recovery_words(after_final(report, trial_lost=0.004, lost=0.005)) == ""
    after_final(report, trial_lost=0.009, lost=0.001)["search"]["epochs_final"] = 0
    assert recovery_words(report) == ""
    report["search"]["epochs_final"] = 5.0
    report["constraint"]["objective"] = "accuracy"
    assert recovery_words(report) == ""
    assert recovery_words({"version": 1}) == ""
