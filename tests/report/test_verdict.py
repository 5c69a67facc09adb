import math

import pytest

from pruneaug.report.verdict import headline, outcome, verdict
from pruneaug.report.words import milliseconds


def test_a_faster_network_within_the_loss_pays(report):
    assert outcome(report) == "pays"
    words = verdict(report)
    assert "Pruning pays" in words
    assert "onnxruntime" in words
    assert "0.38 points" in words
    assert "0.50 allowed" in words
    assert headline(report) == "2.01× faster"


def test_a_slower_network_stays_dense(report):
    report["speedup_measured"] = 0.8
    report["best"]["latency_ms_measured"] = 5.0
    assert outcome(report) == "stay dense"
    assert verdict(report).startswith("Stay dense")


def test_a_gain_within_the_spread_of_the_baseline_stays_dense(report):
    baseline = report["baselines"][0]
    report["best"]["latency_ms_measured"] = (baseline["p10"] + baseline["latency_ms"]) / 2
    report["speedup_measured"] = baseline["latency_ms"] / report["best"]["latency_ms_measured"]
    assert report["speedup_measured"] > 1
    assert outcome(report) == "stay dense"
    assert "spread" in verdict(report)


def test_a_network_that_loses_too_much_after_the_final_fine_tuning_stays_dense(report):
    report["best"]["accuracy_validation"] = report["dense"]["accuracy_validation"] - 0.02
    assert outcome(report) == "stay dense"
    assert "2.00 points" in verdict(report)


def test_a_loss_equal_to_the_allowed_one_pays_in_spite_of_rounding(report):
    report["constraint"]["max_accuracy_loss"] = 0.01
    report["dense"]["accuracy_validation"], report["best"]["accuracy_validation"] = 0.98, 0.97
    assert 0.98 - 0.97 > 0.01
    assert outcome(report) == "pays"


def test_an_infeasible_search_says_how_close_it_came(infeasible):
    closest = min((t for t in infeasible["trials"] if t["accuracy_loss"] is not None), key=lambda t: t["accuracy_loss"])
    words = verdict(infeasible)
    assert outcome(infeasible) == "infeasible"
    assert f"trial {closest['number']} " in words
    assert f"lost {100 * closest['accuracy_loss']:.2f}" in words


def test_feasible_trials_without_a_best_network_mean_that_dense_is_as_fast(report):
    report.update(best=None, speedup_measured=None)
    assert outcome(report) == "stay dense"
    assert "predicted to be faster" in verdict(report)


def test_trials_that_all_failed_name_the_first_error(infeasible):
    infeasible["trials"] = [
        {
            "number": n,
            "state": "failed",
            "accuracy_loss": None,
            "feasible": False,
            "error": f"TaskError: file {n} is gone",
        }
        for n in (3, 4)
    ]
    assert outcome(infeasible) == "failed"
    assert "stay dense" in verdict(infeasible)
    assert "trial 3 with: TaskError: file 3 is gone" in verdict(infeasible)


def test_a_network_that_was_not_measured_says_which_command_measures_it(report):
    report.update(speedup_measured=None)
    assert outcome(report) == "unmeasured"
    assert "`pruneaug bench runs/vgg16/checkpoint` does" in verdict(report)
    report["job"]["spec"]["run"] = "my runs/one"
    report["status"]["state"] = "searched"
    assert "`pruneaug export 'my runs/one'` does" in verdict(report)


def test_a_test_loss_above_the_allowed_one_is_told(report):
    report["best"]["accuracy_test"] = report["dense"]["accuracy_test"] - 0.021
    assert outcome(report) == "pays"
    assert "On the test data it loses 2.10 points" in verdict(report)


def limit_latency(data, limit_ms):
    data["constraint"].update(objective="accuracy", max_latency_ms=limit_ms)


def test_a_network_that_is_measured_over_the_latency_limit_is_cautioned(report):
    measured_ms = report["best"]["latency_ms_measured"]
    limit_latency(report, 1.01 * measured_ms)
    assert outcome(report) == "pays"
    assert "Measured, it takes" not in verdict(report)
    limit_latency(report, 0.9 * measured_ms)
    words = verdict(report)
    said = [milliseconds(ms) for ms in (measured_ms, 0.9 * measured_ms, report["best"]["latency_ms_predicted"])]
    assert f"Measured, it takes {said[0]}, more than the {said[1]} that were allowed" in words
    assert f"by its predicted latency, {said[2]}." in words
    del report["best"]["latency_ms_measured"]
    report["speedup_measured"] = None
    assert "Measured, it takes" not in verdict(report)


def test_trials_that_are_all_over_the_latency_limit_do_not_mean_that_none_is_faster_than_dense(report):
    dense_ms = report["dense"]["latency_ms_predicted"]
    trial = {"number": 0, "state": "skipped", "accuracy_loss": None, "feasible": False}
    report.update(best=None, trials=[{**trial, "latency_ms_predicted": 0.8 * dense_ms}])
    limit_latency(report, 0.5 * dense_ms)
    assert outcome(report) == "infeasible"
    assert f"none of 1 trials was trained to its end within {milliseconds(0.5 * dense_ms)}" in verdict(report)
    assert headline(report) == "Nothing kept the limit"
    report["trials"][0]["latency_ms_predicted"] = 1.1 * dense_ms
    assert outcome(report) == "stay dense"
    failed = {**trial, "number": 1, "state": "failed", "error": "TaskError: gone"}
    report["trials"] = [{**trial, "latency_ms_predicted": 0.8 * dense_ms}, failed]
    assert "The other 1 were not predicted to be faster than dense and within the latency limit." in verdict(report)


def test_a_gain_of_accuracy_within_its_noise_is_said_to_be_noise(report):
    def noise(gain):  # of the difference of two accuracies
        return f"{100 * math.sqrt(sum(p * (1 - p) / 5000 for p in (0.9324, 0.9324 + gain))):.2f}"

    def words(gain):
        report["best"]["accuracy_validation"] = report["dense"]["accuracy_validation"] + gain
        return verdict(report)

    assert f"(0.20 points gained, within the noise of ± {noise(0.002)}; 0.50 could be lost)" in words(0.002)
    assert "no validation accuracy (0.60 points gained; 0.50 could be lost)" in words(0.006)
    assert "no validation accuracy (0.50 could be lost)" in words(0.0)
    report["best"]["repeats"]["spread"] = 0.007  # over seeds, more than the standard error
    assert "within the noise of ± 0.70" in words(0.006)
    del report["validation_examples"], report["best"]["repeats"]
    assert "(0.20 points gained; 0.50 could be lost)" in words(0.002)


def test_the_verdict_on_a_network_that_only_guesses_says_so(report):
    report["dense"].update(accuracy_validation=0.11, accuracy_chance=0.1)
    report["best"]["accuracy_validation"] = 0.11
    assert "is hardly better than guessing" in verdict(report)
    report["dense"]["accuracy_chance"] = 0.01
    assert "guessing" not in verdict(report)


@pytest.mark.parametrize("data", [{}, {"best": None, "trials": None}, {"best": {}, "trials": []}])
def test_empty_data_has_a_verdict(data):
    assert verdict(data)
