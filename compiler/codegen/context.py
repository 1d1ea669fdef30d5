"""What is common to all kernels: their parameters, and where rows and taps lie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tvm import ir, tirx

from runnel.compiler.codegen import cuda
from runnel.compiler.codegen.builder import Buffer, Builder, Expr
from runnel.compiler.codegen.errors import Unsupported
from runnel.compiler.codegen.memory import flat_padded, frame_elements
from runnel.compiler.codegen.target import Target
from runnel.compiler.codegen.tuning import Schedule, Tuning
from runnel.compiler.lowering.frame import Access, FrameValue, Group
from runnel.compiler.streaming.count import Count

MAX_POINTERS = 16
FEWEST_TURNS = 4
"""Turns of a loop from which on workers share it."""
STORED_AS = {"bool": "int8"}
DTYPES = frozenset({"float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"})


@dataclass(frozen=True, eq=False)
class Arg:
    """One argument of a kernel: one pointer, or two (base and int32 words) for a ring or a window not contiguous.

    value, access: of a frame or window. value: of the output. data: a packed constant, flat, for the weights. length:
    of a "number", two int64 words: the number of the first row's frame, and the length of a tensor (in frames) once the
    end is known, else -1. A "share" is two int32 words: the number of this call's share of the work, and of shares.
    "units": where slots of chosen units begin; value: the frame that lists them.
    """

    role: Literal["frame", "window", "const", "number", "share", "units", "out"]
    value: FrameValue | None = None
    access: Access | None = None
    data: np.ndarray | None = None
    length: Count | None = None


@dataclass(frozen=True)
class View:
    """An input's memory. offsets: the table of tap offsets, or a ring's first slot and slots, where there is one."""

    value: FrameValue
    access: Access
    memory: Buffer
    offsets: Buffer | None

    def tap(self, tap: Expr) -> Expr:
        """Where a tap's frame begins."""
        if self.offsets is not None:
            offset = tirx.BufferLoad(self.offsets, [tap])
            # The table counts in elements of 4 bytes.
            item = 2 if self.access.half else np.dtype(self.value.dtype).itemsize
            return offset * (4 // item) if item <= 4 else tirx.truncdiv(offset, item // 4)
        return tap * frame_elements(self.value.shape)


class Context:
    """A kernel under construction. ``row`` is the row that loads of inputs refer to, see ``rows``. packs_only: of a
    kernel whose code is known, constants are laid out and nothing else is done."""

    def __init__(
        self, group: Group, target: Target, rows: int, tuning: Tuning | None = None, packs_only: bool = False
    ) -> None:
        self.group = group
        self.packs_only = packs_only
        self.target = target
        self._tuning = tuning or Tuning()
        self.rows = rows
        self.row: Expr = tirx.IntImm("int32", 0)
        narrows = target.arch == "aarch64"
        self.b = Builder(
            target.fused, target.rounds, target.wide, not target.gpu, target.halves, target.arm, narrows
        )  # fmt: skip
        self.args: list[Arg] = []
        self._params: list[Any] = []
        self._constants: dict[Any, Buffer] = {}
        self.views = {value: self._view(value, access) for value, access in group.inputs.items()}
        self._share: tuple[Expr, Expr] | None = None
        self.spreads = False
        self._thread = cuda.thread() if group.shared and target.gpu else None
        if self._thread is not None:
            self._share = self._thread, tirx.IntImm("int32", cuda.THREADS)
        elif group.shared:
            self.args.append(Arg("share"))
            words = self._pointer("share", "int32")
            self._share = self.b.let(tirx.BufferLoad(words, [0])), self.b.let(tirx.BufferLoad(words, [1]))
        self.out = self._pointer("out", "float16" if group.half else group.output.dtype)
        self._out_arg = Arg("out", group.output)

    def _pointer(self, name: str, dtype: str) -> Buffer:
        if dtype not in DTYPES:
            raise Unsupported(self.group.nodes[-1].op, f"element type {dtype}")
        var, memory = self.b.parameter(name, STORED_AS.get(dtype, dtype))
        self._params.append(var)
        return memory

    def _view(self, value: FrameValue, access: Access) -> View:
        self.args.append(Arg("window" if access.taps > 1 or access.ring else "frame", value, access))
        memory = self._pointer("x", "float16" if access.half else value.dtype)
        table = access.ring or (access.taps > 1 and not access.contiguous)
        return View(value, access, memory, self._pointer("taps", "int32") if table else None)

    def constant(self, key: Any, data: np.ndarray) -> Buffer:
        """The memory of a constant array, one argument a key; ``data`` is stored flat and padded as a frame is."""
        if key not in self._constants:
            data = flat_padded(data)
            self.args.append(Arg("const", data=data))
            self._constants[key] = self._pointer("c", str(data.dtype))
        return self._constants[key]

    def number(self, length: Count) -> Buffer:
        """Two int64 words, one argument a length: the present call's first frame number, and the length or -1."""
        key = ("number", length)
        if key not in self._constants:
            self.args.append(Arg("number", length=length))
            self._constants[key] = self._pointer("n", "int64")
        return self._constants[key]

    def schedule(self, form: str, kind: str, rows: int, vectors: int, lanes: int, depth: int) -> Schedule:
        """How a product of ``rows`` by ``vectors`` of ``lanes`` elements, sums of ``depth`` products, is made."""
        return self._tuning.schedule(self.target, form, kind, rows, vectors, lanes, depth)

    def units(self, slots: FrameValue, dtype: str) -> Buffer:
        """Where the slots of chosen units begin, which the frame ``slots`` lists."""
        if self.target.gpu:
            raise Unsupported(self.group.nodes[0].op, "units are chosen on the CPU")
        key = ("units", slots)
        if key not in self._constants:
            self.args.append(Arg("units", slots))
            self._constants[key] = self._pointer("u", dtype)
        return self._constants[key]

    @contextmanager
    def spread(self, extent: int, name: str = "i") -> Iterator[Expr]:
        """A loop whose turns are independent of each other: workers share them where the kernel is made for that."""
        if self._share is None or not extent:
            with self.b.loop(extent, name) as i:
                yield i
            return
        number, shares = self._share
        self.spreads |= extent > 1
        low = self.b.let(tirx.truncdiv(number * extent, shares))
        high = self.b.let(tirx.truncdiv((number + 1) * extent, shares))
        with self.b.span(low, high, extent, name) as i:
            yield i

    @contextmanager
    def alone(self) -> Iterator[None]:
        """What is done once: by the first of the workers."""
        if self._share is None:
            yield
            return
        with self.b.when(tirx.EQ(self._share[0], tirx.IntImm("int32", 0))):
            yield

    def at_row(self, access: Access) -> Expr:
        """Elements from an input's first row to the present one."""
        return self.row * access.row_pitch

    @property
    def out_row(self) -> Expr:
        """Elements from the first output row to the present one."""
        return self.row * self.group.out_row_pitch

    @property
    def arguments(self) -> tuple[Arg, ...]:
        """In order."""
        return (*self.args, self._out_arg)

    def finish(self) -> tuple[Any, tuple[Arg, ...]]:
        """The function and its arguments in order."""
        order = [i for i in range(len(self._params)) if i != self._out_index] + [self._out_index]
        if len(order) > MAX_POINTERS:
            raise Unsupported(self.group.nodes[0].op, f"the group needs {len(order)} pointers, at most {MAX_POINTERS}")
        params = [self._params[i] for i in order]
        function = tirx.PrimFunc(params, self.b.body(), ir.PrimType("int32"))
        if self.target.gpu:
            function = cuda.as_kernel(function, self._thread)
        return function, self.arguments

    @property
    def _out_index(self) -> int:
        return next(i for i, v in enumerate(self._params) if v.name.startswith("out"))
