"""Kernels that know the number of the frame they make."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_harness import aligned, value

from runnel.compiler.codegen import KernelModule, Target, frame_elements
from runnel.compiler.codegen.loader import load_image_for_tests
from runnel.compiler.lowering.frame import FrameNode, FrameValue, Group
from runnel.compiler.streaming.count import Count

ROWS = 4


def run(nodes: list[FrameNode], first: int, length: int = -1, rows: int = ROWS) -> np.ndarray:
    """The frames of ``rows`` rows from number ``first`` on."""
    out = nodes[-1].output
    pitch = frame_elements(out.shape)
    module = KernelModule(Target.host())
    kernel = module.add(Group(tuple(nodes), {}, (ROWS,), pitch))
    entry = load_image_for_tests(module.build())[kernel.variants[rows]]
    result, words = aligned(rows * pitch, out.dtype), np.array([first, length], np.int64)
    addresses, keep = [], []
    for arg in kernel.args:
        if arg.role == "const":
            assert arg.data is not None
            keep.append(aligned(arg.data.size, str(arg.data.dtype)))
            keep[-1][:] = arg.data
            addresses.append(keep[-1].ctypes.data)
        else:
            addresses.append(words.ctypes.data if arg.role == "number" else result.ctypes.data)
    assert entry(*addresses) == 0
    size = int(np.prod(out.shape, dtype=np.int64))
    return result.reshape(rows, pitch)[:, :size].reshape(rows, *out.shape)


def numbers(**attrs: int) -> tuple[FrameNode, FrameValue]:
    n = value("n", (), "int64")
    return FrameNode("frame_number", (), n, {"length": Count.time(), **attrs}), n


@pytest.mark.parametrize("first", [0, 2**24 - 2, 2**31 - 2, 2**40])
def test_frame_numbers_are_exact_far_into_a_stream(first: int) -> None:
    node, _ = numbers(start=-3, step=2)
    np.testing.assert_array_equal(run([node], first), 2 * (first + np.arange(ROWS)) - 3)
    np.testing.assert_array_equal(run([node], first, rows=1), [2 * first - 3])


@pytest.mark.parametrize("width", [1, 5, 16, 40])
def test_arithmetic_on_frame_numbers(width: int) -> None:
    node, n = numbers()
    f, y = value("f", (), "float32"), value("y", (width,))
    rates = np.linspace(0.1, 1, width).astype(np.float32)
    cast = FrameNode("cast", (n,), f, {"to": "float32"})
    got = run([node, cast, FrameNode("mul", (f, rates), y)], 7)
    np.testing.assert_array_equal(got, (7 + np.arange(ROWS, dtype=np.float32))[:, None] * rates)


@pytest.mark.parametrize("shape", [(), (3,), (2, 20)])
@pytest.mark.parametrize("wrap", [False, True])
def test_rows_of_a_table(shape: tuple[int, ...], wrap: bool) -> None:
    table = np.random.default_rng(0).standard_normal((6, *shape)).astype(np.float32)
    node = FrameNode("table_row", (table,), value("y", shape), {"length": Count.time(), "wrap": wrap})
    rows = np.arange(3, 3 + ROWS)
    np.testing.assert_array_equal(run([node], 3), table[rows % 6 if wrap else np.minimum(rows, 5)])
    np.testing.assert_array_equal(run([node], 3, rows=1)[0], table[3])
