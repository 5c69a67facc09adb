"""Steps as a Relax module: one function that calls the kernels, their constants with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from pruneaug.runtime.fallback import add_region
from pruneaug.runtime.graph import dtype_name
from pruneaug.runtime.steps import Buffer, KernelStep, Literal, RegionStep, Source, Steps

METADATA = "metadata"


def relax_module(functions: Mapping[str, Steps], metadata: Mapping[str, Any]) -> tvm.IRModule:
    """A module with one function for each of `functions`: tensors in, a tuple of tensors out.

    Its function `METADATA` returns `metadata` as JSON in a uint8 tensor, so that a saved module describes itself.
    Constants that several steps read are one constant of the module.
    """
    builder = relax.BlockBuilder()
    emitter = _Emitter(builder)
    for name, steps in functions.items():
        emitter.function(name, steps)
    text = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    with builder.function(METADATA, []):
        builder.emit_func_output(relax.const(text))
    return builder.get()


class _Emitter:
    def __init__(self, builder: relax.BlockBuilder) -> None:
        self._builder = builder
        self._constants: dict[tuple[int, tuple[int, ...]], tuple[Any, relax.Constant]] = {}
        self._kernels: dict[Any, relax.GlobalVar] = {}
        self._vars: dict[Buffer, tuple[relax.Expr, tuple[int, ...]]] = {}
        self._views: dict[tuple[Buffer, tuple[int, ...]], relax.Expr] = {}
        self._regions = 0

    def function(self, name: str, steps: Steps) -> None:
        """Add the function of these steps to the module."""
        # Functions of regions cannot be added while another one is open.
        regions = {
            step: add_region(self._builder, step.region, f"region_{index}")
            for index, step in enumerate((s for s in steps.steps if isinstance(s, RegionStep)), self._regions)
        }
        self._regions += len(regions)
        parameters = [
            relax.Var(f"input_{index}", relax.TensorType(shape, dtype_name(buffer.dtype)))
            for index, (buffer, shape) in enumerate(steps.inputs)
        ]
        with self._builder.function(name, parameters):
            with self._builder.dataflow():
                for parameter, (buffer, shape) in zip(parameters, steps.inputs):
                    self._vars[buffer] = (parameter, shape)
                for step in steps.steps:
                    if isinstance(step, KernelStep):
                        self._kernel(step)
                    else:
                        self._region(step, regions[step])
                results = [self._builder.emit(self._shaped(source, shape)) for source, shape in steps.outputs]
                output = self._builder.emit_output(relax.Tuple(results))
            self._builder.emit_func_output(output)

    def _kernel(self, step: KernelStep) -> None:
        function = step.call.function
        if function not in self._kernels:
            name = step.call.name.replace(" ", "_")
            private = function.without_attr("global_symbol").with_attr("pruneaug.kernel", True)
            self._kernels[function] = self._builder.add_func(private, name)
        arguments = [self._shaped(source, (source.size,)) for source in step.inputs]
        constants = [self._constant(array, array.shape) for array in step.call.constants]
        call = relax.call_tir(
            self._kernels[function],
            [*arguments, *constants],
            out_ty=relax.TensorType((step.output.size,), dtype_name(step.output.dtype)),
        )
        self._vars[step.output] = (self._builder.emit(call), (step.output.size,))

    def _region(self, step: RegionStep, function: relax.GlobalVar) -> None:
        arguments = [self._shaped(source, shape) for source, shape in step.inputs]
        result = self._builder.emit(relax.Call(function, arguments))
        for index, (buffer, node) in enumerate(zip(step.outputs, step.region.outputs)):
            shape = tuple(int(size) for size in node.meta["val"].shape)
            self._vars[buffer] = (self._builder.emit(relax.TupleGetItem(result, index)), shape)

    def _shaped(self, source: Source, shape: tuple[int, ...]) -> relax.Expr:
        """What holds a source, as a tensor of this shape."""
        if isinstance(source, Literal):
            return self._constant(source.values, shape)
        value, current = self._vars[source]
        if current == shape:
            return value
        if (source, shape) not in self._views:
            self._views[source, shape] = self._builder.emit(relax.op.reshape(value, shape))
        return self._views[source, shape]

    def _constant(self, array: Any, shape: tuple[int, ...]) -> relax.Constant:
        key = (id(array), shape)
        if key not in self._constants:
            # The array is kept: its identity must not pass to another one.
            values = np.ascontiguousarray(array).reshape(shape)
            # Without its dtype TVM would narrow one of 64 bits.
            self._constants[key] = (array, relax.const(values, str(values.dtype)))
        return self._constants[key][1]
