"""Rows of chosen units (compiler/lowering/rows.py) as vectors of float32."""

from __future__ import annotations

from tvm import tirx

from runnel.compiler.codegen import halves
from runnel.compiler.codegen.blocks import decoded, permutes
from runnel.compiler.codegen.builder import Buffer, Expr, vector_type
from runnel.compiler.codegen.context import Context
from runnel.compiler.codegen.memory import LANES, round_up
from runnel.compiler.lowering.frame import FrameValue
from runnel.compiler.lowering.rows import SCALES, SINGLE, Row


class Units:
    """The units that the frame ``slots`` names, ``size`` bytes each."""

    def __init__(self, context: Context, slots: FrameValue, places: Buffer, size: int) -> None:
        self.b, self.size, self.places = context.b, size, places
        self.permutes = permutes(context.target)
        self.memory = context.units(slots, "int8")

    def base(self, place: Expr) -> Expr:
        """Where a listed unit begins. All slots together may be larger than 2 GiB."""
        slot = self.b.load_vector(self.places, place + 1, 1)
        return self.b.let(tirx.Cast("int64", slot) * tirx.IntImm("int64", self.size))

    def words(self, row: Row, base: Expr, number: Expr | int) -> Expr:
        """The ``number``-th vector of words of a row."""
        at = base + tirx.Cast("int64", number * row.word_bytes + row.at)
        found = self.b.let(self.b.load_vector(self.memory, at, row.word_bytes))
        kind = {SINGLE: "float32", 16: "uint16", 8: "int8"}.get(row.bits, "int32")
        return found if kind == "int8" else self.b.let(tirx.reinterpret(vector_type(kind, LANES), found))

    def single(self, row: Row, words: Expr, number: int) -> Expr:
        """The ``number``-th vector of elements in a vector of words, without scales."""
        if row.bits == SINGLE:
            return words
        if row.bits == 16:
            return halves.single(self.b, words)
        return decoded(words, row.bits, number, self.permutes)

    def reals(self, at: int, count: int, half: bool, base: Expr) -> Buffer:
        """``count`` scales or zeros of a unit as float32."""
        b, item = self.b, 2 if half else 4
        count = round_up(count, SCALES)
        found = b.local("float32", count)
        with b.loop(count // SCALES, "scales") as i:
            place = base + tirx.Cast("int64", i * (SCALES * item) + at)
            raw = b.let(b.load_vector(self.memory, place, SCALES * item))
            value = b.let(tirx.reinterpret(vector_type("uint16" if half else "float32", SCALES), raw))
            b.store_vector(found, i * SCALES, halves.single(b, value) if half else value)
        return found
