"""Attention recognised in graphs, each node computed by PyTorch here, against the modules they come from."""

import pytest
import torch
import torch.nn.functional as F
from regions import Function, calls, graph_of

from pruneaug.runtime.attention import attention, fuse_attention
from pruneaug.runtime.simplify import fold_constants, simplify

B, T, H, D = 2, 5, 2, 3
Q, K, V = (torch.randn(B, T, H * D, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
LONG = torch.randn(B, 7, H * D, generator=torch.Generator().manual_seed(3))


def heads(x):
    return x.view(*x.shape[:2], H, -1).transpose(1, 2)


def joined(y):
    return y.transpose(1, 2).reshape(y.shape[0], y.shape[2], -1)


def attend(q, k, v, mask=None, **options):
    return F.scaled_dot_product_attention(heads(q), heads(k), heads(v), mask, **options)


def by_pytorch(q, k, v, mask, *, heads, scale, causal, shape):
    assert heads == H
    return joined(attend(q, k, v, mask, scale=scale, is_causal=causal)).view(shape)


def fused(function, *inputs):
    """The number of attentions in a function's graph, and their nodes; the graph must compute the same."""
    graph = graph_of(Function(function), *inputs)
    want = function(*inputs)
    simplify(graph)
    count = fuse_attention(graph)
    fold_constants(graph)
    nodes = [node for node in calls(graph) if node.target is attention]
    assert len(nodes) == count
    for node in nodes:
        assert node.meta["val"].dtype == torch.float32
        node.target = by_pytorch
        node.kwargs = {**node.kwargs, "shape": tuple(node.meta["val"].shape)}
    graph.recompile()
    got = graph(*inputs)
    torch.testing.assert_close(got, want)
    return count, nodes, graph


def operator(**options):
    return lambda *inputs: joined(attend(*inputs, **options))


def written_out(q, k, v, mask=None):
    scores = heads(q) @ heads(k).transpose(-1, -2) / 2.0
    scores = scores if mask is None else scores + mask
    return joined(scores.softmax(-1) @ heads(v))


def permuted(q, k, v):
    q, k, v = (x.unflatten(-1, (H, D)).permute(0, 2, 1, 3) for x in (q, k, v))
    y = torch.matmul(torch.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) * 0.5, dim=3), v)
    return y.permute(0, 2, 1, 3).flatten(2)


def joined_to_rows(q, k, v):
    return attend(q, k, v).transpose(1, 2).reshape(B * T, H * D) * 2


FUSED = {
    "operator": (operator(), (Q, K, V)),
    "operator with a scale": (operator(scale=0.7), (Q, K, V)),
    "operator, causal": (operator(is_causal=True), (Q, K, V)),
    "operator, more keys": (operator(is_causal=True), (Q, LONG, LONG)),
    "written out": (written_out, (Q, K, V)),
    "written out, fewer queries": (written_out, (Q[:, :1], K, V)),
    "permuted": (permuted, (Q, K, V)),
    "rows": (joined_to_rows, (Q, K, V)),
    "values of another size": (operator(), (Q, K, torch.cat([V, V], -1))),
}


@pytest.mark.parametrize("name", FUSED)
def test_attention_is_one_node_that_reads_and_writes_joined_heads(name):
    function, inputs = FUSED[name]
    count, (node,), graph = fused(function, *inputs)
    assert count == 1
    assert [source.op for source in node.args[:3]] == ["placeholder"] * 3
    assert not any(
        "attention" in str(other.target) or "matmul" in str(other.target) for other in calls(graph) if other is not node
    )


@pytest.mark.parametrize("function", [operator(), written_out])
@pytest.mark.parametrize(
    "shape", [(B, H, T, T), (1, H, T, T), (B, 1, 1, T), (T, T), (1, 1, T, 1), (B, 1, T, 1), (1, T)]
)
def test_masks_have_a_value_for_each_key(function, shape):
    mask = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    for count, (node,), _ in (fused(function, Q, K, V, mask), fused(lambda q, k, v: function(q, k, v, mask), Q, K, V)):
        assert count == 1
        assert node.args[3].meta["val"].shape == (*shape[:-1], T)


@pytest.mark.parametrize("shape", [(B, 1, 1, T), (B, 1, T, T), (T, T), (1, 1, T, 1)])
def test_masks_of_bools_become_summands(shape):
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(5)) < 0.7
    keep[..., 0] = True
    given = fused(operator(), Q, K, V, keep)[1][0].args[3]
    assert given.op == "call_function"
    constant = fused(lambda q, k, v: operator()(q, k, v, keep), Q, K, V)[1][0].args[3]
    assert constant.op == "get_attr"
    assert given.meta["val"].dtype == constant.meta["val"].dtype == torch.float32


def test_layers_share_the_summands_of_one_mask_of_bools():
    keep = torch.arange(T) < torch.tensor([[3], [5]])

    def two(q, k, v, keep):
        return operator()(operator()(q, k, v, keep[:, None, None]), k, v, keep[:, None, None].expand(B, 1, T, T))

    def shared(q, k, v, keep):
        mask = keep[:, None, None].expand(B, 1, T, T)
        return operator()(operator()(q, k, v, mask), k, v, mask)

    assert len({node.args[3] for node in fused(two, Q, K, V, keep)[1]}) == 2
    assert len({node.args[3] for node in fused(shared, Q, K, V, keep)[1]}) == 1


def unbound(x):
    q, k, v = x.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return joined(F.scaled_dot_product_attention(q, k, v))


def scaled_before(q, k, v):
    return joined(F.scaled_dot_product_attention(heads(q) * 2, heads(k), heads(v)))


JOINED = {
    "from one tensor": (unbound, (torch.cat([Q, K, V], -1),)),
    "scaled before": (scaled_before, (Q, K, V)),
    "not joined": (lambda q, k, v: attend(q, k, v) + 1, (Q, K, V)),
    "read as heads, too": (lambda q, k, v: (y := attend(q, k, v), joined(y)), (Q, K, V)),
    "heads given": (F.scaled_dot_product_attention, tuple(heads(x).contiguous() for x in (Q, K, V))),
}  # fmt: skip


@pytest.mark.parametrize("name", JOINED)
def test_heads_that_lie_otherwise_are_joined_and_split_for_it(name):
    function, inputs = JOINED[name]
    assert fused(function, *inputs)[0] == 1


def with_weights(q, k, v):
    weights = (heads(q) @ heads(k).transpose(-1, -2)).softmax(-1)
    return joined(weights @ heads(v)), weights


def other_softmax(q, k, v):
    return joined((heads(q) @ heads(k).transpose(-1, -2)).softmax(2) @ heads(v))


def scaled_by_a_tensor(q, k, v):
    return joined((heads(q) @ heads(k).transpose(-1, -2) * q[0, 0, 0]).softmax(-1) @ heads(v))


OTHERS = {
    "weights returned": (with_weights, (Q, K, V)),
    "softmax over queries": (other_softmax, (Q, K, V)),
    "scale from an input": (scaled_by_a_tensor, (Q, K, V)),
    "three dimensions": (F.scaled_dot_product_attention, (Q, K, V)),
    "fewer heads of keys": (
        lambda q, k, v: F.scaled_dot_product_attention(heads(q), k[:, None, :, :D], v[:, None, :, :D], enable_gqa=True),
        (Q, K, V),
    ),
    "one batch of keys": (operator(), (Q, K[:1], V[:1])),
    "float64": (operator(), (Q.double(), K.double(), V.double())),
    "more queries by the mask": (written_out, (Q[:, :1], K, V, torch.zeros(T, T))),
    "more images by the mask": (written_out, (Q[:1], K[:1], V[:1], torch.zeros(B, 1, T, T))),
    "no softmax": (lambda q, k, v: joined((heads(q) @ heads(k).transpose(-1, -2)).relu() @ heads(v)), (Q, K, V)),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_attention_that_the_kernel_computes_stays(name):
    function, inputs = OTHERS[name]
    assert fused(function, *inputs)[0] == 0


def test_attention_that_drops_weights_stays():
    graph = graph_of(Function(operator(dropout_p=0.5)), Q, K, V)
    assert fuse_attention(graph) == 0
