"""The hot loops of kernels: vector multiply-adds for every board, dot products of codes where there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import ROWS, Case, Runner, case, value

from runnel import targets
from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.codegen.module import object_bytes
from runnel.compiler.lowering.frame import FrameNode
from runnel.tools.build import kernel_target, runs_here

VECTOR = {  # the multiply-adds that are wanted, as each assembler writes them
    "rpi5": r"fmla\s+v\d+\.4s|fmla\.4s", "rpi3": r"fmla\s+v\d+\.4s|fmla\.4s", "armv7": r"vfma\.f32\s+q\d+",
    "x86-64-v3": r"vfn?madd\d+ps\s.*%ymm", "x86-64-v4": r"vfn?madd\d+ps\s.*%zmm",
}  # fmt: skip
DENSE = ("conv over time", "matmul", "image")
SPILL = {"rpi5": r"(?:str|stp|ldr|ldp)\s+q\d+,.*\[sp", "x86-64-v4": r"vmovups.*\(%rsp\)"}  # with 32 registers
SCALAR = r"fmadd\s+s\d|vfma\.f32\s+s\d|vfn?madd\d+ss"
LABEL = re.compile(r"^(\.?L[\w.]+):")
BRANCH = re.compile(
    r"^\s+(?:b|b\.\w+|b(?:ne|eq|lo|lt|hi|gt|ls|le|hs|ge|mi|pl|cc|cs)|cbn?z|tbn?z|j\w+)\s+.*?(\.?L[\w.]+)\s*$"
)


def kernels() -> dict[str, Case]:
    """One of each kind that takes the time."""
    rng = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros((ROWS, *shape), np.float32)

    found = {}
    x, y = value("x", (1, 64)), value("y", (1, 64))
    node = FrameNode("conv", (x, weights(64, 64, 3), weights(64)), y, {"group": 1})
    found["conv over time"] = case("conv", [node], {x: zeros(1, 64)}, {x: (3, True, 1)})
    x, y = value("x", (1, 16, 33)), value("y", (1, 16, 33))
    node = FrameNode("conv", (x, weights(16, 16, 2, 3), None), y, {"group": 1, "strides": [1], "pads": [1, 1]})
    found["conv over time and frequency"] = case("conv", [node], {x: zeros(1, 16, 33)}, {x: (2, True, 1)})
    x, y = value("x", (1, 96)), value("y", (1, 192))
    found["matmul"] = case("matmul", [FrameNode("matmul", (x, weights(96, 192), None), y)], {x: zeros(1, 96)})
    x, y = value("x", (12, 1, 96)), value("y", (12, 1, 1, 32))
    h = value("h", (1, 1, 32))
    node = FrameNode("gru_sequence", (x, weights(1, 32, 96), weights(1, 96), h), y,
                     {"reverse": [False], "linear_before_reset": 1})  # fmt: skip
    found["GRU"] = case("gru", [node], {x: zeros(12, 1, 96), h: zeros(1, 1, 32)})
    for name, group in (("image", 1), ("image, a filter a channel", 64)):
        x, y = value("x", (1, 30, 40, 64)), value("y", (1, 30, 40, 64))
        attrs = {"group": group, "strides": [1, 1], "pads": [1] * 4, "channels_last": "both"}
        node = FrameNode("conv", (x, weights(64, 64 // group, 1, 3, 3), weights(64)), y, attrs)
        found[name] = case("conv", [node], {x: zeros(1, 30, 40, 64)})
    return found


def disassembled(module: KernelModule, entry: str, tmp_path: Path) -> str:
    """One kernel's code as LLVM writes it; llvm-objdump, where it is, must find it in the object."""
    lowered = module.lowered()
    if (tool := shutil.which("llvm-objdump")) is not None:
        path = tmp_path / "kernels.o"
        path.write_bytes(object_bytes(lowered))
        seen = subprocess.run([tool, "-d", str(path)], capture_output=True, text=True, check=True).stdout
        assert f"<{entry}>:" in seen
    text = str(lowered.inspect_source("asm"))
    return re.split(r"\n\.Lfunc_end", text.split(f"\n{entry}:")[1])[0]


def innermost_loops(code: str) -> list[list[str]]:
    """The lines from a label to the branch back to it, of loops that hold no other."""
    lines = code.splitlines()
    at = {match[1]: i for i, line in enumerate(lines) if (match := LABEL.match(line))}
    spans = []
    for i, line in enumerate(lines):
        if (match := BRANCH.match(line)) and at.get(match[1], i) < i:
            spans.append((at[match[1]], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [lines[a : b + 1] for a, b in inner]


def hottest(code: str, wanted: str) -> list[str]:
    """The innermost loop with the most of what is wanted."""
    return max(innermost_loops(code), key=lambda loop: len(re.findall(wanted, "\n".join(loop))), default=[])


@pytest.mark.parametrize("target", VECTOR)
@pytest.mark.parametrize("kind", kernels())
def test_hot_loops_are_vector_multiply_adds(kind: str, target: str, tmp_path: Path) -> None:
    module = KernelModule(kernel_target(targets.load(target)))
    kernel = module.add(kernels()[kind].group)
    code = disassembled(module, kernel.variants[1], tmp_path)
    loop = "\n".join(hottest(code, VECTOR[target]))
    assert len(re.findall(VECTOR[target], loop)) >= 2, f"no vector multiply-adds in the hot loop of {kind}:\n{loop}"
    assert not re.findall(SCALAR, loop), f"scalar multiply-adds in the hot loop of {kind}:\n{loop}"
    if target in SPILL and kind in DENSE:
        assert not re.findall(SPILL[target], loop), f"sums leave the registers in the hot loop of {kind}:\n{loop}"
    assert not re.findall(r"\t(?:bl|blx|call\w*)\s", loop)


CODES = {"rpi5": r"\bsdot\s", "jetson-orin-nano": r"\bsdot\s", "rk3588": r"\bsdot\s", "rpi4": r"\bsadalp\s"}


def of_codes(kind: str, zero: int, inputs: int, outputs: int, groups: int = 1, taps: int = 3) -> Case:
    """A convolution of codes by int8 weights."""
    rng = np.random.default_rng(inputs)
    x, y = value("x", (1, inputs * groups), kind), value("y", (1, outputs), "int32")
    w = rng.integers(-128, 128, (outputs, inputs, taps)).astype(np.int8)
    frames = rng.integers(*(0, 256) if kind == "uint8" else (-128, 128), (ROWS + taps - 1, *x.shape)).astype(kind)
    node = FrameNode("conv", (x, w), y, {"group": groups, "zero_point": zero})
    return case("conv", [node], {x: frames}, {x: (taps, True, 1)})


def test_codes_take_dot_products_where_there_are(tmp_path: Path) -> None:
    vnni = Target.of("x86_64-linux-gnu", "x86-64-v4", ("+avx512vnni",))
    boards = {name: (kernel_target(targets.load(name)), wanted) for name, wanted in CODES.items()}
    pairs = Target.of("x86_64-linux-gnu", "x86-64-v3"), r"\bvpmaddwd\s.*%ymm"
    for target, wanted in [*boards.values(), (vnni, r"\bvpdpbusd\s.*%zmm"), pairs]:
        for kind in ("int8", "uint8"):
            module = KernelModule(target)
            kernel = module.add(of_codes(kind, 3, 512, 64).group)
            loop = "\n".join(hottest(disassembled(module, kernel.variants[1], tmp_path), wanted))
            assert len(re.findall(wanted, loop)) >= 4, f"{target}, {kind}:\n{loop}"


LEVELS = [Target.host(), *(Target.of("x86_64-linux-gnu", f"x86-64-v{n}") for n in (2, 3, 4))]


@pytest.mark.parametrize("target", LEVELS, ids=["host", "v2", "v3", "v4"])
@pytest.mark.parametrize("kind", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups"), [(64, 64, 1), (7, 20, 1), (4, 16, 1), (24, 33, 1), (8, 32, 2)]
)
def test_dot_products_are_exact(
    kind: str, inputs: int, outputs: int, groups: int, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this machine, with the instructions that it has, against numpy; extremes among them."""
    if not runs_here(target)[0]:
        pytest.skip("this processor has not the features of that level")
    monkeypatch.setattr(Target, "host", lambda: target)
    for zero in (0, 3, 128 if kind == "uint8" else -128):
        c = of_codes(kind, zero, inputs, outputs, groups)
        x, w = next(iter(c.frames.items()))[1], c.group.nodes[0].inputs[1]
        one, many = Runner([c]).run(c)
        wide = x[:, 0].astype(np.int64) - zero
        each = outputs // groups
        for row in range(ROWS):
            for g in range(groups):
                part = wide[row : row + 3, g * inputs : (g + 1) * inputs]
                expected = np.einsum("oit,ti->o", w[g * each : (g + 1) * each].astype(np.int64), part)
                np.testing.assert_array_equal(one[row, 0, g * each : (g + 1) * each], expected)
        assert one.tobytes() == many.tobytes()
