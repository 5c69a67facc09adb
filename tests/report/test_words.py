import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.report import words
from pruneaug.report.layers import pattern_kinds, pattern_words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (123.4, "123"),
        (12.34, "12.3"),
        (1.234, "1.23"),
        (0.04567, "0.0457"),
        (0, "0"),
        (-2.5, "−2.50"),
        (1e-9, "0"),
        (-3e-9, "0"),
    ],
)
def test_numbers_have_three_significant_digits(value, text):
    assert words.significant(value) == text


@given(st.floats(min_value=1e-3, max_value=1e6))
def test_a_written_number_is_within_half_a_per_cent(value):
    assert math.isclose(float(words.significant(value).replace(",", "")), value, rel_tol=0.0051)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (words.milliseconds, 2.083, "2.08 ms"),
        (words.milliseconds, 0.0408, "0.0408 ms"),
        (words.microseconds, 168.2, "168 µs"),
        (words.percent, 0.983, "98.3 %"),
        (words.points, 0.0042, "0.42"),
        (words.points, -0.00001, "0.00"),
        (words.signed_percent, 0.034, "+3.4 %"),
        (words.times, 2.934, "2.93×"),
        (words.times, 12.34, "12.3×"),
        (words.size, 3_210_000, "3.21 MB"),
        (words.count, 23_500_000, "23.5 M"),
        (words.count, 640, "640"),
        (words.seconds, 12.3, "12 s"),
        (words.seconds, 4521, "1 h 15 min"),
    ],
)
def test_figures_carry_their_unit(function, value, text):
    assert function(value) == text


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "fast", True])
@pytest.mark.parametrize("function", [words.milliseconds, words.percent, words.points, words.times, words.size])
def test_what_is_no_finite_number_is_missing_and_not_zero(function, value):
    assert function(value) == words.MISSING


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("linear-t128-i768-o3072", "linear, 768 → 3072, 128 tokens"),
        ("linear-t1-i64-o10", "linear, 64 → 10"),
        ("conv2d-b1-i64-o128-s32x32-k3x3-d1x1-p1.1.1.1-st2x2-g1", "conv 3×3, 64 → 128, 32×32, stride 2"),
        ("conv2d-b4-i8-o8-s9x7-k1x1-d2x2-p0.0.0.0-st1x2-g1", "conv 1×1, 8 → 8, 9×7, stride 1×2, dilation 2, batch 4"),
        ("conv2d-b1-i64-o64-s9x9-k3x3-d1x1-p1.1.1.1-st1x1-g32", "conv 3×3, 64 → 64, 9×9, 32 groups"),
        ("something else", "something else"),
    ],
)
def test_ops_are_written_in_words(key, text):
    assert words.describe_op(key) == text


@pytest.mark.parametrize(
    ("loss", "lost", "signed"),
    [
        (0.0111, "1.11 points lost", "−1.11"),
        (-0.0084, "0.84 points gained", "+0.84"),
        (0.0, "0.00 points lost", "0.00"),
        (-1e-9, "0.00 points lost", "0.00"),
    ],
)
def test_a_loss_below_zero_is_a_gain(loss, lost, signed):
    assert words.lost_points(loss) == lost
    size, verb = lost.removesuffix(lost.split()[-1]).strip(), lost.split()[-1]
    assert words.has_lost(loss) == f"{verb} {size}"
    assert words.signed_points(loss) == signed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (4 / 9, "0.44 epochs"),
        (0.04, "0.04 epochs"),
        (0.0, "0 epochs"),
        (1.0, "1 epoch"),
        (2.8235, "2.8 epochs"),
        (50.0, "50 epochs"),
        (1234.56, "1,234.6 epochs"),
        (None, "– epochs"),
    ],
)
def test_epochs_are_rounded(value, text):
    assert words.epoch_words(value) == text


def test_patterns_are_short_and_sorted_by_the_weights_of_a_block():
    assert [pattern_words(text) for text in ("block:8x1", "nm:2:4", "dense")] == ["8×1", "2:4", "dense"]
    layers = [{"pattern": text} for text in ("block:8x1", "dense", "nm:2:4")]
    assert list(pattern_kinds(layers)) == ["dense", "nm:2:4", "block:8x1"]
