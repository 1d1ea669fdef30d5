"""Rings, offsets and the words of the plan (docs/plan.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runnel.compiler.codegen.module import Arg, Image, Kernel, KernelModule
from runnel.compiler.codegen.tiles import rows_of_call
from runnel.compiler.lowering.arrange import arranged
from runnel.compiler.lowering.caches import Caches
from runnel.compiler.lowering.choices import skips
from runnel.compiler.lowering.frame import Access, Group, frame_elements, round_up
from runnel.compiler.lowering.fuse import FusedStep, fuse
from runnel.compiler.lowering.lower import Lowering
from runnel.compiler.lowering.movers import Movers
from runnel.compiler.lowering.rings import SCRATCH, STATE, Ring
from runnel.compiler.lowering.scratch import ALIGN, lives, placed
from runnel.compiler.lowering.segments import Segments
from runnel.compiler.lowering.signals import Cached, Choose, Copy, Fetch, NoKernel, Read, Signal, View
from runnel.compiler.lowering.together import LEAST_SHARED, ROWS_APART, rows_apart
from runnel.compiler.lowering.units import UnitTables
from runnel.compiler.lowering.words import describe, dtype_number, fill_bits, layout, part_of_frame
from runnel.compiler.streaming.clocks import ClockProgram, NoClock
from runnel.compiler.streaming.count import Count, Ended
from runnel.compiler.streaming.ir import Tail

MAGIC = int.from_bytes(b"RNLPLAN\0", "little")
SCHEMA = 2
STATE_HEADER = 128
CALL, REPEAT, SKIP_IF, ATTEND = 1, 2, 4, 6
WEIGHTS, IN, OUT, RUN, LAST, FRAME, RING, SHARE, UNITS = range(9)
MOST_TABLE = 16  # taps beyond which frames with padding are read as one run too


@dataclass
class NativeProgram:
    """What the native backend needs: the plan, the kernel image, the weights, and figures for the manifest."""

    plan: bytes
    image: Image
    weights: bytes
    segments: list[dict[str, int]]
    hop: int
    state_bytes: int
    scratch_bytes: int
    kernels: list[dict[str, Any]] = field(default_factory=list)


def capacity(made: Count, hop: int) -> int:
    """The most frames of one step."""
    return int((made.later(hop) - made).largest() or 0)


class Planner:
    """Lays out one native program. Raises NoKernel when something has no kernel, no clock or no bounded ring."""

    def __init__(self, low: Lowering, hop: int, module: KernelModule) -> None:
        self.hop, self.module, self.clocks = hop, module, ClockProgram()
        self.low = arranged(
            low, module.target.lanes, module.unsigned, module.multiplies_fours, module.multiplies_halves
        )
        self.groups = fuse(self.low)
        self.weights = Segments(self.low.segment_bytes)
        self.units = UnitTables(module, self.weights)
        self.rings: dict[Signal, Ring] = {}
        self.order: list[Signal] = []
        self.symbols: list[tuple[str, int, int]] = []  # kernels that are called: name, pointers, multiply-adds

    def build(self, progress: Callable[[str, float | None], None] | None = None) -> NativeProgram:
        kernels = [self._kernel(g) if isinstance(g, FusedStep) else None for g in self.groups]
        self.caches = Caches(self.low, [g for g in self.groups if isinstance(g, Cached)], self.module, self.hop)
        if progress:
            progress("compiling kernels", None)
        image = self.module.build()
        used = self._used_signals()
        for signal in used:
            self.rings[signal] = self._ring(signal)
        self._widen(kernels)
        self.order = used
        state_bytes, scratch_bytes = self._place()
        code, instructions = self._code(kernels, range(len(self.groups)))
        entries = [0, instructions]
        if self.caches.steps and self._frame_for_frame():
            more, instructions = self._code(kernels, self._kept_by_states())
            entries += [len(code), instructions]
            code += more
        self.weights.close()  # first frames are kept in memory and so lie apart
        for signal in used:
            ring = self.rings[signal]
            if signal.initial is not None:
                frames = np.zeros((len(signal.initial), signal.pitch), signal.stored)
                frames[:, : signal.elements] = signal.initial.reshape(len(signal.initial), -1)
                ring.init_offset = self.weights.add(frames)
        words = self._words(code, entries, image, state_bytes, scratch_bytes)
        plan = struct.pack(f"<{len(words)}q", *words)
        return NativeProgram(
            plan, image, bytes(self.weights.data), self.weights.listed(), self.hop, state_bytes, scratch_bytes,
            describe(self.groups, kernels),
        )  # fmt: skip

    # Kernels --------------------------------------------------------------------------------------------------------

    def _kernel(self, group: FusedStep) -> Kernel:
        """One that makes several rows unless it reads frames of its own, such as a sum so far."""
        inputs = {r.value: self._access(r) for r in group.reads}
        several = not group.loop and not any(r.ring or r.signal is group.output for r in group.reads)
        rows = rows_of_call(capacity(group.count, self.hop)) if several else ()
        nodes = tuple(s.node for s in group.steps)
        out = group.output
        shared = group.macs >= LEAST_SHARED
        made = Group(nodes, inputs, rows, out.unit * out.pitch, rows_apart(group), shared, out.half)
        kernel = self.module.add(made)
        if group.chosen is not None:
            self.units.add(group.chosen, made, kernel)
        return kernel

    def _access(self, read: Read) -> Access:
        pitch, half = read.signal.pitch, read.signal.half
        return Access(read.taps, self._contiguous(read), read.stride * pitch, read.ring > 0, pitch, half)

    @staticmethod
    def _contiguous(read: Read) -> bool:
        """Whether the taps are read as one run, which costs a margin as long as they are, and not through a table."""
        signal = read.signal
        many = read.taps > MOST_TABLE or signal.item_bytes != 4
        run = frame_elements(signal.shape) if many else signal.elements
        return read.taps > 1 and read.dilation == 1 and signal.pitch == run

    # Rings ----------------------------------------------------------------------------------------------------------

    def _used_signals(self) -> list[Signal]:
        used = [*self.low.statics, *self.low.inputs]  # statics first: a restart leaves them alone
        for group in self.groups:
            if group.output not in used:
                used.append(group.output)
        return used

    def _all_reads(self, signal: Signal) -> list[tuple[Count, int, int]]:
        """(count, stride, lowest offset) of everything that reads the signal from memory."""
        reads = []
        for group in self.groups:
            for read in [group.read] if isinstance(group, (Copy, Fetch)) else group.reads:
                if read.signal is signal and read.ended is not None:
                    reads.append((read.ended, 1, read.oldest))
                elif read.signal is signal:
                    count = group.output.made if isinstance(group, (Copy, Fetch)) else group.count
                    reads.append((count, read.stride, read.lowest))
        for name, (view, tail) in self.low.outputs.items():
            if view.signal is signal:
                made = self._output_clock(name, view)
                reads.append((made, 1, view.offset - (tail.start + self.hop if tail else 0)))
        return reads

    def _output_clock(self, name: str, view: View) -> Count:
        made = view.signal.made.affine(1, -view.offset).minimum_with(view.length.affine(1, 0))
        aligned = self.low.graph.aligned.get(name)
        return made if aligned is None else made.minimum_with(aligned)

    def _ring(self, signal: Signal) -> Ring:
        ring = Ring(signal)
        needed = most = capacity(signal.made, self.hop)
        crosses = signal.initial is not None or _static(signal)
        for count, stride, lowest in self._all_reads(signal):
            oldest = count * stride + lowest
            behind = self._behind(signal, count, oldest)
            if behind is None:
                raise NoKernel(
                    f"'{signal.name}' would have to keep frames without bound, because its readers fall behind"
                )
            needed = max(needed, behind)
            crosses |= (signal.made - oldest).largest() != 0  # else a step reads exactly the frames that it makes
            crosses |= isinstance(signal.made, Ended) and count != signal.made
            ring.lead = max(ring.lead, -lowest)
        ring.lead = max(0, ring.lead)
        ring.tail = int(signal.fill is not None)
        if crosses:
            ring.space, ring.slots = STATE, max(needed, ring.lead, 1)
        else:
            ring.space, ring.slots = SCRATCH, max(most, 1)
        ring.slots = round_up(ring.slots, signal.unit)
        return ring

    def _behind(self, signal: Signal, count: Count, oldest: Count) -> int | None:
        """The most frames that the signal is ahead of a reader, None for any number; a reader may come to its end."""
        apart = signal.made.later(self.hop) - oldest
        most = count.largest()
        if not most or isinstance(count, Ended):
            return apart.largest()
        return int(apart.table(count.first(most - 1) + 1).max())

    def _widen(self, kernels: list[Kernel | None]) -> None:
        """Margins, so that contiguous windows and rows do not meet the ring's end."""
        for group, kernel in zip(self.groups, kernels, strict=True):
            if kernel is None or not isinstance(group, FusedStep):
                continue
            rows = max(kernel.variants)
            for read in group.reads:
                ring = self.rings[read.signal]
                run = (read.taps - 1 if self._contiguous(read) else 0) + (rows - 1) * read.stride
                if ring.space == STATE:
                    ring.margin = max(ring.margin, run)
                    ring.slots = max(ring.slots, run + 1, read.ring)
            out = self.rings[group.output]
            if out.space == STATE and rows > 1:
                out.margin = max(out.margin, (rows - 1) * group.output.unit)
        for ring in self.rings.values():
            ring.margin = min(ring.margin, ring.slots) if ring.space == STATE else 0
            ring.slots = round_up(ring.slots, ring.signal.unit)

    def _place(self) -> tuple[int, int]:
        state = STATE_HEADER
        passing: dict[Signal, int] = {}
        for signal in self.order:
            ring = self.rings[signal]
            if ring.space == SCRATCH:
                passing[signal] = ring.bytes
                continue
            ring.base = state
            state += round_up(ring.bytes, ALIGN)
        outputs = (view.signal for view, _ in self.low.outputs.values())
        places, scratch = placed(passing, lives(self.groups, [*self.low.statics, *self.low.inputs], outputs))
        for signal, at in places.items():
            self.rings[signal].base = at
        return state, scratch

    # Words ----------------------------------------------------------------------------------------------------------

    def _clock(self, count: Count, what: str) -> int:
        try:
            return self.clocks.add(count)
        except NoClock as error:
            raise NoKernel(f"{what}: {error}") from None

    def _frame_for_frame(self) -> bool:
        """Whether an output has a frame for each of the input, as soon as it has come."""
        views = self.low.outputs.items()
        return all(tail is None and self._output_clock(name, view) == Count.time() for name, (view, tail) in views)

    def _kept_by_states(self) -> list[int]:
        """The groups that states and caches need; what is left is for outputs alone."""
        needed: set[Signal] = set()
        found: list[int] = []
        for i in reversed(range(len(self.groups))):
            group = self.groups[i]
            state = isinstance(group, Cached) or self.rings[group.output].space == STATE
            if state or group.loop or group.output in needed:
                found.append(i)
                needed |= {r.signal for r in ([group.read] if isinstance(group, (Copy, Fetch)) else group.reads)}
                needed |= {flag for flag, _ in getattr(group, "guards", ())}
        return found[::-1]

    def _code(self, kernels: list[Kernel | None], chosen: Sequence[int]) -> tuple[list[int], int]:
        """The words and the number of the instructions of some groups."""
        code: list[int] = []
        instructions = 0
        loop = 0
        skipped = skips([getattr(self.groups[i], "guards", ()) for i in chosen])
        for at, i in enumerate(chosen):
            group = self.groups[i]
            for flag, wanted, covered in skipped.get(at, ()):
                clocks = self._clock(flag.made, flag.name), self._clock(flag.length, flag.name)
                code += [SKIP_IF, 7, *clocks, self.order.index(flag), int(wanted), covered]
                instructions += 1
            if not isinstance(group, (Copy, Fetch)) and group.loop and group.loop != loop:
                body = 0
                while i + body < len(self.groups) and getattr(self.groups[i + body], "loop", 0) == group.loop:
                    body += 1
                code += [REPEAT, 5, *self._pair(group), body]
                instructions += 1
            loop = 0 if isinstance(group, (Copy, Fetch)) else group.loop
            if isinstance(group, (Choose, Copy, Fetch)):
                code += Movers(self.weights, self.units, self._clock, self.order.index).words(group)
            else:
                code += self._attend(group) if isinstance(group, Cached) else self._call(group, kernels[i])
            instructions += 1
        return code, instructions

    def _pair(self, group: FusedStep | Cached | Choose) -> tuple[int, int]:
        return self._clock(group.count, group.output.name), self._clock(group.length, group.output.name)

    def _attend(self, group: Cached) -> list[int]:
        reads = [*group.reads[:2], group.reads[1] if group.node.shared else group.reads[2]]
        buffers = [self.order.index(r.signal) for r in reads] + [self.order.index(group.output)]
        buffers += [-1 if r is None else self.order.index(r.signal) for r in (group.retain, group.positions)]
        return [ATTEND, 11, *self._pair(group), self.caches.index(group), *buffers]

    def _call(self, group: FusedStep, kernel: Kernel | None) -> list[int]:
        assert kernel is not None
        reads = {r.value: r for r in group.reads}
        operands: list[list[int]] = []
        pointers = 0
        for arg in kernel.args:
            constants = sum(other.role == "const" for other in kernel.args[: len(operands)])
            operands.append(self._operand(arg, reads, group, constants))
            pointers += 2 if operands[-1][0] == RING or (operands[-1][0] == IN and operands[-1][4] > 1) else 1

        def number(symbol: str, rows: int) -> int:
            entry = (symbol, pointers, rows * group.macs)
            if entry not in self.symbols:
                self.symbols.append(entry)
            return self.symbols.index(entry)

        rows = max(kernel.variants)
        head = [*self._pair(group), number(kernel.variants[1], 1)]
        head += [number(kernel.variants[rows], rows), rows] if rows > 1 else [-1, 1]
        head += [number(kernel.apart, ROWS_APART), ROWS_APART] if kernel.apart else [-1, 1]
        head += [len(operands)]
        flat = [w for operand in operands for w in operand]
        return [CALL, 2 + len(head) + len(flat), *head, *flat]

    def _operand(self, arg: Arg, reads: dict[Any, Read], group: FusedStep, number: int) -> list[int]:
        if arg.role == "const":
            assert arg.data is not None
            if group.chosen is not None and group.chosen.chosen is not None:
                offset, size = self.units.place(group.chosen, number)
                chosen = group.chosen.chosen
                return [UNITS, self.order.index(chosen.slots), 0, offset, chosen.place, size]
            return [WEIGHTS, self.weights.add(arg.data), 0, arg.data.nbytes, 1, 0]
        if arg.role == "number":
            assert arg.length is not None
            return [FRAME, self._clock(arg.length, group.output.name), 0, 0, 1, 0]
        if arg.role == "share":
            return [SHARE, 0, 0, 0, 1, 0]
        if arg.role == "units":
            assert arg.value is not None
            slots = reads[arg.value].signal
            return [UNITS, self.order.index(slots), 0, 0, -1, self.units.bytes_of(slots, self.groups)]
        if arg.role == "out":
            place, made = part_of_frame(group)
            return [OUT, self.order.index(group.output), group.output.unit, place, 1, made]
        assert arg.value is not None
        read = reads[arg.value]
        if read.ended is not None:
            return [LAST, self.order.index(read.signal), 0, read.offset, 1, 0]
        if read.ring:
            return [RING, self.order.index(read.signal), read.stride, read.offset, read.ring, 1]
        kind = RUN if self._contiguous(read) else IN
        return [kind, self.order.index(read.signal), read.stride, read.offset, read.taps, read.dilation]

    def _words(self, code: list[int], entries: list[int], image: Image, state: int, scratch: int) -> list[int]:
        buffers: list[int] = []
        for signal in self.order:
            ring = self.rings[signal]
            fill = fill_bits(signal.fill or 0.0, signal)
            frames = 0 if signal.initial is None else len(signal.initial)
            buffers += [
                ring.space, ring.base, signal.frame_bytes, ring.slots, ring.margin, self._clock(signal.made,
                signal.name),
                self._clock(signal.length, signal.name), int(fill), ring.lead, ring.init_offset, frames, ring.tail,
            ]  # fmt: skip
        inputs: list[int] = []
        signals = [*self.low.inputs, *self.low.statics]
        streams = [*self.low.graph.inputs, *self.low.graph.statics]
        for signal, stream in zip(signals, streams, strict=True):
            inputs += [self.order.index(signal), *layout(stream), dtype_number(signal.stored)]
        outputs: list[int] = []
        for name, (view, tail) in self.low.outputs.items():
            value = self.low.graph.outputs[name]
            source = value.stream if isinstance(value, Tail) else value
            made = self._clock(self._output_clock(name, view), name)
            outputs += [
                self.order.index(view.signal), view.offset, made, self._clock(view.length, name), *layout(source),
                tail.start if tail else 0, tail.stop if tail else 0,
            ]  # fmt: skip
        caches = self.caches.words(self.weights.add, self.symbols)
        table = [w for symbol, *figures in self.symbols for w in (image.entries[symbol], *figures)]
        clocks = [w for clock in self.clocks.words for w in clock]
        counts = [
            len(self.clocks.words), len(self.order), len(self.symbols), len(code), len(signals),
            len(self.low.outputs), len(entries) // 2,
        ]  # fmt: skip
        parts = [*clocks, *buffers, *table, *inputs, *outputs, *entries, *caches, *code]
        self.weights.close()
        limits = [self.hop, self.low.graph.max_frames or 0, len(self.caches.steps)]
        header = [MAGIC, SCHEMA, 16 + len(parts), *counts, state, scratch, len(self.weights.data), *limits]
        return [*header, *parts]


def _static(signal: Signal) -> bool:
    return not isinstance(signal.made, Ended) and signal.made.is_const
