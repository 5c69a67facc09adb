"""Regions of small functions, compiled and run by themselves."""

import torch
import tvm
from torch import nn
from tvm import relax

from pruneaug.runtime.fallback import add_region, extract_region
from pruneaug.runtime.functional import functional_graph
from pruneaug.runtime.graph import dtype_name, export_program, remove_dead
from pruneaug.runtime.schedule import build

TARGET = tvm.target.Target({"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu(), "num-cores": 2})


class Function(nn.Module):
    """A Python function of tensors and layers as a module."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, *inputs):
        return self.function(*inputs, *self.layers)


def graph_of(model, *inputs):
    graph = functional_graph(export_program(model, inputs))
    remove_dead(graph)
    return graph


def calls(graph):
    return [node for node in graph.graph.nodes if node.op == "call_function"]


def tensor_type(node):
    value = node.meta["val"]
    return relax.TensorType(tuple(value.shape), dtype_name(value.dtype))


def region_module(region):
    """A Relax module whose `main` calls the region."""
    builder = relax.BlockBuilder()
    function = add_region(builder, region, "region")
    parameters = [relax.Var(node.name, tensor_type(node)) for node in region.inputs]
    with builder.function("main", parameters):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(relax.Call(function, parameters)))
        builder.emit_func_output(result)
    return builder.get()


def run(module, *inputs, target=TARGET):
    results = relax.VirtualMachine(build(module, target), tvm.cpu())["main"](*inputs)
    return [torch.from_dlpack(result) for result in results]


def compute(model, *inputs):
    """The outputs of the model whose operators are all one region."""
    graph = graph_of(model, *inputs)
    region = extract_region(graph, calls(graph))
    values = dict(zip((node for node in graph.graph.nodes if node.op == "placeholder"), inputs))
    results = run(region_module(region), *(values[node].contiguous() for node in region.inputs))
    by_node = dict(zip(region.outputs, results))
    output = next(node for node in graph.graph.nodes if node.op == "output")
    return [by_node[node] for node in torch.utils._pytree.tree_leaves(output.args[0])]


def assert_computes_what_pytorch_does(model, *inputs, tolerance=1e-5):
    with torch.no_grad():
        expected = model.eval()(*inputs)
    results = compute(model, *inputs)
    for result, want in zip(results, torch.utils._pytree.tree_leaves(expected), strict=True):
        assert result.dtype == want.dtype
        assert result.shape == want.shape
        if want.is_floating_point():
            finite = torch.isfinite(want)
            assert torch.equal(torch.isfinite(result), finite)
            error = (result - want)[finite].double().norm()
            assert error <= tolerance * want[finite].double().norm() + 1e-7
        else:
            assert torch.equal(result, want)
