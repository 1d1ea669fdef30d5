"""Windowed Fourier bases as weights: the native backend makes two thin products of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nets import TIME, Net
from oracle import Check

import runnel
from runnel.compiler.lowering.fourier import factors

Window = Callable[[int], np.ndarray]


def hann(size: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def basis(size: int, transform: int | None = None, window: Window = hann, how: str = "halves") -> np.ndarray:
    """(2·bins, size): cosines and sines of a transform, one below the other or in turns."""
    transform = transform or size
    turns = np.outer(np.arange(transform // 2 + 1), np.arange(size)) % transform * (2 * np.pi / transform)
    parts = np.stack([np.cos(turns), -np.sin(turns)]) * window(size)
    return (parts if how == "halves" else parts.swapaxes(0, 1)).reshape(-1, size).astype(np.float32)


def restored(weights: np.ndarray) -> np.ndarray | None:
    found = factors(weights)
    if found is None:
        return None
    made = np.zeros(weights.shape)
    terms, _, stride = found.first.shape
    for g, rows in enumerate(found.rows):
        first = found.first[:, 2 * g : 2 * g + 2].astype(np.float64)
        second = found.second[g].reshape(2, stride, -1)
        each = np.einsum("isl,slr->ril", first, second).reshape(len(rows), terms * stride)
        made[rows[rows >= 0]] += each[rows >= 0]
    assert found.macs < weights.size / 2
    return made


@pytest.mark.parametrize(
    ("size", "transform"), [(512, 512), (256, 256), (400, 400), (400, 512), (320, 512), (480, 480), (1024, 1024),
                            (2048, 2048), (640, 1024), (128, 128)],
)  # fmt: skip
@pytest.mark.parametrize("window", [hann, np.hamming, np.ones, lambda n: hann(n) ** 0.5])
def test_bases_are_the_product_of_their_factors(size: int, transform: int, window: Window) -> None:
    weights = basis(size, transform, window, "turns" if size % 3 else "halves")
    made = restored(weights)
    assert made is not None
    assert np.abs(made - weights).max() <= 3e-7 * np.abs(weights).max()


@pytest.mark.parametrize("kind", ["inverse", "scaled", "shuffled", "cosines", "lapped", "some bins"])
def test_nothing_is_known_but_the_numbers(kind: str) -> None:
    rng = np.random.default_rng(0)
    weights = basis(512)
    if kind == "inverse":
        weights = weights * np.where(np.arange(514) % 257 % 256 == 0, 1 / 512, 2 / 512)[:, None] / (0.3 + hann(512))
    elif kind == "scaled":
        weights *= -37.5
    elif kind == "shuffled":
        weights = weights[rng.permutation(len(weights))]
    elif kind == "cosines":
        weights = np.cos(np.pi * np.outer(np.arange(256), 2 * np.arange(256) + 1) / 512)
    elif kind == "lapped":
        n, k = np.arange(512), np.arange(256)[:, None]
        weights = np.cos(np.pi / 256 * (n + 128.5) * (k + 0.5)) * np.sin(np.pi * (n + 0.5) / 512)
    else:
        weights = weights.reshape(2, 257, 512)[:, 10:200].reshape(-1, 512)
    made = restored(weights.astype(np.float32))
    assert made is not None
    assert np.abs(made - weights).max() <= 3e-7 * np.abs(weights).max()


@pytest.mark.parametrize(
    "kind", ["noise", "one element", "every row", "rough angles", "zeros", "infinite", "nan", "odd"]
)
def test_what_is_no_basis_stays_as_it_is(kind: str) -> None:
    rng = np.random.default_rng(0)
    weights = basis(512)
    if kind == "noise":
        weights = rng.standard_normal((514, 512)).astype(np.float32)
    elif kind == "one element":
        weights[100, 200] += 1e-3
    elif kind == "every row":
        weights += 1e-4 * rng.standard_normal(weights.shape).astype(np.float32)
    elif kind == "rough angles":  # as float32 has them, 3e-5 off
        turns = np.float32(2 * np.pi / 512) * np.outer(np.arange(257), np.arange(512)).astype(np.float32)
        weights = np.concatenate([np.cos(turns), np.sin(turns)]) * hann(512).astype(np.float32)
    elif kind == "odd":
        weights = basis(511)
    else:
        weights[3, 5] = {"zeros": 0, "infinite": np.inf, "nan": np.nan}[kind]
        weights = weights * 0 if kind == "zeros" else weights
    assert factors(weights) is None


def kernels(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as bundle:
        return [k["ops"] for k in json.loads(bundle.read("manifest.json"))["kernels"]]


def analysis(size: int, hop: int, bias: bool = True, **attrs: Any) -> tuple[Net, str]:
    net = Net()
    x = net.input([1, 1, TIME])
    weights = basis(size)
    more = [net.weight(len(weights))] if bias else []
    return net, net.op("Conv", x, net.const(weights[:, None]), *more, strides=[hop], **attrs)


@pytest.mark.parametrize(
    ("size", "hop", "pads"), [(128, 32, [0, 0]), (128, 50, [64, 64]), (256, 128, [255, 3]), (160, 160, [0, 100])]
)
def test_analysis(check: Check, size: int, hop: int, pads: list[int]) -> None:
    net, y = analysis(size, hop, bias=hop != 50, pads=pads)
    check(net.model(y), lengths=(1, size - 1, size, size + 1, 3 * size + 7, 1500), steps=(None, 1, 300))


def test_analysis_that_goes_on(check: Check) -> None:
    """Magnitudes and logarithms of several windows a step, beside the samples themselves."""
    net, y = analysis(128, 32, bias=False, pads=[96, 0])
    parts = net.op("Reshape", y, net.const([1, 2, 65, -1]))
    power = net.op("ReduceSum", net.op("Mul", parts, parts), net.const([1]), keepdims=0)
    y = net.op("Log", net.op("Add", power, net.const(np.float32(1e-3))))
    check(net.model(net.conv(y, 65, 4, 3, pads=[2, 0])), lengths=(1, 31, 32, 500, 1100), steps=(None, 128))


@pytest.mark.parametrize(("size", "hop"), [(256, 128), (256, 64), (256, 160), (160, 160), (256, 100), (128, 144)])
@pytest.mark.parametrize("bias", [False, True])
def test_synthesis(check: Check, size: int, hop: int, bias: bool) -> None:
    """Windows that overlap once, several times, by no whole number of hops, not at all; hops of odd sizes."""
    net = Net()
    weights = basis(size, window=np.hamming) / 100
    x = net.input([1, len(weights), TIME])
    more = [net.weight(1)] if bias else []
    y = net.op("ConvTranspose", x, net.const(weights[:, None]), *more, strides=[hop], pads=[hop // 2, size // 3])
    check(net.model(y), lengths=(1, 2, 3, 7, 20), steps=(None, 3))


def test_there_and_back(check: Check) -> None:
    net, y = analysis(256, 128, bias=False, pads=[128, 255])
    y = net.op("Mul", y, net.const(np.float32(1 / 300)))
    weights = net.const(basis(256)[:, None])
    y = net.op("ConvTranspose", y, weights, strides=[128], pads=[128, 128])
    check(net.model(net.op("Tanh", y)), lengths=(200, 256, 600, 2000), steps=(None, 256, 640))


@pytest.mark.parametrize("kind", ["dft", "matrix", "inverse", "windows of a frame"])
def test_inside_a_frame(check: Check, kind: str) -> None:
    net = Net(opset=17)
    weights = basis(256)
    x = net.input([1, TIME, 258 if kind == "inverse" else 256])
    if kind == "dft":
        y = net.op("DFT", net.op("Unsqueeze", x, net.const([3])), axis=2, onesided=1)
    elif kind == "matrix":
        y = net.op("Add", net.op("MatMul", x, net.const(np.ascontiguousarray(weights.T))), net.weight(258))
    elif kind == "inverse":
        y = net.op("MatMul", x, net.const(weights / 100))
    else:
        net = Net()
        x = net.input(["T", 1, 700])
        y = net.op("Conv", x, net.const(weights[:, None]), net.weight(258), strides=[111])
    check(net.model(y), lengths=(1, 2, 5, 16), steps=(None, 1, 4))


@pytest.mark.parametrize("kind", ["analysis", "synthesis", "frame", "matrix"])
def test_the_kernels_are_the_thin_ones(tmp_path: Path, kind: str) -> None:
    """And give the same bits whatever comes in one push, with memory that nothing wrote poisoned."""
    net = Net()
    weights = basis(256)
    if kind == "analysis":
        net, y = analysis(256, 128)
    elif kind == "synthesis":
        x = net.input([1, 258, TIME])
        y = net.op("ConvTranspose", x, net.const(weights[:, None]), strides=[128])
    elif kind == "frame":
        y = net.op("Conv", net.input(["T", 1, 700]), net.const(weights[:, None]), strides=[111])
    else:
        y = net.op("MatMul", net.input([1, TIME, 256]), net.const(np.ascontiguousarray(weights.T)))
    path = tmp_path / "m.rnl"
    runnel.compile(net.model(y), path)
    made = kernels(path)
    assert sum("comb_product" in ops for ops in made) == sum("picked_product" in ops for ops in made) == 1
    assert not any(ops.startswith(("conv", "matmul")) for ops in made)
    program = runnel.load(path, backend="native", poison=True)
    port = program.inputs[0]
    frames = 1500 if kind == "analysis" else 9
    x = np.random.default_rng(0).standard_normal(port.sized(frames * port.per_tick)).astype(np.float32)
    results = []
    for cuts in ([0, frames], [0, 1, 2, frames // 3, frames], list(range(0, frames, max(frames // 100, 1))) + [frames]):
        stream = program.stream()
        parts = [stream.push(np.take(x, range(a, b), port.axis)) for a, b in pairwise(cuts)]
        parts.append(stream.flush())
        results.append(np.concatenate(parts, program.outputs[0].axis).tobytes())
    assert len(set(results)) == 1 and len(results[0]) > 1000


def test_rounded_weights_stay_codes(tmp_path: Path) -> None:
    """Where the user names the mode, it says what a product is made of."""
    net = Net()
    y = net.op("MatMul", net.input([1, TIME, 256]), net.const(np.ascontiguousarray(basis(256).T)))
    runnel.compile(net.model(y), tmp_path / "m.rnl", mode={"weights": "int8"})
    assert not any("comb" in ops for ops in kernels(tmp_path / "m.rnl"))
