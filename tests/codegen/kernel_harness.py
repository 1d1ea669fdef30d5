"""Runs groups through the code generator: memory laid out as the ABI says, padding poisoned with NaN."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from runnel.compiler.codegen import Image, Kernel, KernelModule, Target, frame_elements
from runnel.compiler.codegen.loader import load_image_for_tests
from runnel.compiler.lowering.frame import Access, FrameNode, FrameValue, Group

SHARES = 128  # of kernels that are made to be shared
ROWS = 4
POISON = {"float32": np.nan, "int64": -(2**40), "int32": -(2**20), "int16": -7777, "int8": 77, "uint8": 177, "bool": 1}
STORE = {"bool": "int8"}


def aligned(elements: int, dtype: str) -> np.ndarray:
    """A poisoned array that begins at a multiple of 64 bytes."""
    kind = np.dtype(STORE.get(dtype, dtype))
    raw = np.empty(elements * kind.itemsize + 128, np.uint8)
    start = -raw.ctypes.data % 64
    array = raw[start : start + elements * kind.itemsize].view(kind)
    array[:] = POISON[dtype]
    return array


@dataclass
class Case:
    """One group and inputs for ``ROWS`` output rows.

    frames: for each input (rows + taps - 1 at stride 1, or what ``stride`` asks for) frames of the value's shape.
    """

    name: str
    group: Group
    frames: dict[FrameValue, np.ndarray]
    stride: dict[FrameValue, int] = field(default_factory=dict)
    kernel: Kernel | None = None


def value(name: str, shape: tuple[int, ...], dtype: str = "float32") -> FrameValue:
    """A frame value."""
    return FrameValue(name, shape, dtype)


def case(
    name: str,
    nodes: list[FrameNode],
    inputs: dict[FrameValue, np.ndarray],
    taps: dict[FrameValue, tuple[int, bool, int]] | None = None,
) -> Case:
    """A case from nodes and frames. taps: (taps, contiguous, rows' stride in frames) of the windowed inputs."""
    taps = taps or {}
    access, stride = {}, {}
    for v in inputs:
        count, contiguous, step = taps.get(v, (1, False, 1))
        stride[v] = step
        access[v] = Access(count, contiguous, step * frame_elements(v.shape))
    output = nodes[-1].output
    group = Group(tuple(nodes), access, (ROWS,), frame_elements(output.shape))
    return Case(name, group, inputs, stride)


def pack(v: FrameValue, frames: np.ndarray) -> np.ndarray:
    """Frames one after the other in memory, each with its padding."""
    pitch = frame_elements(v.shape)
    memory = aligned(max(len(frames) * pitch, 1), v.dtype)
    for i, frame in enumerate(frames):
        flat = np.ascontiguousarray(frame).reshape(-1)
        memory[i * pitch : i * pitch + flat.size] = flat
    return memory


class Runner:
    """Builds many cases in one image and runs them."""

    def __init__(self, cases: list[Case], target: Target | None = None) -> None:
        self.module = KernelModule(target or Target.host())
        self.cases = cases
        for c in cases:
            c.kernel = self.module.add(c.group)
        self.image: Image = self.module.build()
        self.entries = load_image_for_tests(self.image) if target is None else {}

    def run(self, c: Case) -> tuple[np.ndarray, np.ndarray]:
        """The output frames of all rows, made by the one-row kernel and by the kernel for ``ROWS`` rows."""
        one = np.stack([self._call(c, 1, row)[0] for row in range(ROWS)])
        return one, self._call(c, ROWS, 0)

    def _call(self, c: Case, rows: int, first: int) -> np.ndarray:
        assert c.kernel is not None
        out = c.group.output
        pitch = frame_elements(out.shape)
        guard = 64
        result = aligned(rows * pitch + guard, out.dtype)
        result[rows * pitch :] = 77
        keep: list[np.ndarray] = [result]
        addresses: list[int] = []
        share = aligned(2, "int32")
        share[:] = 0, 1
        for arg in c.kernel.args:
            if arg.role == "share":
                addresses.append(share.ctypes.data)
                share[1] = SHARES
            elif arg.role == "out":
                addresses.append(result.ctypes.data)
            elif arg.role == "const":
                assert arg.data is not None
                memory = aligned(arg.data.size, "float32" if arg.data.dtype == np.float32 else str(arg.data.dtype))
                memory[:] = arg.data
                keep.append(memory)
                addresses.append(memory.ctypes.data)
            else:
                addresses += self._input(c, arg, first, keep)
        for number in reversed(range(share[1])):  # in any order
            share[0] = number
            assert self.entries[c.kernel.variants[rows]](*addresses) == 0
        assert (result[rows * pitch :] == 77).all(), f"{c.name} wrote past its output"
        size = int(np.prod(out.shape, dtype=np.int64))
        real = result[: rows * pitch].reshape(rows, pitch)[:, :size].reshape(rows, *out.shape)
        return real.astype(np.bool_) if out.dtype == "bool" else real.copy()

    def _input(self, c: Case, arg: object, first: int, keep: list[np.ndarray]) -> list[int]:
        v, access = arg.value, arg.access  # type: ignore[attr-defined]
        step = c.stride[v]
        memory = pack(v, c.frames[v])
        item = memory.itemsize
        pitch = frame_elements(v.shape)
        if access.taps == 1 or access.contiguous:
            keep.append(memory)
            return [memory.ctypes.data + first * step * pitch * item]
        # Taps far apart and out of order, each followed by the frames of later rows, as in a ring.
        span = (ROWS - 1) * step + 1
        ring = aligned(access.taps * span * pitch, v.dtype)
        table = np.zeros(max(access.taps, 16), np.int32)
        for tap in range(access.taps):
            at = (access.taps - 1 - tap) * span * pitch
            part = memory[tap * pitch : (tap + span) * pitch]
            ring[at : at + part.size] = part
            table[tap] = at + first * step * pitch
        keep += [ring, table]
        return [ring.ctypes.data, table.ctypes.data]


def random_frames(rng: np.random.Generator, v: FrameValue, count: int) -> np.ndarray:
    """``count`` random frames."""
    shape = (count, *v.shape)
    if v.dtype == "bool":
        return rng.random(shape) < 0.5
    if v.dtype.startswith("int"):
        return rng.integers(-5, 6, shape).astype(v.dtype)
    return rng.standard_normal(shape).astype(v.dtype)


def fresh(v: FrameValue) -> FrameValue:
    """Another value of the same kind."""
    return replace(v)
