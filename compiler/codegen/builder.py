"""A small builder of TIR statements: loops, vectors and buffers, with nothing left for a scheduler to decide.

Expressions are scalar index arithmetic in int32, or data that is a scalar or a vector of ``lanes`` elements. Where data
is read at a position that contains ``Builder.lane``, the load is a vector: lane i reads the position with lane = i.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from tvm import ir, sym, tirx
from tvm.target import codegen
from tvm.tirx import layout, stmt

from runnel.compiler.codegen import halves as half_floats
from runnel.compiler.codegen.errors import CodegenError
from runnel.compiler.codegen.neighbours import covered, places_of
from runnel.compiler.codegen.values import (
    Buffer,
    Expr,
    consecutive,
    constant,
    dtype_of,
    int32,
    lanes_of,
    shuffle,
    splat,
    vector_type,
)

__all__ = [
    "Buffer",
    "Builder",
    "Expr",
    "constant",
    "dtype_of",
    "int32",
    "lanes_of",
    "shuffle",
    "splat",
    "substitute",
    "vector_type",
]

_ROUNDING = ("llvm.floor", "llvm.ceil", "llvm.trunc", "llvm.roundeven")

_BINARY: dict[Any, Callable[[Any, Any], Any]] = {
    tirx.Add: lambda a, b: a + b,
    tirx.Sub: lambda a, b: a - b,
    tirx.Mul: lambda a, b: a * b,
    tirx.Min: tirx.min,
    tirx.Max: tirx.max,
}


# Kernels have millions of nodes; what is the same in many of them is made once.
_prim_type = cache(ir.PrimType)
_pure = cache(lambda: ir.Op.get("tirx.call_llvm_pure_intrin"))


@cache
def _number_of(name: str) -> Expr:
    return tirx.IntImm("uint32", codegen.llvm_lookup_intrinsic_id(name))


def pure(kind: str, name: str, *args: Expr) -> Expr:
    """A call of an LLVM intrinsic without effects, whose result has the type ``kind``."""
    return ir.Call(_pure(), (_number_of(name), *args), ret_ty=_prim_type(kind))


@cache
def _layout(elements: int) -> Any:
    return layout.TileLayout(layout.S[(elements,)])


class Builder:
    """Statements of one kernel, in order. ``lanes`` is the width that loads at a lane position have.

    fused: whether the machine rounds a product and a sum once. rounds: whether it has instructions that round to whole
    numbers, and converts: whether those make integers. wide: whether it divides and converts int64. halves: whether it
    converts float16, and arm: by instructions of 32-bit Arm that have to be named. saturates: whether it has 64-bit
    Arm's instructions that round to int32 and narrow within range.
    """

    def __init__(
        self, fused: bool = True, rounds: bool = True, wide: bool = True, converts: bool = True, halves: bool = True,
        arm: bool = False, saturates: bool = False,
    ) -> None:  # fmt: skip
        self.fused, self.rounds, self.wide, self.converts = fused, rounds, wide, rounds and converts
        self.halves, self.arm, self.saturates = halves, arm, saturates
        self._in_half: set[Any] = set()
        self._blocks: list[list[Any]] = [[]]
        self._pointers: list[Any] = []
        self._names = 0
        self.analyzer = sym.Analyzer()
        self.lane = tirx.Var("lane", "int32")
        self.lanes = 1

    def name(self, prefix: str) -> str:
        """A name not used before in this kernel."""
        self._names += 1
        return f"{prefix}{self._names}"

    def emit(self, statement: Any) -> None:
        """Append a statement."""
        self._blocks[-1].append(statement)

    def body(self) -> Any:
        """All statements, followed by ``return 0``."""
        self.emit(stmt.Return(tirx.IntImm("int32", 0)))
        return stmt.SeqStmt(self._pointers + self._blocks[0])

    @contextmanager
    def loop(self, extent: int, name: str = "i") -> Iterator[Expr]:
        """Repeat what is emitted inside; yields the index, which is the constant 0 where there is one pass."""
        if extent == 1:
            yield int32(0)
            return
        index = tirx.Var(self.name(name), "int32")
        self.analyzer.bind(index, ir.Range(0, max(extent, 1)))
        self._blocks.append([])
        yield index
        inner = self._blocks.pop()
        if inner and extent:
            body = stmt.SeqStmt(inner) if len(inner) > 1 else inner[0]
            self.emit(stmt.For(index, int32(0), int32(extent), stmt.ForKind.SERIAL, body))

    @contextmanager
    def repeat(self, extent: Expr, name: str = "i") -> Iterator[Expr]:
        """Repeat what is emitted inside as often as an int32 expression says; yields the index."""
        index = tirx.Var(self.name(name), "int32")
        self.analyzer.bind(index, ir.Range(0, 1 << 30))
        self._blocks.append([])
        yield index
        inner = self._blocks.pop()
        body = stmt.SeqStmt(inner) if len(inner) > 1 else inner[0]
        self.emit(stmt.For(index, int32(0), extent, stmt.ForKind.SERIAL, body))

    @contextmanager
    def span(self, low: Expr, high: Expr, extent: int, name: str = "i") -> Iterator[Expr]:
        """Repeat what is emitted inside for an index from ``low`` to ``high`` - 1, which lie within 0 to ``extent``."""
        index = tirx.Var(self.name(name), "int32")
        self.analyzer.bind(index, ir.Range(0, extent))
        self._blocks.append([])
        yield index
        inner = self._blocks.pop()
        body = stmt.SeqStmt(inner) if len(inner) > 1 else inner[0]
        self.emit(stmt.For(index, low, high - low, stmt.ForKind.SERIAL, body))

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Run what is emitted inside only if a scalar condition holds."""
        self._blocks.append([])
        yield
        inner = self._blocks.pop()
        if inner:
            self.emit(stmt.IfThenElse(condition, stmt.SeqStmt(inner) if len(inner) > 1 else inner[0], None))

    @contextmanager
    def vector(self, lanes: int) -> Iterator[Expr]:
        """Vectors of ``lanes`` inside; yields what to add to a position to make it one of each lane."""
        outer = self.lane, self.lanes
        self.lanes = lanes
        self.lane = tirx.Var(self.name("lane"), "int32") if lanes > 1 else int32(0)
        if lanes > 1:
            self.analyzer.bind(self.lane, ir.Range(0, lanes))
        yield self.lane
        self.lane, self.lanes = outer

    def let(self, value: Expr) -> Expr:
        """``value`` computed once, here."""
        if isinstance(value, tirx.Var | tirx.IntImm | tirx.FloatImm):
            return value
        if isinstance(value, tirx.Broadcast) and isinstance(value.value, tirx.IntImm | tirx.FloatImm):
            return value
        dtype, lanes = dtype_of(value), lanes_of(value)
        if isinstance(value, tirx.Mul) and dtype.startswith("float"):
            # Else LLVM fuses a product with a later sum in one variant of a kernel and not in another.
            value = self.fence(value)
        if dtype == "bool":
            one, zero = constant(1, "int8", lanes), constant(0, "int8", lanes)
            return tirx.NE(self.let(tirx.Select(value, one, zero)), zero)
        if dtype == "int32" and lanes == 1:
            var = tirx.Var(self.name("v"), value.ty)
            self.emit(stmt.Bind(var, value))
            return var
        # TVM analyses what every bound variable stands for; data in a local array costs a tenth of the compile time.
        memory = self.local(dtype, lanes)
        self.emit(stmt.BufferStore(memory, value, [consecutive(0, lanes)]))
        return tirx.BufferLoad(memory, [consecutive(0, lanes)])

    def local(self, dtype: str, elements: int) -> Buffer:
        """An array on the stack; one that is only reached at constant positions ends up in registers."""
        buffer = tirx.decl_buffer((elements,), dtype, name=self.name("t"), scope="local", layout=_layout(elements))
        self.emit(stmt.AllocBuffer(buffer))
        return buffer

    def rounded(self, value: Expr) -> Expr:
        """float32 rounded to float16."""
        return half_floats.single(self, self.let(half_floats.half(self, value)))

    def parameter(self, prefix: str, dtype: str) -> tuple[Any, Buffer]:
        """A parameter that points to memory, and that memory. What lies there as float16 is float32 once loaded."""
        kind = "uint16" if dtype == "float16" else dtype
        var = tirx.Var(self.name(prefix), ir.PointerType(ir.PrimType(kind)))
        buffer = tirx.decl_buffer((1 << 30,), kind, name=var.name + "_m")
        self._pointers.append(stmt.DeclBuffer(buffer, data=var))
        if dtype == "float16":
            self._in_half.add(buffer)
        return var, buffer

    def _loaded(self, buffer: Buffer, value: Expr) -> Expr:
        return half_floats.single(self, self.let(value)) if buffer in self._in_half else value

    def _to_store(self, buffer: Buffer, value: Expr) -> Expr:
        return half_floats.half(self, value) if buffer in self._in_half else value

    def load(self, buffer: Buffer, position: Expr) -> Expr:
        """Elements of ``buffer`` at ``position``: a vector where the position contains the lane."""
        index = self.index_vector(position)
        if isinstance(index, tirx.Broadcast):
            return tirx.Broadcast(self._loaded(buffer, tirx.BufferLoad(buffer, [index.value])), self.lanes)
        return self.load_at(buffer, index)

    def load_at(self, buffer: Buffer, index: Expr) -> Expr:
        """The elements that an index vector names."""
        found = places_of(index, self.analyzer, self.lanes)
        if found is not None and (near := covered(found[1])) is not None:
            width, starts, wanted = near
            vectors = [self.let(tirx.BufferLoad(buffer, [consecutive(found[0] + at, width)])) for at in starts]
            enough = vectors + vectors[:1] * (-(-self.lanes // width) - len(starts))  # a shuffle never widens
            return self._loaded(buffer, tirx.Shuffle(enough, wanted))
        if isinstance(index, tirx.Shuffle):
            parts = [tirx.BufferLoad(buffer, [p]) for p in index.vectors]
            return self._loaded(buffer, tirx.Shuffle(parts, list(range(self.lanes))))
        return self._loaded(buffer, tirx.BufferLoad(buffer, [index]))

    def index_vector(self, value: Expr) -> Expr:
        """An index expression as data: one int32 a lane."""
        value = self.analyzer.simplify(int32(value))
        if self.lanes == 1:
            return self._truncated(value)
        linear = sym.detect_linear_equation(value, [self.lane])
        if len(linear) == 2 and isinstance(linear[0], tirx.IntImm):
            stride, base = int(linear[0].value), self._truncated(linear[1])
            return tirx.Ramp(base, int32(stride), self.lanes) if stride else tirx.Broadcast(base, self.lanes)
        lanes = [self._truncated(substitute(value, {self.lane: int32(i)})) for i in range(self.lanes)]
        return tirx.Shuffle(lanes, list(range(self.lanes)))

    def shared(self, value: Expr, of: Expr) -> Expr:
        """An index expression, computed once where ``of``, on which it depends, is the same in every lane."""
        if self.lanes > 1:
            linear = sym.detect_linear_equation(self.analyzer.simplify(int32(of)), [self.lane])
            if len(linear) != 2 or not isinstance(linear[0], tirx.IntImm) or int(linear[0].value):
                return value
        return self.let(self._truncated(int32(value)))

    def _truncated(self, value: Expr) -> Expr:
        """An index expression with the divisions that machines have; index expressions divide by constants only."""
        return substitute(self.analyzer.simplify(value), {}, self._divide)

    def _divide(self, a: Expr, divisor: Expr, remainder: bool) -> Expr:
        if not self.analyzer.can_prove(a >= 0):
            raise CodegenError(f"index {a} is divided by {divisor} and may be negative")
        return tirx.truncmod(a, divisor) if remainder else tirx.truncdiv(a, divisor)

    def load_vector(self, buffer: Buffer, position: Expr, lanes: int) -> Expr:
        """``lanes`` consecutive elements from ``position`` on."""
        return self._loaded(buffer, tirx.BufferLoad(buffer, [consecutive(position, lanes)]))

    def prefetch(self, buffer: Buffer, position: Expr) -> None:
        """Ask for the line of memory that holds an element, which need not exist."""
        address = tirx.address_of(tirx.BufferLoad(buffer, [int32(position)]))
        read, near, data = (tirx.IntImm("int32", n) for n in (0, 3, 1))
        self.emit(stmt.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch.p0", address, read, near, data)))

    def store_vector(self, buffer: Buffer, position: Expr, value: Expr) -> None:
        """Store all lanes of ``value`` from ``position`` on."""
        value = self._to_store(buffer, value)
        self.emit(stmt.BufferStore(buffer, value, [consecutive(position, lanes_of(value))]))

    def store(self, buffer: Buffer, position: Expr, value: Expr) -> None:
        """Store ``value`` at ``position``, one element a lane where the position contains the lane."""
        value = splat(value, self.lanes)
        self.emit(stmt.BufferStore(buffer, self._to_store(buffer, value), [self.index_vector(position)]))

    def fma(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """``a * b + c``, rounded once; float32 twice where the machine does not fuse."""
        lanes = max(lanes_of(a), lanes_of(b), lanes_of(c))
        kind = vector_type(dtype_of(c), lanes)
        if not self.fused:
            a, b, c = splat(a, lanes), splat(b, lanes), splat(c, lanes)
            return a * b + c if dtype_of(c) == "float32" else self._product_and_sum(a, b, c)
        return pure(kind, "llvm.fma", splat(a, lanes), splat(b, lanes), splat(c, lanes))

    def fence(self, value: Expr) -> Expr:
        """``value`` as LLVM's optimiser cannot see through; takes no instruction. Integers go as floats."""
        kind, lanes = dtype_of(value), lanes_of(value)
        if kind.startswith("float"):
            return self.intrinsic("llvm.arithmetic.fence", value)
        size = {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1}.get(kind, 0) * lanes
        if not size or size % 4:
            return value
        floats = vector_type("float64", lanes) if kind == "int64" else vector_type("float32", size // 4)
        fenced = self.intrinsic("llvm.arithmetic.fence", tirx.reinterpret(floats, value))
        return tirx.reinterpret(str(value.ty), fenced)

    def intrinsic(self, name: str, value: Expr, *more: Expr) -> Expr:
        """An LLVM intrinsic whose result has the type of its first operand."""
        if not self.rounds and name in _ROUNDING:
            return self._whole(name, value)
        return pure(value.ty.dtype, name, value, *more)

    def whole(self, value: Expr) -> Expr:
        """float32 that is known to fit rounded half to even to int32."""
        kind = vector_type("int32", lanes_of(value))
        if self.saturates and lanes_of(value) % 4 == 0:
            return self.by_parts(value, 4, lambda part: pure("int32x4", "llvm.aarch64.neon.fcvtns", part))
        if not self.converts:
            return tirx.Cast(kind, self.intrinsic("llvm.roundeven", value))
        return pure(kind, "llvm.lrint", value)

    def by_parts(self, value: Expr, lanes: int, of: Callable[[Expr], Expr]) -> Expr:
        """``of`` each part of so many lanes, put together again."""
        first = range(0, lanes_of(value), lanes)
        made = [self.let(of(shuffle(value, range(i, i + lanes)))) for i in first]
        count = sum(lanes_of(part) for part in made)
        return self.let(tirx.Shuffle(made, list(range(count)))) if len(made) > 1 else made[0]

    def _product_and_sum(self, a: Expr, b: Expr, c: Expr) -> Expr:
        """``a * b + c`` in float64 with the errors of the product and of the sum put back (Dekker, Knuth)."""
        split = constant(2.0**27 + 1, "float64", lanes_of(c))

        def halves(x: Expr) -> tuple[Expr, Expr]:
            wide = self.let(x * split)
            high = self.let(wide - (wide - x))
            return high, self.let(x - high)

        product = self.let(a * b)
        (ah, al), (bh, bl) = halves(a), halves(b)
        lost = self.let(((ah * bh - product) + ah * bl + al * bh) + al * bl)
        total = self.let(product + c)
        back = self.let(total - product)
        return total + (((product - (total - back)) + (c - back)) + lost)

    def _whole(self, name: str, value: Expr) -> Expr:
        """``value`` rounded to a whole number by sums alone: from 2^23 (float32) or 2^52 on there is no fraction."""
        kind, lanes = dtype_of(value), lanes_of(value)
        least = constant(2.0 ** (23 if kind == "float32" else 52), kind, lanes)
        one = constant(1.0, kind, lanes)
        size = self.let(self.intrinsic("llvm.fabs", value))
        near = self.let(self.intrinsic("llvm.copysign", (size + least) - least, value))
        if name == "llvm.floor":
            near = tirx.Select(near > value, near - one, near)
        elif name == "llvm.ceil":
            near = tirx.Select(near < value, near + one, near)
        elif name == "llvm.trunc":
            towards = self.intrinsic("llvm.copysign", one, value)
            near = tirx.Select(self.intrinsic("llvm.fabs", near) > size, near - towards, near)
        return tirx.Select(size < least, self.intrinsic("llvm.copysign", self.let(near), value), value)


def _floor_division(a: Expr, divisor: Expr, remainder: bool) -> Expr:
    return tirx.floormod(a, divisor) if remainder else tirx.floordiv(a, divisor)


def substitute(
    value: Expr, replace: dict[Any, Expr], divide: Callable[[Expr, Expr, bool], Expr] = _floor_division
) -> Expr:
    """An index expression rebuilt, with variables replaced and floor divisions made by ``divide``."""

    def rebuild(part: Expr) -> Expr:
        return substitute(part, replace, divide)

    if isinstance(value, tirx.IntImm):
        return value
    if isinstance(value, tirx.Var):
        return replace.get(value, value)
    if isinstance(value, tirx.Cast):
        return tirx.Cast(str(value.ty), rebuild(value.value))
    if isinstance(value, ir.expr.TensorLoad):
        return tirx.BufferLoad(value.source, [rebuild(i) for i in value.indices])
    if isinstance(value, tirx.FloorDiv | tirx.FloorMod):
        return divide(rebuild(value.a), rebuild(value.b), isinstance(value, tirx.FloorMod))
    for kind, combine in _BINARY.items():
        if isinstance(value, kind):
            return combine(rebuild(value.a), rebuild(value.b))
    raise CodegenError(f"index expression with {type(value).__name__} cannot be taken apart: {value}")
