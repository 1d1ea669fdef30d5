"""Products by weights of few bits, against float64, and the instructions of their hot loops."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import ROWS, Case, Runner, case, random_frames, value
from test_hot_loops import LEVELS, SCALAR, disassembled, hottest

from runnel import targets
from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.codegen.packed import dots_of_four, words
from runnel.compiler.lowering.frame import Access, FrameNode, Group
from runnel.tools.build import kernel_target, runs_here

# rows in the frame, inputs, outputs, taps, bits, block, whether there are zero points
PRODUCTS = [
    (1, 64, 64, 1, 8, 32, False), (1, 40, 6, 1, 4, 32, True), (3, 129, 40, 1, 4, 16, True),
    (1, 300, 300, 1, 2, 32, False), (1, 512, 130, 1, 4, 128, False), (1, 48, 33, 3, 8, 16, True),
    (5, 7, 1, 1, 4, 16, False), (1, 65, 128, 2, 2, 64, True),
]  # fmt: skip
FUSED = {"rpi5": r"fmla\s+v\d+\.4s|fmla\.4s", "armv7": r"vfma\.f32\s+q\d+", "x86-64-v3": r"vfn?madd\d+ps\s.*%ymm"}


def of_blocks(spec: tuple[int, int, int, int, int, int, bool]) -> tuple[Case, np.ndarray]:
    rows, inputs, outputs, taps, bits, block, zeros = spec
    rng = np.random.default_rng(inputs)
    shape = (rows, inputs) if taps == 1 else (1, inputs)
    x, y, z = value("x", shape), value("y", (rows, outputs)), value("z", (rows, outputs))
    low, blocks = -(1 << (bits - 1)), -(-inputs // block)
    codes = rng.integers(low, -low, (taps, inputs, outputs)).astype(np.int8)
    scales = (rng.uniform(0.5, 1.5, (taps, blocks, outputs)) / low / inputs**0.5).astype(np.float32)
    if outputs % 2:
        scales = scales.astype(np.float16).astype(np.float32)
    about = rng.integers(low, -low, scales.shape).astype(np.float32) if zeros else None
    bias = rng.standard_normal(outputs).astype(np.float32) if bits == 4 else None
    frames = random_frames(rng, x, ROWS + taps - 1)
    node = FrameNode("matmul_blocks", (x, codes, scales, about, bias), y, {"bits": bits, "block": block})
    offset = 0 if about is None else np.repeat(about, block, 1)[:, :inputs]
    w = (codes - offset) * np.repeat(scales, block, 1)[:, :inputs].astype(np.float64)
    seen = np.stack([sum(frames[r + t].astype(np.float64) @ w[t] for t in range(taps)) for r in range(ROWS)])
    c = case(str(spec), [node, FrameNode("tanh", (y,), z)], {x: frames}, {x: (taps, True, 1)})
    return c, np.tanh(seen + (0 if bias is None else bias))


@pytest.mark.parametrize("target", LEVELS, ids=["host", "v2", "v3", "v4"])
def test_matches_float64(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs_here(target)[0]:
        pytest.skip("this processor has not the features of that level")
    monkeypatch.setattr(Target, "host", lambda: target)
    cases = [of_blocks(spec) for spec in PRODUCTS]
    runner = Runner([c for c, _ in cases])
    for c, expected in cases:
        one, many = runner.run(c)
        assert one.tobytes() == many.tobytes(), f"{c.name}: rows differ"
        assert np.abs(one - expected).max() <= 2e-6, c.name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("target", FUSED)
def test_hot_loops_are_vectors(target: str, bits: int, tmp_path: Path) -> None:
    module = KernelModule(kernel_target(targets.load(target)))
    kernel = module.add(of_blocks((1, 512, 64, 1, bits, 32, False))[0].group)
    loop = "\n".join(hottest(disassembled(module, kernel.variants[1], tmp_path), FUSED[target]))
    assert len(re.findall(FUSED[target], loop)) >= 4, loop
    assert not re.findall(SCALAR, loop), loop


def test_four_bits_are_looked_up_in_one_instruction(tmp_path: Path) -> None:
    module = KernelModule(Target.of("x86_64-linux-gnu", "x86-64-v4"))
    kernel = module.add(of_blocks((1, 512, 128, 1, 4, 32, False))[0].group)
    wanted = r"\bvperm(?:ps|d)\s"
    loop = "\n".join(hottest(disassembled(module, kernel.variants[1], tmp_path), wanted))
    assert len(re.findall(wanted, loop)) == len(re.findall(r"vfmadd\d+ps", loop)) == 64
    assert "vcvtdq2ps" not in loop


ROUNDED = [(1, 64, 64, 8, 32, False), (3, 48, 40, 4, 32, True), (1, 80, 33, 8, 32, True), (1, 144, 300, 4, 16, False)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("spec", ROUNDED)
def test_rounded_activations_match_float64(spec: tuple[int, int, int, int, int, bool], packed: bool) -> None:
    if packed and dots_of_four(Target.host()) is None:
        pytest.skip("this processor has no dot products of four codes")
    rows, inputs, outputs, bits, block, zeros = spec
    c, _ = of_blocks((rows, inputs, outputs, 1, bits, block, zeros))
    (x, frames), (node, *_) = next(iter(c.frames.items())), c.group.nodes
    blocks = -(-inputs // block)
    padded = np.zeros((ROWS, rows, blocks * block), np.float32)
    padded[..., :inputs] = frames
    parts = padded.reshape(ROWS, rows, blocks, block)
    steps = np.abs(parts).max(-1, keepdims=True) / np.float32(127)
    rounded = (np.rint(parts / steps) * steps).reshape(ROWS, rows, -1)[..., :inputs]
    h = value("h", (rows, words(inputs, block) if packed else inputs), "int32" if packed else "float32")
    attrs = {"packed": True} if packed else {}
    first = case("rounding", [FrameNode("round_blocks", (x,), h, {"block": block} | attrs)], {x: frames})
    kept, many = Runner([first]).run(first)
    assert kept.tobytes() == many.tobytes()
    if not packed:
        np.testing.assert_array_equal(kept, rounded)
    second = case(
        "product", [FrameNode(node.op, (h, *node.inputs[1:]), node.output, node.attrs | attrs)], {h: kept}
    )  # fmt: skip
    one, many = Runner([second]).run(second)
    codes, scales, about, bias = node.inputs[1:]
    offset = 0 if about is None else np.repeat(about, block, 1)[:, :inputs]
    w = ((codes - offset) * np.repeat(scales, block, 1)[:, :inputs].astype(np.float64))[0]
    expected = rounded.astype(np.float64) @ w + (0 if bias is None else bias)
    assert one.tobytes() == many.tobytes()
    assert np.abs(one - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_activations_take_dot_products(bits: int, tmp_path: Path) -> None:
    c, _ = of_blocks((1, 512, 128, 1, bits, 32, False))
    node = c.group.nodes[0]
    h = value("h", (1, words(512, 32)), "int32")
    product = FrameNode(node.op, (h, *node.inputs[1:]), node.output, node.attrs | {"packed": True})
    group = case("product", [product], {h: np.zeros((ROWS, *h.shape), np.int32)}).group
    vnni = Target.of("x86_64-linux-gnu", "x86-64-v4", ("+avx512vnni",))
    for target, wanted in ((vnni, r"\bvpdpbusd\s.*%zmm"), (kernel_target(targets.load("rpi5")), r"\bsdot\s")):
        module = KernelModule(target)
        text = disassembled(module, module.add(group).variants[1], tmp_path)
        assert len(re.findall(wanted, text)) >= 8


@pytest.mark.parametrize("bits", [4, 8])
def test_products_that_differ_in_their_weights_alone_are_made_once(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second's code is the first's and its constants are what it would have been given by itself."""
    module, rng = KernelModule(Target.host()), np.random.default_rng(bits)

    def group(scale: float) -> Group:
        x, r, y, z = (value(n, (1, size)) for n, size in (("x", 96), ("r", 80), ("y", 80), ("z", 80)))
        codes = rng.integers(-7, 8, (1, 96, 80)).astype(np.int8)
        scales = (scale * rng.uniform(0.5, 1, (1, 3, 80))).astype(np.float16).astype(np.float32)
        product = FrameNode("matmul_blocks", (x, codes, scales, None, None), y, {"bits": bits, "block": 32})
        sum_of_both = FrameNode("add", (y, r), z)
        return Group((product, sum_of_both), {x: Access(row_pitch=96), r: Access(row_pitch=80)}, (4,), 80)

    groups = [group(1.0), group(1.0), group(1 / 3)]
    by_themselves = [KernelModule(Target.host()).add(g) for g in groups]
    made = [module.add(g) for g in groups]
    assert made[0].variants == made[1].variants
    for kernel, alone in zip(made, by_themselves, strict=True):
        assert [a.role for a in kernel.args] == [a.role for a in alone.args]
        for one, other in zip(kernel.args, alone.args, strict=True):
            assert (one.data is None) == (other.data is None)
            assert one.data is None or one.data.tobytes() == other.data.tobytes()
    asked: list[bool] = []
    emit = module.emit
    monkeypatch.setattr(
        module, "emit", lambda g, rows, packs_only=False: asked.append(packs_only) or emit(g, rows, packs_only)
    )
    module.add(group(1.0))
    assert asked == [True]
    exact = group(1.0)
    exact.nodes[0].inputs[2][...] = np.float32(1 / 3)  # type: ignore[index]
    assert module.add(exact).variants != made[0].variants


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_each_line_of_weights_is_asked_for_once(bits: int, packed: bool, tmp_path: Path) -> None:
    c, _ = of_blocks((1, 512, 128, 1, bits, 32, False))
    node, x = c.group.nodes[0], value("x", (1, words(512, 32) if packed else 512), "int32" if packed else "float32")
    attrs = node.attrs | ({"packed": True} if packed else {})
    product = FrameNode(node.op, (x, *node.inputs[1:]), node.output, attrs)
    group = case("product", [product], {x: np.zeros((ROWS, *x.shape), x.dtype)}).group
    module = KernelModule(Target.of("x86_64-linux-gnu", "x86-64-v4", ("+avx512vnni",)))
    wanted = r"\bvpdpbusd\s" if packed else r"\bvfmadd\d+ps\s"
    loop = "\n".join(hottest(disassembled(module, module.add(group).variants[1], tmp_path), wanted))
    products, asked = len(re.findall(wanted, loop)), len(re.findall(r"\bprefetcht\d", loop))
    together = (2 if packed and bits == 4 else 1) if packed else 8 if bits == 4 else 4  # products of a line's codes
    assert asked * together == products > 0
