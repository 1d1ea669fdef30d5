"""Words of the instructions that the core does itself: copies, rows of tables, chosen units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runnel.compiler.lowering.segments import Segments
from runnel.compiler.lowering.signals import Choose, Copy, Fetch, Signal
from runnel.compiler.lowering.units import UnitTables
from runnel.compiler.lowering.words import fill_bits
from runnel.compiler.streaming.count import Count

COPY, FETCH, CHOOSE = 3, 7, 8


@dataclass
class Movers:
    """clock, buffer: the numbers of a count (and what it is for) and of a signal."""

    weights: Segments
    units: UnitTables
    clock: Callable[[Count, str], int]
    buffer: Callable[[Signal], int]

    def words(self, group: Copy | Fetch | Choose) -> list[int]:
        """An instruction."""
        out = group.output
        pair = [self.clock(out.made, out.name), self.clock(out.length, out.name)]
        if isinstance(group, Copy):
            source = group.read.signal
            words = [
                COPY, *pair, self.buffer(source), self.buffer(out), group.read.offset, group.mode,
                self.clock(source.length, source.name), fill_bits(group.fill, out),
            ]  # fmt: skip
        elif isinstance(group, Fetch):
            read, (offset, apart) = group.read, self.weights.table(group.table)
            words = [
                FETCH, *pair, self.buffer(read.signal), self.buffer(out), read.stride, read.offset, offset,
                group.table.nbytes // len(group.table), len(group.table), apart,
            ]  # fmt: skip
        else:
            target = -1 if group.guess else self.buffer(out)
            words = [CHOOSE, *pair, self.buffer(group.reads[0].signal), target, *self.units.words(group.table)]
        return [words[0], len(words) + 1, *words[1:]]
