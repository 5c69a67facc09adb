"""Launches: how TVM's own host code would start a kernel, and the arguments as the kernel finds them."""

import re
from importlib.util import find_spec

import pytest
import torch
import tvm
from emulate import needs_gxx, target_of
from fake_driver import FakeApi, fake_program
from test_cuda_products import rows_of

from pruneaug.errors import CompileError, InputError, MeasurementError
from pruneaug.kernels.cuda.ahead import compile_ahead
from pruneaug.kernels.cuda.compiler import build, compile_program, cuda_source
from pruneaug.kernels.cuda.driver import Driver
from pruneaug.kernels.cuda.formats import FORMATS
from pruneaug.kernels.cuda.products import linear_product
from pruneaug.kernels.cuda.program import ProgramFolder, generator_digest, parameters_of
from pruneaug.kernels.cuda.shapes import Launch, Scalars, launch_of, parse_shape
from pruneaug.kernels.cuda.spmm import cuda_spmm
from pruneaug.kernels.cuda.target import CudaTarget
from pruneaug.kernels.weights import Epilogue, Weights
from pruneaug.network.ops import LinearOp

SM80 = CudaTarget("sm_80")
KEYS = [
    "float16-rows-c16-none-t64n32k32s3w2x1",
    "bfloat16-columns-c1-gelu-residual-t128n64k64s3w4x2",
    "tf32-rows-c16-none-t16n64k64s4w1x2",
    "bfloat16-rows-c64-none-t128n256k64s4g2x1",
]
SMALL = parse_shape(KEYS[0])
LARGE = parse_shape("float16-rows-c32-none-t128n64k64s3w4x2")
needs_nvrtc = pytest.mark.skipif(not find_spec("cuda"), reason="needs NVRTC: pip install 'pruneaug[gpu]'")
_CALL = re.compile(r'T\.call_ffi_kernel\("main_kernel", (.*), launch_params=\[(.*?)\]')


@pytest.mark.parametrize("key", KEYS)
def test_a_shape_has_its_key(key):
    assert parse_shape(key).key == key


@pytest.mark.parametrize("key", ["float16", "int8-rows-c16-none-t64n32k32s3w2x1", "float16-planes-c1-none-t1", ""])
def test_what_is_no_key_is_named(key):
    with pytest.raises(InputError, match="name must read like 'float16-rows-c32-none"):
        parse_shape(key)


def host_call(shape):
    """The launch in the host code that TVM generates: its arguments, and what each launch parameter is."""
    seen = []

    @tvm.instrument.pass_instrument
    class Instrument:
        def run_after_pass(self, module, info):
            if info.name == "tirx.MakePackedAPI":
                seen.append(str(module["main"]))

    with tvm.transform.PassContext(instruments=[Instrument()]):
        build(cuda_spmm(shape), target_of(shape.variant))
    arguments, tags = _CALL.search(seen[-1]).groups()
    words, tags = arguments.split(", "), [tag.strip(' "') for tag in tags.split(",")]
    return words[: -len(tags)], dict(zip(tags, words[-len(tags) :]))


@pytest.mark.parametrize("key", KEYS)
def test_kernels_are_launched_as_tvm_would_launch_them(key):
    shape = parse_shape(key)
    arguments, launch = host_call(shape)
    names = [re.sub(r"_\d+\.data$", "", word) for word in arguments]
    pointers = [word.endswith(".data") for word in arguments]
    taken = parameters_of(cuda_source(cuda_spmm(shape), target_of(shape.variant)))
    # Of what the host hands over the compiler of the source drops what is never read.
    assert [name for name in names if name in dict(taken)] == [name for name, _ in taken]
    assert [kind == "pointer" for _, kind in taken] == [p for p, name in zip(pointers, names) if name in dict(taken)]
    for tokens, outputs in ((1, 1), (64, 32), (65, 33), (8192, 4096)):
        sizes = {"tokens": tokens, "outputs": outputs, "T": type("T", (), {"int64": int})}
        want = {tag: eval(expression, sizes) for tag, expression in launch.items()}
        found = launch_of(shape, Scalars(tokens, outputs, 0, 0, 0, 0.0, 0.0))
        assert want == {
            "blockIdx.x": found.grid[0], "blockIdx.y": found.grid[1], "threadIdx.x": found.threads,
            "tirx.use_dyn_shared_memory": found.shared_bytes,
        }  # fmt: skip


def product(shape, tokens, inputs, outputs):
    """(the call, its input rows, the float64 result)."""
    generator = torch.Generator().manual_seed(0)
    form = FORMATS[shape.form.name]
    x = torch.randn(tokens, inputs, generator=generator).to(form.torch_dtype)
    matrix = torch.randn(outputs, inputs, generator=generator).to(form.torch_dtype)
    mask = torch.rand(outputs, inputs, generator=generator) < 0.5
    bias = torch.randn(outputs, generator=generator)
    call = linear_product(
        LinearOp(tokens, inputs, outputs), Weights(matrix.float(), mask, bias), shape.chunk, shape.variant, form,
        shape.layout, SM80, Epilogue(),
    )  # fmt: skip
    return call, x, x.double() @ torch.where(mask, matrix, 0).double().T + bias.double()


def tensors(call, x):
    arrays = {name: torch.from_numpy(value.view("int32")) for name, value in call.constants.items()}
    rows = rows_of(x, call.scalars.x_stride, float("nan"))
    y = torch.full((call.y_size,), float("nan"), dtype=x.dtype)
    return {"x": rows, "y": y, **arrays, **call.scalars._asdict()}


@needs_gxx
@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=lambda shape: shape.key)
def test_a_launched_kernel_finds_its_arguments_and_its_shared_memory(shape):
    call, x, want = product(shape, 70, 50, 40)
    api = FakeApi()
    kernel = Driver(api).load(fake_program(shape))
    arguments = tensors(call, x)
    launch = launch_of(shape, call.scalars)
    kernel.bind(launch, arguments)(stream=5)
    result = arguments["y"].view(70, -1)[:, :40].double()
    torch.testing.assert_close(result, want, rtol=1e-2, atol=1e-2)
    assert api.launches == [(*launch, 5)]
    assert (shape is LARGE) == (launch.shared_bytes > 48 << 10)


@needs_gxx
def test_what_the_driver_refuses_is_told_with_its_words():
    api = FakeApi()
    with pytest.raises(MeasurementError, match="must load a kernel, but said CUDA_ERROR_INVALID_VALUE: invalid arg"):
        Driver(api).load(replaced_code(b"\x7fELF"))
    call, x, _ = product(SMALL, 3, 16, 16)
    launch = launch_of(SMALL, call.scalars)
    kernel = Driver(api).load(fake_program(SMALL))
    bound = kernel.bind(Launch(launch.grid, launch.threads + 1, launch.shared_bytes), tensors(call, x))
    with pytest.raises(MeasurementError, match="must launch a kernel, but said CUDA_ERROR_INVALID_VALUE"):
        bound(0)
    assert api.launches == []


def replaced_code(code):
    from dataclasses import replace

    return replace(fake_program(SMALL), cubin=code)


class Loaded:
    """A driver that takes everything."""

    CUfunction_attribute = FakeApi.CUfunction_attribute

    def cuModuleLoadData(self, code):
        return 0, None

    def cuModuleGetFunction(self, module, name):
        return 0, None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("offset"), "takes 'offset', but it is not among the arguments"),
        (lambda a: a.update(x=a["x"].t()), r"'x' must be a contiguous tensor that begins at a multiple of 16 bytes"),
        (lambda a: a.update(x=a["x"].view(-1)[1:]), "'x' must be a contiguous tensor"),
        (lambda a: a.update(y=3), "'y' must be a contiguous tensor .* but got 3"),
        (lambda a: a.update(tokens=torch.ones(1)), "'tokens' must be a number"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    call, x, _ = product(SMALL, 9, 24, 16)
    arguments = tensors(call, x)
    change(arguments)
    kernel = Driver(Loaded()).load(fake_program(SMALL))
    with pytest.raises(InputError, match=message):
        kernel.bind(launch_of(SMALL, call.scalars), arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_driver_the_reason_is_told():
    with pytest.raises(InputError, match="kernels are launched by CUDA's driver, but"):
        Driver()


def test_programs_are_kept_by_shape_and_architecture(tmp_path):
    folder = ProgramFolder(tmp_path / "kernels")
    program = fake_program(SMALL)
    assert folder.missing([SMALL, SMALL], "sm_80") == [SMALL]
    folder.write(program)
    assert folder.read(SMALL, "sm_80") == program
    assert folder.missing([SMALL, LARGE], "sm_80") == [LARGE]
    with pytest.raises(CompileError, match=r"must be compiled for sm_90a, but .* --compile-for sm_90a"):
        folder.read(SMALL, "sm_90a")


def test_a_program_of_another_version_is_refused(tmp_path):
    folder = ProgramFolder(tmp_path)
    folder.write(fake_program(SMALL))
    facts = tmp_path / f"{SMALL.key}.sm_80.json"
    facts.write_text(facts.read_text().replace(generator_digest(), "0" * 12))
    with pytest.raises(CompileError, match="must come from this version of pruneaug"):
        folder.read(SMALL, "sm_80")
    assert folder.missing([SMALL], "sm_80") == [SMALL]


def test_compiling_needs_a_known_architecture_and_tvm(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"must be one of sm_80, .* but got 'sm_70'"):
        compile_ahead([SMALL], "sm_70", ProgramFolder(tmp_path))
    monkeypatch.setattr("pruneaug.kernels.cuda.ahead.find_spec", lambda package: None)
    with pytest.raises(InputError, match="1 kernels must be compiled by TVM; pip install"):
        compile_ahead([SMALL], "sm_80", ProgramFolder(tmp_path))


@needs_nvrtc
@pytest.mark.slow
def test_kernels_are_compiled_in_processes_of_their_own(tmp_path):
    folder, said = ProgramFolder(tmp_path), []
    too_large = parse_shape("float16-rows-c64-none-t128n128k128s3w2x2")
    failed = compile_ahead([SMALL, too_large], "sm_80", folder, workers=1, progress=lambda *done: said.append(done[:2]))
    assert set(failed) == {too_large.key}
    assert "166912 bytes of shared memory on sm_80" in failed[too_large.key]
    program = folder.read(SMALL, "sm_80")
    assert program == compile_program(SMALL, SM80)
    assert said == [(1, 2), (2, 2)]
    assert compile_ahead([SMALL], "sm_80", folder) == {}
