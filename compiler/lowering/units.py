"""Constants that lie in units: one of each for an expert, side by side, read together when it is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from runnel.compiler.bundle.checksum import crc32c, crc32c_rows
from runnel.compiler.codegen.module import Kernel, KernelModule
from runnel.compiler.lowering.frame import FrameNode, Group, round_up
from runnel.compiler.lowering.segments import ALIGN, PAGE, Segments
from runnel.compiler.lowering.signals import Choose, NoKernel, Signal, Step, Table

PIECE = 1 << 20  # the most bytes of a unit that are read at once
LEAST_PAGES = 8  # from which on a unit is padded to whole ones, so that it is read to where it is used

AS_THE_USER_SAYS = 1  # of which units are kept


@dataclass
class _Laid:
    """parts: for each part its constants, (bytes, unit by unit). at: where each constant begins in a unit."""

    parts: dict[str, list[list[np.ndarray]]] = field(default_factory=dict)
    at: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    words: list[int] | None = None


class UnitTables:
    """Collects the constants of units from kernels, and lays them out in the weights."""

    def __init__(self, module: KernelModule, weights: Segments) -> None:
        self._module, self._weights = module, weights
        self._tables: dict[Table, _Laid] = {}

    def add(self, step: Step, group: Group, kernel: Kernel) -> None:
        """The constants of a kernel for every unit. Raises NoKernel where units need other kernels than each other."""
        chosen = step.chosen
        assert chosen is not None
        laid = self._tables.setdefault(chosen.table, _Laid())
        if chosen.part in laid.parts:
            return
        shared = any(arg.role == "share" for arg in kernel.args)

        def of(inputs: tuple[np.ndarray | None, ...]) -> Group:
            nodes = tuple(_with(n, inputs) if n.output is step.node.output else n for n in group.nodes)
            return replace(group, nodes=nodes, shared=shared)

        # What is packed at once, and what is the same for all, make up the constants of any numbers.
        other = tuple(None if c is None else c + np.ones((), c.dtype) for c in chosen.inputs[0])
        full, same = self._module.constants(of(other), kernel.variants[1])
        own = self._module.packed(of(other))
        rest = [arg.data for arg in kernel.args if arg.data is not None][len(own) :]
        quick = len(own) + len(rest) == len(full) and all(
            np.array_equal(a, b) for a, b in zip(full, [*own, *rest], strict=True)
        )
        found: list[list[np.ndarray]] = []
        for inputs in chosen.inputs:
            if quick:
                found.append([*self._module.packed(of(inputs)), *rest])
            else:
                arrays, alike = self._module.constants(of(inputs), kernel.variants[1])
                found.append(arrays)
                same &= alike
        if not same or any(
            (a.dtype, a.shape) != (b.dtype, b.shape) for arrays in found for a, b in zip(arrays, found[0], strict=True)
        ):
            raise NoKernel(f"has experts that differ in more than their numbers ({chosen.part} of {chosen.table.name})")
        laid.parts[chosen.part] = found

    def place(self, step: Step, number: int) -> tuple[int, int]:
        """Where in a unit the ``number``-th constant of a kernel lies, and its bytes."""
        assert step.chosen is not None
        self.words(step.chosen.table)
        return self._tables[step.chosen.table].at[step.chosen.part, number]

    def bytes_of(self, slots: Signal, groups: Sequence[object]) -> int:
        """Bytes of a unit of the table that a choice makes ``slots`` of."""
        return self.words(next(g.table for g in groups if isinstance(g, Choose) and g.output is slots))[2]

    def words(self, table: Table) -> list[int]:
        """Table, units, bytes of one, where their checksums lie, and the most that are chosen at a time; then what is
        missed, where that is known, and how units are kept."""
        laid = self._tables.setdefault(table, _Laid())
        if laid.words is None and table.rows is not None:
            rows = np.ascontiguousarray(table.rows).view(np.uint8)
            if rows.shape[1] > PIECE:
                raise NoKernel(f"has neurons of {rows.shape[1]} bytes, more than are read at once")
            placed = self._weights.units(rows.tobytes(), crc32c_rows(rows))
            laid.words = [placed[0], table.units, rows.shape[1], placed[1], table.most, *table.misses]
        if laid.words is None:
            size = 0
            for part, units in laid.parts.items():
                for number, array in enumerate(units[0]):
                    laid.at[part, number] = (size, array.nbytes)
                    size = round_up(size + array.nbytes, ALIGN)
            each = round_up(size, PAGE if size >= LEAST_PAGES * PAGE else ALIGN)
            data = bytearray(each * table.units)
            for part, units in laid.parts.items():
                for unit, arrays in enumerate(units):
                    for number, array in enumerate(arrays):
                        at = unit * each + laid.at[part, number][0]
                        data[at : at + array.nbytes] = np.ascontiguousarray(array).tobytes()
            sums = [
                crc32c(memoryview(data)[at : min(at + PIECE, end)])
                for end in range(each, len(data) + 1, each)
                for at in range(end - each, end, PIECE)
            ]
            kept = [*table.misses, AS_THE_USER_SAYS] if table.misses else []
            laid.words = [*self._weights.units(data, np.array(sums, np.uint32)), table.most, *kept]
            laid.words[1:1] = [table.units, each]
        return laid.words


def _with(node: FrameNode, inputs: tuple[Any, ...]) -> FrameNode:
    return replace(node, inputs=tuple(x if c is None else c for x, c in zip(node.inputs, inputs, strict=True)))
