"""Plans written by hand, with kernels compiled from kernels.c."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.runtime import native
from runnel.runtime.backends.memory import aligned
from runnel.runtime.backends.native import NativeProgram

HERE = Path(__file__).resolve().parent
STATE, SCRATCH = 1, 2
WEIGHTS, IN, OUT, RUN, LAST, FRAME, RING, SHARE, UNITS = range(9)
FILL, REFLECT, EDGE = range(3)
needs_core = not native.LIBRARY.exists() or shutil.which("cc") is None
SKIP = "needs the native core and a C compiler"
ARGUMENTS = {"conv": 5, "conv_rows": 5, "conv_run": 4, "conv_run_rows": 4, "upsample": 4, "leaky": 5, "fails": 4}
ARGUMENTS |= {"conv_shared": 6, "conv_shared_apart": 6, "conv_apart": 5}
ARGUMENTS |= {"conv_run_apart": 4, "numbers": 3, "numbers_rows": 3, "ring": 3}


@cache
def kernels() -> tuple[bytes, dict[str, int]]:
    """The flat image of kernels.c and its entries."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.so"
        flags = ["-O2", "-nostdlib", "-shared", "-fPIC", "-ffreestanding", "-fno-builtin", "-ffp-contract=off"]
        flags += ["-fno-tree-loop-distribute-patterns", "-Wl,--build-id=none"]
        subprocess.run(["cc", *flags, str(HERE / "kernels.c"), "-o", str(out)], check=True)
        return _flatten(out.read_bytes())


def _flatten(elf: bytes) -> tuple[bytes, dict[str, int]]:
    """What an ELF64 shared object looks like in memory, and the addresses of its functions."""
    headers, sections = struct.unpack_from("<QQ", elf, 32)
    header_size, header_count, section_size, section_count = struct.unpack_from("<4H", elf, 54)
    image = bytearray()
    for i in range(header_count):
        kind, _, offset, address, _, size, memory = struct.unpack_from("<2L5Q", elf, headers + i * header_size)
        if kind == 1:
            image += bytes(max(0, address + memory - len(image)))
            image[address : address + size] = elf[offset : offset + size]
    entries = {}
    table = [struct.unpack_from("<2L4Q2L2Q", elf, sections + i * section_size) for i in range(section_count)]
    for _, kind, _, _, offset, size, link, *_ in table:
        if kind == 11:  # SHT_DYNSYM
            names = table[link][4]
            for at in range(offset, offset + size, 24):
                name, _, _, section, value = struct.unpack_from("<LBBHQ", elf, at)
                text = elf[names + name : elf.index(b"\0", names + name)].decode()
                if section and text in ARGUMENTS:
                    entries[text] = value
    return bytes(image), entries


def executable(image: bytes) -> NDArray[np.uint8]:
    memory = mmap.mmap(-1, len(image), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(image)
    return np.frombuffer(memory, np.uint8)


def bits(value: float) -> int:
    return int(np.array(value, np.float32).view(np.int32))


@dataclass
class Plan:
    """Collects the words of docs/plan.md. Clock 0 is the input."""

    hop: int = 1
    clocks: list[list[int]] = field(default_factory=lambda: [[0, 0, 0, 1, 1, 0]])
    buffers: list[list[int]] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)
    inputs: list[list[int]] = field(default_factory=list)
    outputs: list[list[int]] = field(default_factory=list)
    code: list[int] = field(default_factory=list)
    instructions: int = 0
    weights: bytearray = field(default_factory=bytearray)
    sizes: dict[int, int] = field(default_factory=lambda: {STATE: 128, SCRATCH: 0})

    def clock(self, mul: int = 1, add: int = 0, div: int = 1, a: int = 0) -> int:
        return self._clock([1, a, 0, mul, div, add])

    def least(self, a: int, b: int) -> int:
        return self._clock([2, a, b, 1, 1, 0])

    def const(self, value: int) -> int:
        return self._clock([4, 0, 0, 1, 1, value])

    def ended(self, made: int, length: int) -> int:
        return self._clock([5, made, length, 1, 1, 0])

    def _clock(self, words: list[int]) -> int:
        self.clocks.append(words)
        return len(self.clocks) - 1

    def constant(self, value: Any, dtype: Any = np.float32) -> int:
        self.weights += bytes(-len(self.weights) % 64)
        at = len(self.weights)
        self.weights += np.ascontiguousarray(value, dtype).tobytes()
        return at

    def buffer(self, elements: int, slots: int, made: int = 0, length: int = 0, space: int = STATE, margin: int = 0,
               fill: float = 0.0, lead: int = 0, initial: Any = None, tail: int = 0) -> int:  # fmt: skip
        offset, frames = 0, 0
        if initial is not None:
            offset, frames = self.constant(initial), len(initial)
        base = self.sizes[space]
        self.sizes[space] += -(-(slots + margin) * elements * 4 // 64) * 64
        words = [space, base, elements * 4, slots, margin, made, length, bits(fill), lead, offset, frames, tail]
        self.buffers.append(words)
        return len(self.buffers) - 1

    def _kernel(self, name: str) -> int:
        if name not in self.kernels:
            self.kernels.append(name)
        return self.kernels.index(name)

    def call(self, kernel: str, made: int, length: int, operands: Sequence[Sequence[int]], rows: int = 1,
             apart: bool = False) -> None:  # fmt: skip
        many = self._kernel(kernel + "_rows") if rows > 1 else -1
        # Of weights the fourth word is how many bytes there are; what is written is whole frames.
        rest = {WEIGHTS: (0, 0, 4, 1, 1), OUT: (0, 0, 0, 1, 0)}
        flat = [w for o in operands for w in (*o, *rest.get(o[0], (0, 0, 0, 1, 1))[len(o) - 1 :])]
        self.code += [1, 10 + len(flat), made, length, self._kernel(kernel), many, rows]
        self.code += [self._kernel(kernel + "_apart") if apart else -1, 4, len(operands), *flat]
        self.instructions += 1

    def repeat(self, made: int, length: int, body: int) -> None:
        self.code += [2, 5, made, length, body]
        self.instructions += 1

    def copy(self, made: int, length: int, source: int, target: int, offset: int, mode: int, source_length: int,
             fill: float = 0.0) -> None:  # fmt: skip
        self.code += [3, 10, made, length, source, target, offset, mode, source_length, bits(fill)]
        self.instructions += 1

    def skip_if(self, made: int, length: int, flags: int, wanted: int, covered: int) -> None:
        self.code += [4, 7, made, length, flags, wanted, covered]
        self.instructions += 1

    def fetch(self, made: int, length: int, source: int, target: int, table: int, row: int, rows: int, apart: int,
              stride: int = 1, offset: int = 0) -> None:  # fmt: skip
        self.code += [7, 12, made, length, source, target, stride, offset, table, row, rows, apart]
        self.instructions += 1

    def choose(
        self, made: int, length: int, source: int, target: int, table: int, units: int, unit: int, sums: int, most: int,
        more: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.code += [8, 11 + len(more), made, length, source, target, table, units, unit, sums, most, *more]
        self.instructions += 1

    def input(self, buffer: int, outer: int = 1, inner: int | None = None) -> None:
        self.inputs.append([buffer, outer, inner or self.buffers[buffer][2] // outer, 1])

    def output(
        self, buffer: int, made: int, length: int, shift: int = 0, outer: int = 1, tail: tuple[int, int] = (0, 0)
    ) -> None:
        self.outputs.append([buffer, shift, made, length, outer, self.buffers[buffer][2] // outer, *tail])

    def words(self, entries: dict[str, int]) -> bytes:
        tables: list[list[list[int]]] = [
            self.clocks, self.buffers, [[entries[k], ARGUMENTS[k], 0] for k in self.kernels], self.inputs, self.outputs,
            [[0, self.instructions]],
        ]  # fmt: skip
        counts = [len(tables[0]), len(tables[1]), len(tables[2]), len(self.code), *(len(t) for t in tables[3:])]
        body = [w for table in tables for row in table for w in row] + self.code
        magic = int.from_bytes(b"RNLPLAN\0", "little")
        sizes = [self.sizes[STATE], self.sizes[SCRATCH], len(self.weights), self.hop, 0, 0]
        return struct.pack(f"<{16 + len(body)}q", magic, 2, 16 + len(body), *counts, *sizes, *body)

    def manifest(self) -> dict[str, Any]:
        def ports(rows: list[list[int]], outer: int, inner: int, prefix: str) -> list[dict[str, Any]]:
            return [
                {"name": f"{prefix}{i}", "dtype": "float32", "axis": 1, "latency_frames": 0,
                 "shape": [r[outer], None, r[inner] // 4]}
                for i, r in enumerate(rows)
            ]  # fmt: skip

        return {
            "name": "hand", "hop": self.hop, "latency_frames": 0, "clock": {"rate": None}, "program_hash": "ab" * 32,
            "inputs": ports(self.inputs, 1, 2, "x"), "outputs": ports(self.outputs, 4, 5, "y"),
        }  # fmt: skip

    def program(self, poison: bool = True, **changes: Any) -> NativeProgram:
        image, entries = kernels()
        weights = aligned(len(self.weights))
        weights[:] = np.frombuffer(bytes(self.weights), np.uint8)
        return NativeProgram(self.manifest() | changes, self.words(entries), weights, executable(image), poison)


def play(program: Any, x: NDArray[Any], chunks: Sequence[int], axis: int = 1) -> NDArray[Any]:
    """Push x in chunks of the given sizes (the rest at once), flush, and join the outputs along axis 1."""
    stream = program.stream()
    pieces, at = [], 0
    for size in [*chunks, x.shape[axis]]:
        part = x[(slice(None),) * axis + (slice(at, at + size),)]
        pieces.append(stream.push(part))
        at += part.shape[axis]
    pieces.append(stream.flush())
    return np.concatenate(pieces, axis=axis)


def conv_plan(taps: int = 3, cin: int = 4, cout: int = 4, hop: int = 1, stride: int = 1, dilation: int = 1,
              pads: tuple[int, int] = (1, 1), rows: int = 1, run: bool = False, outer: int = 1,
              seed: int = 0, apart: bool = False, shared: bool = False) -> tuple[Plan, NDArray[Any]]:  # fmt: skip
    """One convolution over time; the weights are (taps, cin, cout)."""
    w = np.random.default_rng(seed).standard_normal((taps, cin, cout)).astype(np.float32)
    left, right = pads
    reach = (taps - 1) * dilation + 1
    plan = Plan(hop)
    made = plan.clock(1, left - reach + stride, stride)
    length = plan.clock(1, left + right - reach + stride, stride)
    margin = (taps - 1 if run else 0) + (rows - 1) * stride if run or rows > 1 else 0
    slots = max(reach + hop + stride, margin)
    x = plan.buffer(cin, slots, lead=left, tail=1, margin=margin)
    y = plan.buffer(cout, hop + 1 + rows, made=made, length=length, margin=rows - 1)
    plan.input(x, outer)
    run = run or taps == 1
    kernel = "conv_run" if run else "conv"
    params = plan.constant([cin, cout, taps, rows, stride * cin, cout], np.int32)
    read = [RUN if run else IN, x, stride, -left, taps, dilation]
    operands = [read, [WEIGHTS, plan.constant(w)], [WEIGHTS, params], [OUT, y, 1]]
    if shared:
        kernel, operands = kernel + "_shared", [*operands[:3], [SHARE, 0], operands[3]]
    plan.call(kernel, made, length, operands, rows, apart)
    plan.output(y, made, length, outer=outer)
    return plan, w


def conv(x: NDArray[Any], w: NDArray[Any], stride: int, dilation: int, pads: tuple[int, int]) -> NDArray[Any]:
    """The offline convolution: x (frames, cin), in float64."""
    padded = np.pad(x.astype(np.float64), (pads, (0, 0)))
    reach = (len(w) - 1) * dilation + 1
    count = max(0, (len(padded) - reach) // stride + 1)
    out = np.zeros((count, w.shape[2]))
    for k in range(len(w)):
        out += padded[k * dilation :][: (count - 1) * stride + 1 : stride][:count] @ w[k].astype(np.float64)
    return out
