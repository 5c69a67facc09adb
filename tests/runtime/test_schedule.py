"""Schedules of TVM's own loops, the plan of the memory, and the times of the operators."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tvm
from regions import TARGET, Function, assert_computes_what_pytorch_does, calls, graph_of, region_module, run
from torch import nn
from tvm import relax
from tvm.ir import assert_structural_equal
from tvm.script import tirx as T

from pruneaug.runtime.fallback import add_region, extract_region
from pruneaug.runtime.instrument import operator_times
from pruneaug.runtime.loops import schedule_loops
from pruneaug.runtime.schedule import build, fuse


def floats(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def loops_of(module):
    """The functions of a fused module that are loops, by name."""
    fused = fuse(module, TARGET)
    return {
        variable.name_hint: function
        for variable, function in fused.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }


def module_of(function, *inputs):
    graph = graph_of(Function(function), *inputs)
    return region_module(extract_region(graph, calls(graph)))


SCHEDULED = {
    "sum of tensors": (lambda a: (a + a.flip(0) * 2).relu(), (32, 33, 48)),
    "prime sizes": (lambda a: a.transpose(1, 2) * 2 + 1, (7, 53, 101)),
    "long vector": (lambda a: a * 2 + 1, (40000,)),
    "matrix product": (lambda a: a @ a.transpose(1, 2), (3, 66, 96)),
    "product of odd sizes": (lambda a: a @ a.transpose(1, 2), (3, 47, 59)),
    "row of a product": (lambda a: a[:1] @ a.t(), (160, 128)),
    "sum along rows": (lambda a: a.sum(-1), (100, 256)),
    "sum of odd rows": (lambda a: a.sum(-1), (100, 257)),
    "sum along columns": (lambda a: a.mean(0), (100, 320)),
    "sum of images": (lambda a: a.mean((2, 3)), (2, 24, 28, 28)),
    "sum of all": (lambda a: a.sum(), (100, 256)),
    "softmax": (lambda a: a.softmax(-1), (4, 60, 80)),
    "softmax of columns": (lambda a: a.softmax(1), (4, 60, 80)),
    "group norm": (lambda a: F.group_norm(a, 4), (2, 16, 28, 28)),
    "convolution": (lambda a: F.conv2d(a, torch.ones(24, 16, 3, 3) / 9, padding=1), (2, 16, 28, 28)),
    "grouped convolution": (lambda a: F.conv2d(a, torch.ones(32, 4, 3, 3) / 9, groups=4, stride=2), (2, 16, 28, 28)),
    "depthwise convolution": (lambda a: F.conv2d(a, torch.ones(16, 1, 5, 5) / 25, groups=16), (2, 16, 30, 30)),
    "transposed convolution": (lambda a: F.conv_transpose2d(a, torch.ones(16, 8, 2, 2), stride=2), (2, 16, 17, 17)),
    "max pooling": (lambda a: F.max_pool2d(a, 3, 2, 1), (2, 16, 57, 57)),
    "concatenation": (lambda a: torch.cat([a, a * 2, a[:, :3]], 1), (2, 16, 28, 30)),
    "resampling": (lambda a: F.interpolate(a, scale_factor=2), (2, 16, 14, 14)),
    "argmax": (lambda a: a.argmax(-1), (100, 256)),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_scheduled_loops_compute_the_same_on_all_threads(name):
    function, shape = SCHEDULED[name]
    x = floats(*shape)
    assert_computes_what_pytorch_does(Function(function), x)
    loops = loops_of(module_of(function, x))
    if name != "sum of all":
        assert any("T.parallel" in schedule_loops(loop, 16, 2).script() for loop in loops.values())


def test_a_product_accumulates_vectors_in_registers():
    (product,) = (
        f for n, f in loops_of(module_of(torch.matmul, floats(64, 64), floats(64, 64))).items() if "matmul" in n
    )
    script = schedule_loops(product, 16, 2).script()
    assert 'scope="local"' in script
    assert "T.unroll(T.int64(4))" in script
    assert "T.vectorized(T.int64(16))" in script


def test_small_functions_run_on_one_thread():
    (loop,) = loops_of(module_of(lambda a: a.relu(), floats(10, 16))).values()
    assert "T.parallel" not in schedule_loops(loop, 16, 2).script()


def test_loops_that_have_no_schedule_stay_as_they_are():
    (loop,) = loops_of(module_of(lambda a: a.cumsum(0), floats(10, 16))).values()
    assert schedule_loops(loop, 16, 2).same_as(loop)


def doubled(n):
    @T.prim_func(s_tir=True)
    def kernel(x: T.handle, y: T.handle):
        T.func_attr({"tirx.noalias": True, "pruneaug.kernel": True})
        a = T.int32()
        b = T.int32()
        X = T.match_buffer(x, (a,), "float32")
        Y = T.match_buffer(y, (b,), "float32")
        for i in T.serial(n):
            with T.sblock("task"):
                T.reads()
                T.writes()
                Y[i] = X[i] * T.float32(2)

    return kernel.without_attr("global_symbol")


def chain_of_kernels(length):
    """`main`: a kernel `length` times one after the other, with reshapes between."""
    builder = relax.BlockBuilder()
    kernel = builder.add_func(doubled(24), "doubled")
    x = relax.Var("x", relax.TensorType((4, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for _ in range(length):
                flat = builder.emit(relax.op.reshape(y, (24,)))
                y = builder.emit(relax.call_tir(kernel, [flat], out_ty=relax.TensorType((24,), "float32")))
                y = builder.emit(relax.op.reshape(y, (4, 6)))
            result = builder.emit_output(relax.Tuple([y]))
        builder.emit_func_output(result)
    return builder.get()


def test_tensors_share_memory_and_a_reshape_is_a_view():
    module = chain_of_kernels(6)
    code = build(module, TARGET).as_text().partition("ret ")[0]
    assert code.count("call  doubled") == 6
    assert code.count("alloc_storage") == 2 + 1  # two in turn, and the result's own
    assert list(loops_of(module)) == ["doubled"]  # none for reshapes
    x = floats(4, 6)
    torch.testing.assert_close(run(module, x)[0], 64 * x)


def test_kernels_are_not_touched():
    module = chain_of_kernels(1)
    assert_structural_equal(loops_of(module)["doubled"].body, module["doubled"].body)


def test_building_leaves_the_module_as_it_is():
    module = chain_of_kernels(2)
    before = module.script(show_meta=True)
    build(module, TARGET)
    assert module.script(show_meta=True) == before


@pytest.mark.parametrize(("triple", "mcpu"), [("x86_64-linux-gnu", "haswell"), ("aarch64-linux-gnu", "cortex-a72")])
def test_loops_compile_for_other_machines(triple, mcpu):
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mcpu": mcpu, "num-cores": 2})
    module = module_of(lambda a, b: (a @ b).softmax(-1), floats(64, 64), floats(64, 64))
    assert "region_matmul" in build(module, target).as_text()


def test_every_operator_of_a_network_is_timed_in_the_order_of_the_calls(tmp_path):
    layer = nn.Linear(16, 8)
    graph = graph_of(nn.Sequential(layer, nn.Softmax(-1)), floats(4, 16))
    executable = build(region_module(extract_region(graph, calls(graph))), TARGET)
    path = tmp_path / "network.so"
    executable.export_library(str(path))
    x = floats(4, 16)
    for module in (executable, tvm.runtime.load_module(str(path))):
        machine = relax.VirtualMachine(module, tvm.cpu())
        times = operator_times(machine, [x], repeats=3)
        assert [name for name, _ in times] == ["region_fused_matmul_add", "region_softmax"]
        assert all(0 < us < 1e6 for _, us in times)
        result = machine["main"](x)[0]  # nothing is timed any more
        np.testing.assert_allclose(result.numpy(), layer(x).softmax(-1).detach(), rtol=1e-5)


def test_equal_regions_share_their_loops():
    graph = graph_of(Function(lambda x: x.roll(1, 0).relu().roll(1, 0).relu()), floats(4, 8))
    nodes = calls(graph)
    builder = relax.BlockBuilder()
    for index, part in enumerate((nodes[:2], nodes[2:])):
        add_region(builder, extract_region(graph, part), f"part_{index}")
    names = [v.name_hint for v, f in builder.get().functions_items() if isinstance(f, tvm.tirx.PrimFunc)]
    assert names
    assert all(name.startswith("part_0_") for name in names)
