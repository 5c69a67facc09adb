import random

import pytest

from pruneaug.report.holding import correlation, holding_words, holdings, layer_facts


def records(sparsities, losses, name="a"):
    return [
        {
            "state": "complete",
            "accuracy_loss": loss,
            "assignment": {name: {"pattern": "block:8x1", "sparsity": sparsity}} if sparsity else {},
        }
        for sparsity, loss in zip(sparsities, losses, strict=True)
    ]


def spearman(first, second):
    """Pearson's correlation of the ranks, ties at their mean rank, from the definition."""

    def ranks(values):
        return [
            sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values
        ]

    a, b = ranks(first), ranks(second)
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    cross = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return cross / (sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)) ** 0.5


def test_the_correlation_is_spearmans_and_a_layer_that_is_not_named_is_dense():
    rng = random.Random(0)
    sparsities = [rng.choice((0.0, 0.5, 0.7, 0.9)) for _ in range(40)]
    losses = [0.01 * sparsity + rng.uniform(0, 0.005) for sparsity in sparsities]
    assert correlation("a", records(sparsities, losses)) == pytest.approx(spearman(sparsities, losses))


def test_what_is_not_clear_has_no_correlation():
    rng = random.Random(0)
    noise = [rng.random() for _ in range(30)]
    assert correlation("a", records([rng.choice((0.5, 0.9)) for _ in range(30)], noise)) is None
    assert correlation("a", records([0.5] * 30, noise)) is None
    assert correlation("a", records([0.1 * i for i in range(9)], [0.01 * i for i in range(9)])) is None
    assert correlation("a", []) is None


FACTS = {
    "layers": [
        {
            "name": "a",
            "latency_us_dense": 60.0,
            "choices": [
                {"pattern": "dense", "sparsity": 0.0, "latency_us": 60.0, "lost": 0.0},
                {"pattern": "block:8x1", "sparsity": 0.5, "latency_us": 40.0, "lost": 0.1},
                {"pattern": "block:8x1", "sparsity": 0.9, "latency_us": 10.0, "lost": 0.5},
            ],
        },
        {"name": "b", "latency_us_dense": 30.0, "choices": [{"pattern": "dense", "sparsity": 0.0, "latency_us": 30.0}]},
    ]
}


def rows():
    a = {"name": "a", "pattern": "block:8x1", "sparsity": 0.7, "latency_us": 25.0}
    return [a, {"name": "b", "pattern": "dense", "sparsity": 0.0, "latency_us": 30.0}]


def test_a_layer_knows_its_fastest_choice_and_what_that_would_lose():
    a, b = layer_facts(FACTS, rows(), [])
    assert a["latency_us_least"] == 10.0
    assert a["lost_more"] == pytest.approx(0.5 - 0.3)  # between 0.5 and 0.9, halfway
    assert (b["latency_us_least"], b["lost_more"]) == (30.0, None)
    assert layer_facts({}, rows(), [])[0]["lost_more"] is None


def test_shares_are_of_the_whole_network_and_the_slowest_comes_first():
    data = {"layers": layer_facts(FACTS, rows(), []), "rest_us": 45.0}
    b, a = holdings(data)
    assert (b.name, b.share, b.saves, b.lost_more) == ("b", 0.3, 0.0, None)
    assert (a.name, a.share, a.saves, a.lost_more) == ("a", 0.25, pytest.approx(0.15), 1.0)
    assert holding_words(data) == [
        "Half of what the layers take is in 1 of 2: b (30 %).",
        "What is not a prunable layer takes 45 %.",
        "Were every layer at the fastest choice of its space, 15 % of the latency would go, whatever that lost.",
    ]
    assert holding_words({}) == []
