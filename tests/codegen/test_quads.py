"""Convolutions of codes over images whose channels lie last, against sums in int64, on every level of this machine."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import ROWS, Case, Runner, case, value
from test_hot_loops import LEVELS, disassembled

from runnel import targets
from runnel.compiler.codegen import KernelModule
from runnel.compiler.codegen.target import Target
from runnel.compiler.lowering.frame import FrameNode
from runnel.tools.build import kernel_target, runs_here

# channels in and out, taps, input size, kernel, strides, pads, dilations, groups
CONVS = [
    (3, 16, 1, (9, 40), (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), 1),
    (8, 24, 2, (6, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (16, 80, 1, (5, 21), (3, 3), (1, 1), (5, 5, 5, 5), (5, 5), 1),
    (1, 64, 1, (9, 10), (5, 4), (2, 2), (2, 1, 2, 1), (1, 1), 1),
    (6, 7, 1, (4, 5), (3, 3), (1, 1), (1, 1, 1, 1), (1, 2), 1),
    (64, 64, 1, (3, 3), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    (18, 12, 1, (7, 9), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    (5, 16, 1, (3, 4, 9), (2, 3, 3), (1, 1, 2), (0, 1, 1, 1, 1, 1), (1, 1, 1), 1),
    (64, 64, 3, (5,), (3,), (1,), (1, 1), (1,), 64),
    (20, 20, 1, (9, 12), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 20),
    (24, 24, 1, (9, 11), (3, 5), (2, 2), (1, 2, 1, 2), (1, 1), 24),
    (7, 7, 1, (5, 12), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 7),
    (40, 40, 6, (), (), (), (), (), 40),
    (32, 32, 1, (5, 9), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 8),
    (48, 24, 2, (6,), (3,), (2,), (1, 1), (1,), 3),
    (64, 64, 1, (4, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2),
    (24, 40, 1, (3, 5), (1, 3), (1, 1), (0, 2, 0, 2), (1, 2), 4),
    (10, 15, 2, (7,), (2,), (1,), (1, 0), (1,), 5),
    (128, 64, 4, (), (), (), (), (), 8),
]


def expected(x: np.ndarray, w: np.ndarray, spec: tuple) -> np.ndarray:
    """x: (taps, *S, Cin) less its zero point, int64 → (1, *out, Cout)."""
    _, outputs, _, size, kernel, stride, pads, dilation, groups = spec
    rank = len(size)
    wide = np.pad(x, [(0, 0), *zip(pads[:rank], pads[rank:]), (0, 0)])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation)]
    out = [(n - span) // s + 1 for n, span, s in zip(wide.shape[1:-1], spans, stride)]
    each = w.shape[1]
    sums = np.zeros((*out, outputs), np.int64)
    for place in product(*map(range, kernel)):
        cut = tuple(slice(k * d, k * d + s * (n - 1) + 1, s) for k, d, s, n in zip(place, dilation, stride, out))
        seen = wide[(slice(None), *cut)].reshape(len(x), *out, groups, each)
        part = w[(slice(None), slice(None), slice(None), *place)].reshape(groups, outputs // groups, each, len(x))
        sums += np.einsum("t...gc,goct->...go", seen, part).reshape(*out, outputs)
    return sums[None]


def conv_case(index: int, spec: tuple, kind: str, zero: int) -> tuple[Case, np.ndarray]:
    cin, cout, taps, size, kernel, stride, pads, dilation, groups = spec
    rng = np.random.default_rng(index)
    w = rng.integers(-128, 128, (cout, cin // groups, taps, *kernel)).astype(np.int8)
    x = value("x", (1, *size, cin), kind)
    low = 0 if kind == "uint8" else -128
    frames = rng.integers(low, low + 256, (ROWS + taps - 1, *x.shape)).astype(kind)
    wide = frames[:, 0].astype(np.int64) - zero
    wanted = np.stack([expected(wide[r : r + taps], w.astype(np.int64), spec) for r in range(ROWS)])
    y, z, out = value("y", wanted.shape[1:], "int32"), value("z", wanted.shape[1:]), value("o", wanted.shape[1:])
    scale = rng.uniform(0.5, 1.5, cout).astype(np.float32)
    attrs = {"strides": stride, "dilations": dilation, "pads": pads, "group": groups, "channels_last": "both"}
    nodes = [
        FrameNode("conv", (x, w), y, attrs | {"zero_point": zero}),
        FrameNode("cast", (y,), z, {"to": "float32"}),
        FrameNode("mul", (z, scale), out),
    ]
    return case(f"{index}", nodes, {x: frames}, {x: (taps, True, 1)}), wanted.astype(np.float32) * scale


@pytest.mark.parametrize(
    ("target", "kind", "specs"),
    [
        (LEVELS[0], "int8", CONVS), (LEVELS[0], "uint8", CONVS[::2]), (LEVELS[1], "int8", CONVS[1::4]),
        (LEVELS[2], "int8", CONVS[::3]), (LEVELS[2], "uint8", CONVS[2::3]), (LEVELS[3], "uint8", CONVS[1::3]),
    ],
    ids=["host-int8", "host-uint8", "v2-int8", "v3-int8", "v3-uint8", "v4-uint8"],
)  # fmt: skip
def test_sums_are_exact(target: Target, kind: str, specs: list[tuple], monkeypatch: pytest.MonkeyPatch) -> None:
    if not runs_here(target)[0]:
        pytest.skip("this processor has not the features of that level")
    monkeypatch.setattr(Target, "host", lambda: target)
    zeros = (0, 7, 255 if kind == "uint8" else -128)
    cases = [conv_case(i, spec, kind, zeros[i % 3]) for i, spec in enumerate(specs)]
    runner = Runner([c for c, _ in cases])
    for c, wanted in cases:
        one, many = runner.run(c)
        np.testing.assert_array_equal(one, wanted, err_msg=c.name)
        assert one.tobytes() == many.tobytes()


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("rpi5", r"\bsdot\s"), ("rpi4", r"\bsadalp\s"), ("x86-64-v3", r"\bvpmaddwd\s"),
        (Target.of("x86_64-linux-gnu", "x86-64-v4", ("+avx512vnni",)), r"\bvpdpbusd\s"),
    ],
    ids=["rpi5", "rpi4", "v3", "vnni"],
)  # fmt: skip
@pytest.mark.parametrize("index", [5, 9, 13, 15, 18], ids=["dense", "filters", "narrow", "groups", "frames"])
def test_dot_products_where_there_are(target: str | Target, wanted: str, index: int, tmp_path: Path) -> None:
    module = KernelModule(kernel_target(targets.load(target)) if isinstance(target, str) else target)
    kernel = module.add(conv_case(index, CONVS[index], "int8", 3)[0].group)
    assert len(re.findall(wanted, disassembled(module, kernel.variants[1], tmp_path))) >= 8


@pytest.mark.parametrize(("kind", "wanted"), [("int8", r"\bsmmla\s"), ("uint8", r"\busmmla\s")])
@pytest.mark.parametrize("index", [1, 5, 15])
def test_matrices_of_codes_where_there_are(index: int, kind: str, wanted: str, tmp_path: Path) -> None:
    module = KernelModule(Target.of("aarch64-linux-gnu", "generic", ("+dotprod", "+i8mm")))
    code = disassembled(module, module.add(conv_case(index, CONVS[index], kind, 3)[0].group).variants[1], tmp_path)
    blocks, rows = (len(re.findall(p, code)) for p in (wanted, r"\bu?sdot\s"))
    assert blocks >= 16 and rows <= blocks / 2  # a last position without a neighbour has products of its own


def test_matrices_of_codes_for_rows_of_a_step(tmp_path: Path) -> None:
    c, _ = conv_case(0, (40, 48, 3, (), (), (), (), (), 1), "int8", 3)
    conv, *rest = c.group.nodes
    plain = replace(conv, attrs={k: v for k, v in conv.attrs.items() if k != "channels_last"})
    module = KernelModule(Target.of("aarch64-linux-gnu", "generic", ("+dotprod", "+i8mm")))
    kernel = module.add(replace(c.group, nodes=(plain, *rest)))
    assert len(re.findall(r"\bsmmla\s", disassembled(module, kernel.variants[ROWS], tmp_path))) >= 8
    assert len(re.findall(r"\bsdot\s", disassembled(module, kernel.variants[1], tmp_path))) >= 8


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_a_relu_before_a_code_is_its_lowest(kind: str, tmp_path: Path) -> None:
    """The relu goes, and codes of 64-bit Arm are narrowed by its own instructions, sixteen at a time."""
    c, wanted = conv_case(5, CONVS[5], kind, 3)
    scaled = c.group.nodes[-1]
    small, above = (value(name, scaled.output.shape) for name in ("small", "above"))
    scale, limits = np.full((1,), 2e-3, np.float32), np.iinfo(kind)
    rest = [FrameNode("mul", (scaled.output, scale), small), FrameNode("relu", (small,), above)]
    code = value("code", small.shape, kind)
    for zero in (int(limits.min), 5):
        nodes = [*c.group.nodes, *rest, FrameNode("quantize", (above,), code, {"zero": zero, "to": kind})]
        made = case("relu", nodes, c.frames, dict.fromkeys(c.frames, (1, True, 1)))
        one, many = Runner([made]).run(made)
        codes = np.clip(np.rint(np.maximum(wanted * scale, 0)) + zero, limits.min, limits.max)
        np.testing.assert_array_equal(one, codes.astype(kind))
        assert one.tobytes() == many.tobytes()
        module = KernelModule(kernel_target(targets.load("rpi5")))
        text = disassembled(module, module.add(made.group).variants[1], tmp_path)
        narrow = r"\bsqxtun\s" if kind == "uint8" else r"\bsqxtn2\s"
        assert re.search(narrow, text) and "fcvtns" in text and not re.search(r"\b(frintx|fcmlt|fmax)\s", text)
        assert bool(re.search(r"\bsmax\s", text)) == (zero == 5)


def test_eight_bits_are_narrowed_at_once(tmp_path: Path) -> None:
    """Sums of codes are rounded without care for what no int32 holds: they are known to be small."""
    c, _ = conv_case(5, CONVS[5], "int8", 3)
    *nodes, scaled = c.group.nodes
    code = value("code", scaled.output.shape, "int8")
    group = replace(
        c.group, nodes=(*c.group.nodes, FrameNode("quantize", (scaled.output,), code, {"zero": 3, "to": "int8"}))
    )
    module = KernelModule(Target.of("x86_64-linux-gnu", "x86-64-v4", ("+avx512vnni",)))
    code_text = disassembled(module, module.add(group).variants[1], tmp_path)
    assert "vpmovsdb" in code_text and "vcvtps2dq" in code_text and "vrndscaleps" not in code_text
