"""The module of all kernels of a program for one target."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from runnel.compiler.codegen import (
    attend,
    blocks,
    channels,
    choices,
    columns,
    cuda,
    filters,
    fourier,
    linear,
    neurons,
    packed,
    product,
    reduce,
    sequence,
    spatial,
)
from runnel.compiler.codegen.alike import Form, form_of, with_constants, without_constants
from runnel.compiler.codegen.context import Arg, Context
from runnel.compiler.codegen.dots import prefers_unsigned
from runnel.compiler.codegen.elementwise import emit_elementwise
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.image import Image, link
from runnel.compiler.codegen.ranges import with_ranges
from runnel.compiler.codegen.target import Target
from runnel.compiler.codegen.tuning import Tuning
from runnel.compiler.lowering.frame import FrameNode, Group


@dataclass(frozen=True, eq=False)
class Kernel:
    """How to call a group: ``variants`` names the entry for each number of rows, ``apart`` the one for rows that are
    gathered; all take the same ``args``."""

    args: tuple[Arg, ...]
    variants: dict[int, str]
    apart: str | None = None


def _emit_matmul(context: Context, node: FrameNode) -> None:
    constant = isinstance(node.inputs[1], np.ndarray) and node.inputs[1].ndim == 2
    (linear.emit_matmul if constant else product.emit_matmul)(context, node)


def _emit_conv(context: Context, node: FrameNode) -> None:
    if not columns.emit_conv(context, node):
        (channels if "channels_last" in node.attrs else spatial).emit_conv(context, node)


def _emit_pool(context: Context, node: FrameNode) -> None:
    (filters if "channels_last" in node.attrs else spatial).emit_pool(context, node)


ANCHORS: dict[str, Callable[[Context, FrameNode], None]] = {
    "conv": _emit_conv,
    "conv_transpose": spatial.emit_conv_transpose,
    "max_pool": _emit_pool,
    "avg_pool": _emit_pool,
    "matmul": _emit_matmul,
    "matmul_blocks": blocks.emit_matmul,
    "round_blocks": packed.emit_rounding,
    "comb_product": fourier.emit_comb,
    "picked_product": fourier.emit_picked,
    "choose": choices.emit_choice,
    "among": choices.emit_among,
    "shares": choices.emit_shares,
    "softmax": reduce.emit_softmax,
    "log_softmax": reduce.emit_softmax,
    "attend": attend.emit_attend,
    "active": neurons.emit_active,
    "active_part": neurons.emit_active_part,
    "neuron_values": neurons.emit_values,
    "neuron_sum": neurons.emit_sum,
    **dict.fromkeys(sequence.GATES, sequence.emit_sequence),
    **{f"reduce_{name}": reduce.emit_reduction for name in ("sum", "mean", "max", "min", "prod", "l2")},
}


class _AtFirstLoop(Exception):
    """A kernel of which only the constants are wanted."""


def gathered(group: Group) -> Group:
    """The group with each input's rows side by side."""
    inputs = {value: replace(access, row_pitch=access.taps * access.pitch) for value, access in group.inputs.items()}
    return replace(group, inputs=inputs)


class KernelModule:
    """Collects kernels and compiles them together. Kernels with the same code are compiled once.

    For a GPU the image is PTX, and an entry is the kernel's number.
    """

    def __init__(self, target: Target, tuning: Tuning | None = None) -> None:
        self.target = target
        self.tuning = tuning or Tuning()
        self._tvm_target = target.tvm()
        self._functions: dict[str, Any] = {}
        self._by_hash: dict[int, list[str]] = {}
        self._alike: dict[Form, Kernel] = {}
        self.threads: dict[str, int] = {}  # of a GPU, for each kernel

    @property
    def unsigned(self) -> bool:
        """Whether sums of codes are shorter for unsigned ones."""
        return prefers_unsigned(self.target)

    @property
    def multiplies_halves(self) -> bool:
        """Whether vectors of float16 are multiplied and added."""
        return self.target.arch == "aarch64" and self.target.has("fullfp16")

    @property
    def multiplies_fours(self) -> bool:
        """Whether one instruction makes dot products of four codes."""
        return packed.dots_of_four(self.target) is not None

    def add(self, group: Group) -> Kernel:
        """The kernel of a group. Raises ``Unsupported`` when an op, as used there, has no kernel."""
        group = replace(group, shared=True) if self.target.gpu else group
        key = form_of(group)
        known = None if key is None else self._alike.get(key)
        if known is not None:
            shared = any(arg.role == "share" for arg in known.args)
            packed = self.emit(replace(group, shared=shared), 1, packs_only=True).arguments
            if (args := with_constants(packed, known.args)) is not None:
                return replace(known, args=args)
        kernel = self._add(group)
        if key is not None and known is None:
            self._alike[key] = replace(kernel, args=without_constants(kernel.args))
        return kernel

    def _add(self, group: Group) -> Kernel:
        forms = [self.emit(group, rows) for rows in dict.fromkeys((1, *group.rows))]
        apart = self.emit(gathered(group), group.apart) if group.apart else None
        made = [*forms, apart] if apart else forms
        if group.shared and not all(context.spreads for context in made):
            return self._add(replace(group, shared=False))
        finished = [context.finish() for context in made]
        symbols = [self.symbol(function) for function, _ in finished]
        self.threads |= dict.fromkeys(symbols, cuda.THREADS if group.shared and self.target.gpu else 1)
        variants = {context.rows: symbol for context, symbol in zip(forms, symbols)}
        return Kernel(finished[0][1], variants, symbols[-1] if apart else None)

    def constants(self, group: Group, symbol: str) -> tuple[list[np.ndarray], bool]:
        """The constants of a group's kernel, and whether it is otherwise the one of that name."""
        function, args = self.emit(group, 1).finish()
        same = bool(tvm_ffi.structural_equal(self._functions[symbol], function))
        return [arg.data for arg in args if arg.data is not None], same

    def packed(self, group: Group) -> list[np.ndarray]:
        """The constants that an anchor packs before it begins its first loop."""
        context = Context(group, self.target, 1, self.tuning)
        anchor = next(node for node in group.nodes if node.op in ANCHORS)

        def stop(*_: Any) -> Any:
            raise _AtFirstLoop

        context.b.loop = context.spread = stop  # type: ignore[method-assign, assignment]
        with suppress(_AtFirstLoop):
            ANCHORS[anchor.op](context, anchor)
        return [arg.data for arg in context.args if arg.data is not None]

    def emit(self, group: Group, rows: int, packs_only: bool = False) -> Context:
        """The kernel of a group for a number of rows, as statements that are not yet a function. packs_only: without
        statements, where its code is known."""
        group = replace(group, nodes=with_ranges(group.nodes))
        context = Context(group, self.target, rows, self.tuning, packs_only)
        anchors = [node for node in group.nodes if node.op in ANCHORS]
        if len(anchors) > 1:
            raise Unsupported(anchors[1].op, f"it shares a group with {anchors[0].op}; a group has one anchor")
        if anchors and prod(anchors[0].output.shape) != prod(group.output.shape):
            raise Unsupported(anchors[0].op, "what follows it in the group changes the number of elements")
        if anchors:
            ANCHORS[anchors[0].op](context, anchors[0])
        else:
            emit_elementwise(context)
        return context

    def symbol(self, function: Any) -> str:
        """The name of a function that is to be compiled, the same for the same code."""
        key = tvm_ffi.structural_hash(function)
        for symbol in self._by_hash.get(key, ()):
            if tvm_ffi.structural_equal(self._functions[symbol], function):
                return symbol
        symbol = f"k{len(self._functions)}"
        self._functions[symbol] = function
        self._by_hash.setdefault(key, []).append(symbol)
        return symbol

    def lowered(self) -> Any:
        """TVM's compiled module of all kernels; has ``inspect_source("asm")``."""
        functions = {
            symbol: function.with_attr("global_symbol", symbol)
            .with_attr("tirx.noalias", True)
            .with_attr("target", self._tvm_target)
            for symbol, function in self._functions.items()
        }
        return tvm.get_global_func("target.build.llvm")(tvm.IRModule(functions), self._tvm_target)

    def build(self) -> Image:
        """Compile all kernels into one image, the same bytes for the same kernels."""
        if not self._functions:
            return Image(b"", {}, self.target.arch)
        if self.target.gpu:
            numbers = {symbol: number for number, symbol in enumerate(self._functions)}
            return Image(cuda.ptx(self._functions, self._tvm_target), numbers, self.target.arch)
        return link(object_bytes(self.lowered()), list(self._functions), self.target.arch)


def object_bytes(module: Any) -> bytes:
    """The relocatable object of a compiled module."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.o"
        module.write_to_file(str(path), "o")
        return path.read_bytes()
