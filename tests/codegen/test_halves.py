"""float16 in memory: every number is read as it is and stored as numpy rounds it, whatever the machine has for it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from kernel_harness import value

from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.codegen.loader import load_image_for_tests
from runnel.compiler.lowering.frame import Access, FrameNode, FrameValue, Group
from runnel.tools.build import runs_here

OLD = Target.of("x86_64-linux-gnu", "x86-64-v2")
HERE = [t for t in (Target.host(), OLD) if runs_here(t)[0]]
LANES = 1 << 10
CONVERSIONS = {
    "x86-64-v3": (r"vcvtph2ps\s.*%ymm", r"vcvtps2ph\s.*%ymm"),
    "x86-64-v4": (r"vcvtph2ps\s.*%zmm", r"vcvtps2ph\s.*%zmm"),
    "armv7": (r"vcvt\.f32\.f16\s+q", r"vcvt\.f16\.f32\s+d"),
    "aarch64": (r"fcvtl2?\s+v\d+\.4s|fcvtl2?\.4s|fcvtl\s", r"fcvtn2?\s+v\d+\.[48]h|fcvtn"),
}


def module_of(target: Target, elements: int, read: bool, write: bool) -> tuple[KernelModule, str]:
    """A kernel that copies elements; which sides lie as float16."""
    x, y = value("x", (elements,)), value("y", (elements,))
    group = Group((FrameNode("identity", (x,), y),), {x: Access(half=read)}, half=write)
    module = KernelModule(target)
    return module, module.add(group).variants[1]


def copied(target: Target, source: np.ndarray, to: type) -> np.ndarray:
    """What the kernel makes of an array."""
    module, symbol = module_of(target, source.size, source.dtype == np.float16, to == np.float16)
    call = load_image_for_tests(module.build())[symbol]
    made = np.full(source.size, 77, to)
    assert call(source.ctypes.data, made.ctypes.data) == 0
    return made


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.cpu)
def test_every_half_is_read(target: Target) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    for part in (halves[: 1 << 16], halves[5 : 5 + 13].copy(), halves[777:778].copy()):
        np.testing.assert_array_equal(copied(target, part, np.float32), part.astype(np.float32))


@pytest.mark.parametrize("target", HERE, ids=lambda t: t.cpu)
def test_floats_are_rounded_half_to_even(target: Target) -> None:
    rng = np.random.default_rng(0)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    middle = ((halves[1:] + halves[:-1]) / 2).astype(np.float32)  # exact
    near = [np.nextafter(middle, np.float32(side)) for side in (0, np.inf)]
    bits = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint64).astype(np.uint32).view(np.float32)
    edges = np.array([0, np.inf, np.nan, 65504, 65519.996, 65520, 65536, 1e-8, 2.0**-25, 3e38, 1e-40], np.float32)
    for part in (middle, *near, bits, edges, -middle, -edges):
        with np.errstate(over="ignore"):
            wanted = part.astype(np.float16)
        np.testing.assert_array_equal(copied(target, part, np.float16), wanted)


@pytest.mark.parametrize("op", ["add", "conv", "reduce_sum", "softmax", "max_pool"])
def test_kernels_read_and_write_halves_as_their_float32(op: str) -> None:
    """The same bits as between a kernel that widens before it and one that rounds after it."""
    rng = np.random.default_rng(1)
    source = rng.standard_normal((1, 24)).astype(np.float16)
    x, y = value("x", (1, 24)), value("y", (1, 24))
    weights = rng.standard_normal((24, 24, 1)).astype(np.float32)
    node = {
        "add": FrameNode("add", (x, weights[:1, :, 0]), y),
        "conv": FrameNode("conv", (x, weights, None), y, {"group": 1, "strides": [], "pads": [], "dilations": []}),
        "reduce_sum": FrameNode("reduce_sum", (x,), value("y", (1, 1)), {"axes": (1,), "keepdims": True}),
        "softmax": FrameNode("softmax", (x,), y, {"axis": 1}),
        "max_pool": FrameNode("max_pool", (replaced := value("x", (1, 4, 6)),), value("y", (1, 4, 3)),
                              {"kernel": [2], "strides": [2], "pads": [0, 0], "dilations": [1]}),
    }[op]  # fmt: skip
    x = replaced if op == "max_pool" else x
    plain = _run(Group((node,), {x: Access()}), source.astype(np.float32), np.float32)
    halves = _run(Group((node,), {x: Access(half=True)}, half=True), source, np.float16)
    np.testing.assert_array_equal(halves, plain.astype(np.float16))


def _run(group: Group, source: np.ndarray, to: type) -> np.ndarray:
    module = KernelModule(Target.host())
    kernel = module.add(group)
    call = load_image_for_tests(module.build())[kernel.variants[1]]
    made = np.zeros(64, to)
    padded = np.zeros(64, source.dtype)
    padded[: source.size] = source.reshape(-1)
    constants = [arg.data for arg in kernel.args if arg.role == "const" and arg.data is not None]
    pointers = iter([c.ctypes.data for c in constants])
    places = {"frame": padded.ctypes.data, "out": made.ctypes.data}
    assert call(*(places.get(arg.role) or next(pointers) for arg in kernel.args)) == 0
    return made[: int(np.prod(group.output.shape))]


@pytest.mark.parametrize("name", CONVERSIONS)
def test_boards_convert_vectors(name: str) -> None:
    arms = {"aarch64": ("aarch64-linux-gnu", "cortex-a53"), "armv7": ("armv7l-linux-gnueabihf", "cortex-a7")}
    target = Target.of(*arms.get(name, ("x86_64-linux-gnu", name)))
    for pattern, (read, write) in zip(CONVERSIONS[name], ((True, False), (False, True)), strict=True):
        module, _ = module_of(target, LANES, read, write)
        assert re.search(pattern, module.lowered().inspect_source("asm")), (name, pattern)


@pytest.mark.parametrize("rows", [1, 4])
def test_processors_with_float16_arithmetic_multiply_eight_at_once(rows: int) -> None:
    x, y = value("x", (1, 64)), value("y", (1, 96))
    codes = np.random.default_rng(2).standard_normal((3, 64, 96)).astype(np.float16)
    node = FrameNode("matmul_blocks", (x, codes, None, None, None), y, {"bits": 16, "block": 16, "half": True})
    module = KernelModule(Target.of("aarch64-linux-gnu", "cortex-a76", ("+fullfp16",)))
    assert module.multiplies_halves and not KernelModule(Target.of("aarch64-linux-gnu", "cortex-a53")).multiplies_halves
    module.add(Group((node,), {x: Access(3, False, 64, False, 64, True)}, (rows,) if rows > 1 else ()))
    asm = module.lowered().inspect_source("asm")
    products = re.findall(r"\sfmla\s+(v\d+\.\S+),|\sfmla\.(8h)", asm)
    assert len(products) >= 64 and all("8h" in "".join(found) for found in products)
    assert not re.search(r"fmadd\s+[hs]\d", asm)


OLD_CPUS = [("x86_64-linux-gnu", "x86-64-v2"), ("armv7l-linux-gnueabihf", "cortex-a7")]


@pytest.mark.parametrize(("triple", "cpu"), OLD_CPUS)
def test_no_function_is_called_where_nothing_converts(triple: str, cpu: str) -> None:
    """The linker refuses what an image would import."""
    for read, write in ((True, False), (False, True)):
        module, symbol = module_of(Target.of(triple, cpu), LANES + 3, read, write)
        assert symbol in module.build().entries


def test_frames_of_other_types_are_left_alone() -> None:
    x = FrameValue("x", (16,), "int32")
    group = Group((FrameNode("cast", (x,), value("y", (16,)), {"to": "float32"}),), {x: Access()}, half=True)
    numbers = np.array([1, 2047, 2049, -4099, 70000, *range(11)], np.int32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(_run(replace(group), numbers, np.float16), numbers.astype(np.float16))
