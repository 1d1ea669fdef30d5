"""Kernels for NVIDIA's GPUs: the functions that CPUs get, each thread making one share of the work, as PTX from LLVM.

No CUDA toolkit takes part. What workers share on a CPU, the threads of one block share here; a kernel whose work is not
shared is for one thread.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.tirx import stmt

from runnel.compiler.codegen.errors import CodegenError

THREADS = 128
"""Threads of a kernel whose work is shared."""
_THREAD_INDEX, _DEVICE_KERNEL = 1, 2  # TVM's numbers
_FUNCTION = re.compile(r"^\.visible \.func (k\d+)\(", re.MULTILINE)
_LIBRARY = "tvm_callback_libdevice_path"


def thread() -> Any:
    """The number of a thread in its block."""
    return tirx.Var("threadIdx.x", "int32")


def as_kernel(function: Any, index: Any | None) -> Any:
    """A function of a CPU, which returns 0, as one of a GPU, which returns nothing.

    index: of its thread, where its work is shared.
    """
    statements = list(function.body.seq)
    if not isinstance(statements.pop(), stmt.Return):
        raise CodegenError("a kernel does not end by returning; please report this model.")
    body: Any = stmt.SeqStmt(statements)
    if index is not None:
        axis = tirx.IterVar(ir.Range(0, THREADS), index, _THREAD_INDEX, "threadIdx.x")
        body = stmt.AttrStmt(axis, "thread_extent", tirx.IntImm("int32", THREADS), body)
    return tirx.PrimFunc(list(function.params), body, ir.TupleType([]))


def ptx(functions: Mapping[str, Any], target: Any) -> bytes:
    """PTX of kernels by their names; a kernel's parameters are its pointers."""
    named = {
        symbol: function.with_attr("global_symbol", symbol)
        .with_attr("calling_conv", _DEVICE_KERNEL)
        .with_attr("tirx.noalias", True)
        .with_attr("target", target)
        for symbol, function in functions.items()
    }
    usual = tvm.get_global_func(_LIBRARY, allow_missing=True)
    tvm_ffi.register_global_func(_LIBRARY, lambda arch: "", override=True)  # kernels call nothing of NVIDIA's library
    try:
        built = tvm.get_global_func("target.build.nvptx")(tvm.IRModule(named), target)
    finally:
        if usual is not None:
            tvm_ffi.register_global_func(_LIBRARY, usual, override=True)
    text = _FUNCTION.sub(r".visible .entry \1(", str(built.inspect_source("ptx")))  # LLVM 22 takes them for functions
    entries = set(re.findall(r"^\.visible \.entry (k\d+)\(", text, re.MULTILINE))
    if entries != set(functions) or ".extern" in text:
        raise CodegenError("the PTX lacks a kernel or calls what is not in it; please report this model.")
    return text.encode()
