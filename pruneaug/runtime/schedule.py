"""From a Relax module to machine code: operators become loops, loops are fused and scheduled, memory is planned."""

from __future__ import annotations

from functools import partial

import tvm
from tvm import relax
from tvm.relax import transform

from pruneaug.runtime.loops import schedule_loops

_OPAQUE = 8  # TVM's kind of an operator that is fused with no other


def build(module: tvm.IRModule, target: tvm.target.Target) -> tvm.runtime.Executable:
    """Machine code for the Relax functions of a module, to be run by Relax's virtual machine.

    Functions with the attribute `pruneaug.kernel` stay as they are; all others get a schedule for the target's cores.
    Relax functions without a global symbol are inlined. A reshape costs no copy, and memory is shared by tensors that
    are never alive at once.
    """
    module = fuse(module, target)
    has = partial(tvm.target.codegen.target_has_features, target=target)
    lanes = 16 if has("avx512f") else 8 if has("avx2") else 4
    threads = int(target.attrs.get("num-cores", 1))
    for variable, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc) and not _is_kernel(function):
            module.update_func(variable, schedule_loops(function, lanes, threads))
    with target:
        module = _LOWERING(module)
    return relax.build(module, target, relax_pipeline=None)


def fuse(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """The module with fused loops for its operators: its Relax functions call nothing else than loops and views."""
    module = tvm.IRModule(module.functions, attrs=module.attrs)  # the caller's stays
    for variable, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc) and _is_kernel(function):
            module.update_func(variable, function.with_attr("op_pattern", _OPAQUE))
    with target:
        return _FUSION(module)


def _is_kernel(function: tvm.tirx.PrimFunc) -> bool:
    return bool(function.attrs.get("pruneaug.kernel", False))


_FUSION = tvm.transform.Sequential(
    [
        transform.InlinePrivateFunctions(),
        relax.backend.DispatchSortScan(),
        transform.LegalizeOps(),
        # Before operators are fused: a reshape within fused loops would be a copy.
        transform.RewriteDataflowReshape(),
        transform.FoldConstant(),
        transform.AnnotateTIROpPattern(),
        transform.FuseOps(),
        transform.FuseTIR(),
        transform.DeadCodeElimination(),
    ]
)
# What `tvm.compile` does after its own fusion.
_LOWERING = tvm.transform.Sequential(
    [
        transform.ToNonDataflow(),
        transform.RemovePurityChecking(),
        transform.CallTIRRewrite(),
        transform.StaticPlanBlockMemory(),
        transform.LowerAllocTensor(),
        transform.KillAfterLastUse(),
        transform.LowerRuntimeBuiltin(),
        transform.ComputePrimValue(),
        transform.VMShapeLower(),
        transform.AttachGlobalSymbol(),
    ]
)
