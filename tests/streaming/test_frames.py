"""Framing by matrices of indices, Fourier transforms, overlap-add and the front and back ends made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from lengths import length
from nets import TIME, Net
from oracle import Check

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

LENGTHS = (1, 7, 8, 9, 12, 15, 16, 17, 30, 41, 64, 100)


def frame_count(net: Net, x: str, axis: int, kernel: int, stride: int) -> str:
    size = net.op("Sub", length(net, x, axis), net.const(kernel))
    return str(net.op("Add", net.op("Div", size, net.const(stride)), net.const(1)))


def starts(net: Net, count: str, stride: int) -> str:
    n = net.op("Range", net.const(0), count, net.const(1))
    return str(net.op("Mul", n, net.const(stride)))


def matrix(net: Net, at: str, taps: Any, before: bool = False) -> str:
    """Indices [frames, taps], or [taps, frames]."""
    taps = np.asarray(taps)
    at = net.op("Unsqueeze", at, net.const([0 if before else 1]))
    return str(net.op("Add", at, net.const(taps[:, None] if before else taps[None])))


@pytest.mark.parametrize(("kernel", "stride"), [(8, 4), (5, 5), (3, 7), (40, 1)])
@pytest.mark.parametrize("before", [False, True])
def test_framing(check: Check, kernel: int, stride: int, before: bool) -> None:
    net = Net()
    x = net.input([1, TIME])
    at = starts(net, frame_count(net, x, 1, kernel, stride), stride)
    y = net.op("Gather", x, matrix(net, at, np.arange(kernel), before), axis=1)
    check(net.model(net.op("Mul", y, net.const(2.0))), lengths=[n for n in LENGTHS if n >= kernel])


@pytest.mark.parametrize("channels", [3, 20])
def test_framing_of_channels(check: Check, channels: int) -> None:
    net = Net()
    x = net.input([1, channels, TIME])
    at = starts(net, frame_count(net, x, 2, 6, 2), 2)
    y = net.op("Gather", x, matrix(net, at, np.arange(6)), axis=2)  # [1, C, N, 6]
    check(net.model(net.op("ReduceMax", y, axes=[3])), lengths=LENGTHS[1:])


@pytest.mark.parametrize("taps", [[0, 2, 4, 6], [5], [3, 0, 1], [0, 3, 7]])
def test_taps_in_any_pattern(check: Check, taps: list[int]) -> None:
    net = Net()
    x = net.input([1, TIME, 2])
    at = starts(net, frame_count(net, x, 1, 8, 3), 3)
    y = net.op("Gather", x, matrix(net, at, taps), axis=1)
    check(net.model(net.op("Neg", y)), lengths=LENGTHS[2:])


def test_frames_as_torch_unfold_exports_them(check: Check) -> None:
    """im2col: Range in steps, a kernel column, Gather, then a reshape of blocks."""
    net = Net()
    x = net.input([1, 2, 1, TIME])
    blocks = net.op("Sub", length(net, x, 3), net.const(7))
    at = net.op("Unsqueeze", net.op("Range", net.const(0), blocks, net.const(4)), net.const([0]))
    places = net.op("Add", at, net.const(np.arange(8)[:, None]))
    rows = net.op("Gather", x, net.const([[0]]), axis=2)
    y = net.op("Gather", rows, places, axis=4)
    y = net.op("Transpose", y, perm=[0, 1, 2, 4, 3, 5])
    y = net.op("Reshape", y, net.const([1, 16, -1]))
    check(net.model(net.op("MatMul", net.weight(3, 16), y)), lengths=LENGTHS[2:])


def test_frames_as_torch_as_strided_exports_them(check: Check) -> None:
    """Sums of ranges times strides, on the flat signal."""
    net = Net()
    x = net.input([1, TIME])
    flat = net.op("Reshape", x, net.const([-1]))
    count = frame_count(net, x, 1, 9, 3)
    shape = net.op(
        "Concat", *(net.op("Unsqueeze", v, net.const([0])) for v in (net.const(1), count, net.const(9))), axis=0
    )
    at, rank = "", 3
    for axis, stride in enumerate((length(net, x), net.const(3), net.const(1))):
        size = net.op("Squeeze", net.op("Gather", shape, net.const([axis]), axis=0))
        r = net.op("Range", net.const(0), size, net.const(1))
        r = net.op("Reshape", r, net.const([-1 if i == axis else 1 for i in range(rank)]))
        r = net.op("Mul", r, stride)
        at = net.op("Add", at, r) if at else r
    check(net.model(net.op("Neg", net.op("Gather", flat, at, axis=0))), lengths=[9, 10, 11, 12, 20, 50])


def test_frames_of_a_late_stream(check: Check) -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    h = net.conv(x, 3, 4, 5, pads=[2, 2])
    at = starts(net, frame_count(net, h, 2, 4, 2), 2)
    check(net.model(net.op("Gather", h, matrix(net, at, np.arange(4)), axis=2)), lengths=LENGTHS[1:])


def test_frames_behind_the_end_are_refused() -> None:
    net = Net()
    x = net.input([1, TIME])
    at = starts(net, net.op("Div", length(net, x), net.const(4)), 4)
    with pytest.raises(Refused, match="behind the last"):
        oracle.check(net.model(net.op("Gather", x, matrix(net, at, np.arange(5)), axis=1)), lengths=[65])


def test_frames_picked_by_data_are_refused() -> None:
    net = Net()
    x = net.input([1, TIME])
    at = net.op("Cast", net.op("Reshape", net.op("Mul", x, net.const(0.0)), net.const([-1])), to=7)
    with pytest.raises(Refused, match="by number"):
        oracle.check(net.model(net.op("Gather", x, at, axis=1)))


def window(n: int) -> np.ndarray:
    return np.hanning(n + 1)[:-1].astype(np.float32)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("shape", [[1, TIME], [1, TIME, 1], [3, TIME, 1]])
@pytest.mark.parametrize("windowed", [False, True])
def test_stft(check: Check, onesided: int, shape: list[Any], windowed: bool) -> None:
    net = Net()
    x = net.input(shape)
    size = ["", net.const(12)] if not windowed else [net.const(window(12)), net.const(12)]
    check(net.model(net.op("STFT", x, net.const(5), *size, onesided=onesided)), lengths=LENGTHS[4:])


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("kind", ["forward", "onesided", "inverse", "padded"])
def test_dft_of_another_axis(check: Check, opset: int, parts: int, kind: str) -> None:
    if kind == "onesided" and parts == 2:
        pytest.skip("onesided transforms are of real signals")
    net = Net(opset=opset)
    x = net.input([1, TIME, 10, parts])
    size = [net.const(16)] if kind == "padded" else []
    attrs: dict[str, Any] = {"inverse": int(kind == "inverse"), "onesided": int(kind == "onesided")}
    inputs = [x, *size] if opset < 20 else [x, *(size or [""]), net.const(2)]
    y = net.op("DFT", *inputs, **attrs, **({"axis": 2} if opset < 20 else {}))
    check(net.model(y))


def test_dft_of_an_axis_before_time(check: Check) -> None:
    net = Net(opset=20)
    x = net.input([1, 6, TIME, 2])
    check(net.model(net.op("DFT", x, "", net.const(1))))


def test_dft_over_time_is_refused() -> None:
    net = Net(opset=20)
    x = net.input([1, TIME, 1])
    with pytest.raises(Refused, match="whole of time"):
        oracle.check(net.model(net.op("DFT", x, "", net.const(1))))


def test_dft_over_a_window(check: Check) -> None:
    net = Net(opset=20)
    x = net.input([1, 16, 1])
    check(net.model(net.op("DFT", x, "", net.const(1))), window=16, hop=4)


def log_mel(net: Net, x: str, size: int, hop: int, mels: int, centre: bool) -> str:
    """As torchaudio's front end is exported: reflect pad, STFT, power, mel bank, log."""
    if centre:
        x = net.op("Unsqueeze", x, net.const([1]))
        x = net.op("Pad", x, net.const([0, 0, size // 2, 0, 0, size // 2]), mode="reflect")
        x = net.op("Squeeze", x, net.const([1]))
    s = net.op("STFT", x, net.const(hop), net.op("HannWindow", net.const(size)), net.const(size))
    power = net.op("ReduceSumSquare", s, axes=[3], keepdims=0)
    args = [net.const(v) for v in (mels, size, 16000)] + [net.const(v, "float32") for v in (50.0, 7600.0)]
    bank = net.op("MelWeightMatrix", *args)
    return str(net.op("Log", net.op("Clip", net.op("MatMul", power, bank), net.const(1e-5))))


@pytest.mark.parametrize("centre", [False, True])
def test_log_mel_front_end(check: Check, centre: bool) -> None:
    net = Net()
    x = net.input([1, TIME])
    y = log_mel(net, x, 64, 20, 8, centre)
    check(net.model(y), lengths=[64, 70, 100, 163, 240], steps=(None, 33))


@pytest.mark.parametrize("op", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows_are_constants(check: Check, op: str) -> None:
    net = Net()
    x = net.input([1, TIME, 12])
    check(net.model(net.op("Mul", x, net.op(op, net.const(12)))))


def test_there_and_back(check: Check) -> None:
    """STFT, a mask, inverse DFT, overlap-add by a transposed convolution, divided by the window's own overlap."""
    size, hop = 16, 4
    net = Net(opset=17)
    x = net.input([1, TIME])
    padded = net.op("Pad", x, net.const([0, size // 2, 0, size // 2]))
    s = net.op("STFT", padded, net.const(hop), net.const(window(size)), net.const(size), onesided=0)
    masked = net.op("Mul", s, net.op("Sigmoid", s))
    back = net.op("DFT", masked, axis=2, inverse=1)
    real = net.op("Squeeze", net.op("Slice", back, net.const([0]), net.const([1]), net.const([3])), net.const([3]))
    blocks = net.op("Transpose", net.op("Mul", real, net.const(window(size))), perm=[0, 2, 1])
    add = net.const(np.eye(size)[:, None])
    summed = net.op("ConvTranspose", blocks, add, strides=[hop])
    ones = net.op("ConstantOfShape", net.op("Shape", blocks), value=_one())
    squares = net.op("Mul", ones, net.const((window(size) ** 2)[:, None]))
    envelope = net.op("ConvTranspose", squares, add, strides=[hop])
    y = net.op("Div", summed, net.op("Add", envelope, net.const(1e-3)))
    cut = net.op("Slice", y, net.const([size // 2]), net.const([-(size // 2)]), net.const([2]))
    check(net.model(cut), lengths=[1, 5, 16, 17, 31, 64, 90], steps=(None, 10))


def _one() -> Any:
    from onnx import numpy_helper

    return numpy_helper.from_array(np.ones(1, np.float32))


@pytest.mark.parametrize("hop", [4, 8])
def test_overlap_add_by_col2im(check: Check, hop: int) -> None:
    net = Net(opset=18)
    x = net.input([1, 2 * 8, TIME])
    size = net.op("Add", net.op("Mul", length(net, x, 2), net.const(hop)), net.const(8 - hop))
    image = net.op("Concat", net.const([1]), net.op("Unsqueeze", size, net.const([0])), axis=0)
    y = net.op("Col2Im", x, image, net.const([1, 8]), strides=[1, hop])
    check(net.model(y))


def test_a_whole_front_end_by_framing(check: Check) -> None:
    """Kaldi's features: framing by indices, a window, a product with cosines and sines, power, mel, log."""
    size, hop = 25, 10
    net = Net()
    x = net.input([1, TIME])
    at = starts(net, frame_count(net, x, 1, size, hop), hop)
    frames = net.op("Gather", x, matrix(net, at, np.arange(size)), axis=1)
    frames = net.op("Sub", frames, net.op("ReduceMean", frames, axes=[2], keepdims=1))
    frames = net.op("Mul", frames, net.const(window(size)))
    angles = 2 * np.pi / 32 * np.outer(np.arange(size), np.arange(17))
    power = net.op("Add", *(net.op("Pow", net.op("MatMul", frames, net.const(f(angles))), net.const(2.0))
                            for f in (np.cos, np.sin)))  # fmt: skip
    bank = net.const(np.abs(net.rng.standard_normal((17, 5))))
    y = net.op("Log", net.op("Add", net.op("MatMul", power, bank), net.const(0.1)))
    check(net.model(y), lengths=[25, 26, 34, 35, 60, 101], steps=(None, 17))


WINDOW = 96


@pytest.mark.parametrize("hop", [4, 6, 16, 96])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("pads", [0, 6])
def test_windows_share_their_frames(check: Check, hop: int, before: bool, pads: int) -> None:
    kernel, stride = 12, 4
    net = Net()
    x = net.input([1, WINDOW])
    if pads:
        x = net.op("Pad", x, net.const([0, pads, 0, pads]), mode="reflect")
    at = stride * np.arange((WINDOW + 2 * pads - kernel) // stride + 1)
    places = at[:, None] + np.arange(kernel)
    y = net.op("Gather", x, net.const(places.T if before else places), axis=1)
    y = net.op("Mul", y, net.const(window(kernel).reshape((-1, 1) if before else (-1,))))
    model = net.model(net.op("ReduceMax", y, axes=[1], keepdims=0), y)
    check(model, window=WINDOW, hop=hop)
    if hop == 16 and not pads:
        assert "Frames" in {n.op for n in analyse(load(model), window=WINDOW, hop=hop).nodes}


@pytest.mark.parametrize("hop", [5, 20, 30])
@pytest.mark.parametrize("centre", [False, True])
def test_windows_share_their_spectra(check: Check, hop: int, centre: bool) -> None:
    net = Net()
    x = net.input([1, 300])
    mel = log_mel(net, x, 64, 20, 8, centre)
    y = net.op("Flatten", mel)
    frames = (300 - 64 * (not centre)) // 20 + 1
    model = net.model(net.op("MatMul", y, net.weight(8 * frames, 3)))
    check(model, window=300, hop=hop)
    if hop == 20:
        nodes = analyse(load(model), window=300, hop=hop).nodes
        assert sum(n.op == "Conv" and n.output.axis >= 0 for n in nodes) == 1
