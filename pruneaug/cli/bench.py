"""Commands that measure and keep nothing: bench network, bench kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pruneaug.api.bench_checkpoint import bench
from pruneaug.api.bench_gpu_network import Pruning
from pruneaug.api.bench_kernels import FLOAT32, LIBRARIES, bench_kernels
from pruneaug.api.bench_network import Sample, bench_network, build_network, is_checkpoint, layers_of
from pruneaug.api.benching import BASELINES
from pruneaug.cli.gpu import gpu_of, run_network_on_gpu, run_on_gpu
from pruneaug.cli.output import Json, console, print_json
from pruneaug.cli.tables import bench_table, kernels_table
from pruneaug.errors import InputError
from pruneaug.exporter.checkpoint import read_checkpoint
from pruneaug.profiler.cuda.cases import LIBRARIES as GPU_LIBRARIES
from pruneaug.profiler.gpu_networks import GPU_RUNTIMES
from pruneaug.profiler.network import ROUNDS
from pruneaug.profiler.op_peers import PEERS
from pruneaug.profiler.runtimes import RUNTIMES
from pruneaug.report import Progress
from pruneaug.spec.platform import KERNELS_FOLDER

NONE = "none"
"""In place of the runtimes to compare with."""


class _Group(TyperGroup):
    """`bench CHECKPOINT` is short for `bench network CHECKPOINT`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["network", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    help="Measure a network or single layers against other runtimes. `bench CHECKPOINT` is `bench network CHECKPOINT`.",
    no_args_is_help=True,
)

Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per core, or what a checkpoint is for.")]
Batch = Annotated[int | None, typer.Option(help="Samples in one forward pass; default: 1.")]
Shape = Annotated[
    str | None, typer.Option(help="Of one input, as 3x224x224 or 128; default: what a built-in network is for.")
]
Vocabulary = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many different tokens a text has; default: of a built-in network, else the inputs are numbers."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of the random weights and inputs; default: 0.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, or a GPU by its number, as cuda:1.")]
KernelsFolder = Annotated[
    str, typer.Option("--kernels", metavar="FOLDER", help="On a GPU: compiled kernels, read and written.")
]
CompileFor = Annotated[
    str | None, typer.Option(help="Only compile the kernels of a GPU, such as sm_90a; no GPU is needed.")
]
Trust = Annotated[bool, typer.Option("--trust-code", help="Run the code that is named for the network.")]


@app.command()
def network(
    name: Annotated[str, typer.Argument(metavar="NAME|CHECKPOINT", help="A network's name, or a checkpoint folder.")],
    sparsity: Annotated[
        float | None,
        typer.Option(help="Of every layer of a named network; default: 0.9; with 0 only dense is measured."),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Blocks, with commas, or `best`: the fastest is chosen; default: block:8x1. On a GPU one; block:64x64."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="On a GPU: names of the layers to prune, with commas, as *.query,*.dense; default: all."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="On a GPU: float16, bfloat16 (default), tf32, float32, or a checkpoint's; on a CPU float32."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Runtimes of the dense network, with commas; `none`: only our own. Default: all that are installed, "
            f"of {', '.join(RUNTIMES)}, on a GPU of {', '.join(GPU_RUNTIMES)}."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, or a GPU by its number, as cuda:1; default: cpu, or a checkpoint's.")
    ] = None,
    kernels_folder: KernelsFolder = KERNELS_FOLDER,
    compile_for: CompileFor = None,
    batch: Batch = None,
    threads: Threads = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each runtime.")] = ROUNDS,
    seed: Seed = None,
    shape: Shape = None,
    vocabulary: Vocabulary = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure a whole network, pruned and dense, in turns with other runtimes."""
    if device is None:
        device = "cuda" if is_checkpoint(name) and read_checkpoint(name).platform.is_gpu else "cpu"
    index = gpu_of(device, threads, compile_for)
    if index is not None:
        run_network_on_gpu(
            name,
            pruning=_pruning(pattern, sparsity, layers),
            dtype=dtype,
            sample=_sample(shape, vocabulary),
            batch=batch,
            seed=seed or 0,
            kernels=kernels_folder,
            trust_code=trust_code,
            against=None if against is None else _rivals(against, GPU_RUNTIMES),
            rounds=rounds,
            index=index,
            compile_for=compile_for,
            as_json=as_json,
        )
        return
    if layers is not None or dtype not in (None, FLOAT32):
        raise InputError("--layers and --dtype are for networks on a GPU, but got one; add --device cuda")
    asked: dict[str, Any] = {
        "sparsity": sparsity,
        "patterns": None if pattern is None else _split(pattern),
        "batch": batch,
        "seed": seed,
        "sample": _sample(shape, vocabulary),
    }
    options = {key: value for key, value in asked.items() if value is not None}
    if is_checkpoint(name) and options:
        raise InputError(f"a checkpoint has its own {', '.join(options)}, but {name!r} is one; leave the option out")
    with Progress() as progress:
        verb = bench if is_checkpoint(name) else bench_network
        options |= {
            "against": BASELINES if against is None else _rivals(against, RUNTIMES),
            "threads": threads,
            "rounds": rounds,
            "trust_code": trust_code,
        }
        result = verb(name, progress=progress.update, **options)
    print_json(result) if as_json else console().print(bench_table(result))


@app.command()
def kernels(
    op: Annotated[list[str] | None, typer.Option(help="A layer, such as linear-t128-i768-o768; repeatable.")] = None,
    network: Annotated[str | None, typer.Option(help="All layers of the network of this name.")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Blocks, with commas; default: block:8x1, on a GPU block:64x64.")
    ] = None,
    sparsity: Annotated[str, typer.Option(help="Sparsities, with commas.")] = "0.9",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32 (default), bfloat16 or int8; on a GPU, with commas, float16, bfloat16 (default), tf32."
        ),
    ] = None,
    against: Annotated[
        str,
        typer.Option(
            help="Libraries that compute the layers dense, with commas: torch, onnxruntime, openvino, on a GPU torch, "
            "torch-2:4; `none`: only us."
        ),
    ] = ",".join(LIBRARIES),
    device: Device = "cpu",
    kernels_folder: KernelsFolder = KERNELS_FOLDER,
    compile_for: CompileFor = None,
    records: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="On a GPU: every time is appended to it, and what it has is not measured again."
        ),
    ] = "cuda-times.jsonl",
    batch: Batch = None,
    threads: Threads = None,
    shape: Shape = None,
    vocabulary: Vocabulary = None,
    trust_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Measure layers by our kernels and by dense libraries, beside the peak of the CPU, or on a GPU."""
    index = gpu_of(device, threads, compile_for)
    ops: list[Any] = list(op or ())
    if not ops and network is None:
        raise InputError(
            "`bench kernels` needs layers, but got none; give --op linear-t128-i768-o768 or --network NAME"
        )
    if network is not None:
        sample = _sample(shape, vocabulary)
        model, inputs = build_network(network, sample=sample, batch=batch or 1, trust_code=trust_code)
        ops += [layer.op for layer in layers_of(network, model, inputs).layers]
    if index is not None:
        run_on_gpu(
            ops,
            patterns=_split(pattern or "block:64x64"),
            sparsities=[_number(text) for text in _split(sparsity)],
            dtypes=_split(dtype or "bfloat16"),
            against=_rivals(against, GPU_LIBRARIES),
            kernels=kernels_folder,
            records=records,
            index=index,
            compile_for=compile_for,
            as_json=as_json,
        )
        return
    with Progress() as progress:
        result = bench_kernels(
            ops,
            patterns=_split(pattern or "block:8x1"),
            sparsities=[_number(text) for text in _split(sparsity)],
            dtype=dtype or FLOAT32,
            threads=threads,
            against=_rivals(against, PEERS.get(dtype or FLOAT32, ())),
            progress=progress.update,
        )
    print_json(result) if as_json else console().print(kernels_table(result))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _rivals(text: str, known: Iterable[str]) -> list[str]:
    """Raises InputError for an empty list: who wants to compare with nothing says `none`."""
    names = _split(text)
    if not names:
        raise InputError(
            f"--against must name some of {', '.join(known)}, or `none`, but got {text!r}; or leave it out"
        )
    return [] if names == [NONE] else names


def _pruning(pattern: str | None, sparsity: float | None, layers: str | None) -> Pruning | None:
    """How a named network is pruned on a GPU; None if nothing is said of it."""
    given: dict[str, Any] = {"pattern": pattern, "sparsity": sparsity, "layers": layers and _split(layers)}
    given = {key: value for key, value in given.items() if value is not None}
    return Pruning(**given) if given else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--sparsity must be numbers with commas, but got {text!r}; for example 0.8,0.9") from None


def _sample(shape: str | None, vocabulary: int | None) -> Sample | None:
    """Raises InputError for a shape that is none."""
    if shape is None and vocabulary is None:
        return None
    if shape is None:
        return Sample(vocabulary=vocabulary)
    sizes = shape.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise InputError(f"--shape must read like 3x224x224 for an image or 128 for a text, but got {shape!r}")
    return Sample(tuple(map(int, sizes)), vocabulary)
