import pytest

from pruneaug.errors import LatencyTableError, NetworkError
from pruneaug.latency.network import predict
from pruneaug.network.layers import Layer, Network
from pruneaug.network.ops import LinearOp
from pruneaug.profiler.plan import Cell
from pruneaug.sparsity.patterns import DENSE, Block, LayerChoice
from pruneaug.testing.platform import ANALYTIC_PLATFORM, analytic_latency_us, analytic_table

SMALL, LARGE = LinearOp(4, 64, 64), LinearOp(4, 256, 256)
NETWORK = Network((Layer("a", SMALL), Layer("b", LARGE, calls=3), Layer("c", SMALL)))
TABLE = analytic_table([SMALL, LARGE], ["block:8x1"], [0.5, 0.9])
SPARSE = LayerChoice(Block(8, 1), 0.9)


def time_us(op, pattern="dense", sparsity=0.0):
    return analytic_latency_us(Cell(op, pattern, sparsity), ANALYTIC_PLATFORM)


def test_a_networks_time_is_the_sum_over_calls_of_its_layers_and_the_rest():
    latency = predict(NETWORK, {"b": SPARSE}, TABLE, rest_us=7.0)
    sparse_us = time_us(LARGE, "block:8x1", 0.9)
    assert latency.total_us == pytest.approx(2 * time_us(SMALL) + 3 * sparse_us + 7.0)
    assert latency.layers[1].latency_us_dense == pytest.approx(3 * time_us(LARGE))
    assert [(layer.name, layer.choice) for layer in latency.layers] == [("a", DENSE), ("b", SPARSE), ("c", DENSE)]
    assert latency.layers[1].latency_us == pytest.approx(3 * sparse_us)


def test_an_unknown_layer_is_refused_with_the_known_ones():
    with pytest.raises(NetworkError, match="but got d, e; the layers are a, b, c"):
        predict(NETWORK, {"e": DENSE, "d": SPARSE}, TABLE, 0.0)


def test_a_choice_that_was_not_measured_is_refused():
    with pytest.raises(LatencyTableError, match="block:4x1"):
        predict(NETWORK, {"a": LayerChoice(Block(4, 1), 0.5)}, TABLE, 0.0)
