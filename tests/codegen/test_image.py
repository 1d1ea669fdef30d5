"""The flat image: the same bytes each time, no imports, and errors that name what is wrong."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from kernel_harness import ROWS, Case, case, value

from runnel.compiler.codegen import CodegenError, KernelModule, Target, frame_elements
from runnel.compiler.codegen.image import link
from runnel.compiler.codegen.module import object_bytes
from runnel.compiler.lowering.frame import FrameNode

ARM = Target("aarch64-linux-gnu", "cortex-a76")
TARGETS = {
    "host": Target.host(), "aarch64": ARM,
    "armv7": Target.of("armv7l-linux-gnueabihf", "cortex-a7", ("+neon", "+vfp4")),
    "x86-64-v2": Target.of("x86_64-linux-gnu", "x86-64-v2"), "x86-64-v3": Target.of("x86_64-linux-gnu", "x86-64-v3"),
}  # fmt: skip


def cases() -> list[Case]:
    """A kernel of each kind."""
    rng = np.random.default_rng(0)
    found = []
    for op in ("exp", "tanh", "sigmoid", "log", "erf", "gelu", "softplus", "round", "floor", "sqrt"):
        x, y = value("x", (1, 100)), value("y", (1, 100))
        found.append(case(op, [FrameNode(op, (x,), y)], {x: np.zeros((ROWS, 1, 100), np.float32)}))
    a, c, y = value("a", (40,)), value("c", (40,)), value("y", (40,))
    found.append(case("pow", [FrameNode("pow", (a, c), y)], dict.fromkeys((a, c), np.zeros((ROWS, 40), np.float32))))
    for cin, cout, groups in ((64, 64, 1), (100, 3, 1), (33, 33, 33)):
        x, y, z = value("x", (1, cin)), value("y", (1, cout)), value("z", (1, cout))
        w = rng.standard_normal((cout, cin // groups, 3)).astype(np.float32)
        nodes = [FrameNode("conv", (x, w, None), y, {"group": groups}), FrameNode("sigmoid", (y,), z)]
        found.append(case("conv", nodes, {x: np.zeros((ROWS, 1, cin), np.float32)}, {x: (3, groups == 1, 1)}))
    x, y = value("x", (1, 8, 33)), value("y", (1, 8, 17))
    w = rng.standard_normal((8, 8, 2, 3)).astype(np.float32)
    node = FrameNode("conv", (x, w, None), y, {"group": 1, "strides": [2], "pads": [1, 1]})
    found.append(case("spatial", [node], {x: np.zeros((ROWS, 1, 8, 33), np.float32)}, {x: (2, False, 1)}))
    x, y = value("x", (3, 50)), value("y", (3, 50))
    found.append(case("softmax", [FrameNode("softmax", (x,), y)], {x: np.zeros((ROWS, 3, 50), np.float32)}))
    x, y, z = value("x", (3, 50)), value("y", (3, 1)), value("z", (3, 1))
    node = FrameNode("reduce_mean", (x,), y, {"axes": [1]})
    found.append(case("mean", [node], {x: np.zeros((ROWS, 3, 50), np.float32)}))
    return found


def module(target: Target) -> KernelModule:
    made = KernelModule(target)
    for c in cases():
        made.add(c.group)
    return made


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_image_is_the_same_twice(target: Target) -> None:
    first, second = module(target).build(), module(target).build()
    assert first == second
    assert first.arch == target.arch
    assert len(first.code) > 1000
    assert all(0 <= offset < len(first.code) for offset in first.entries.values())


def test_object_without_rounding_is_refused_by_the_import() -> None:
    with pytest.raises(CodegenError, match="floor"):
        module(Target("x86_64-linux-gnu", "x86-64")).build()


def test_object_for_another_machine_is_refused() -> None:
    made = module(ARM)
    with pytest.raises(CodegenError, match="aarch64"):
        link(object_bytes(made.lowered()), [], "x86_64")


def test_what_is_not_an_object_is_refused() -> None:
    with pytest.raises(CodegenError, match="ELF"):
        link(b"not an object", [], "x86_64")
    with pytest.raises(CodegenError, match="relocatable"):
        link(b"\x7fELF\x02\x01" + bytes(10) + struct.pack("<HH", 3, 62) + bytes(60), [], "x86_64")


def test_stack_of_kernels_is_small() -> None:
    text = str(module(Target.host()).lowered().inspect_source("asm"))
    sizes = [
        int(line.split("$")[1].split(",")[0]) for line in text.splitlines() if "subq\t$" in line and "%rsp" in line
    ]
    assert max(sizes, default=0) <= 16384


def test_frame_elements() -> None:
    assert [frame_elements(s) for s in ((), (1, 15), (16,), (17,), (1, 257), (2, 8))] == [1, 15, 16, 32, 272, 16]
