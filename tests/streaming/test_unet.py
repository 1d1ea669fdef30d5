"""U-Nets: several levels down and up, skips of different delays, odd lengths, and branches of other rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check

import runnel
from runnel.errors import Refused, StreamError

SHORT: dict[str, Any] = {"lengths": (1, 2, 3, 5, 8, 13, 22, 37, 40), "steps": (None, 7)}


def cropped(net: Net, x: str, like: str, axis: int = 2) -> str:
    """The first frames of x, as many as ``like`` has: h[..., : skip.shape[-1]]."""
    return str(net.op("Slice", x, net.const([0]), net.length(like, axis), net.const([axis])))


def padded_to(net: Net, x: str, like: str, axis: int = 2, rank: int = 3) -> str:
    """x with zeros behind it, as long as ``like``: F.pad(x, (0, skip.shape[-1] - x.shape[-1]))."""
    missing = net.op("Sub", net.length(like, axis), net.length(x, axis))
    zeros = [net.const([0] * (rank + axis)), missing]
    if axis < rank - 1:
        zeros.append(net.const([0] * (rank - 1 - axis)))
    return str(net.op("Pad", x, net.op("Concat", *zeros, axis=0)))


def unet(net: Net, x: str, channels: list[int], kernel: int, pads: list[int], up: str, join: str) -> str:
    """Levels of strided convolutions, a bottom, and levels that bring each skip connection back."""
    skips = []
    wide = 3
    for c in channels:
        x = net.op("Relu", net.conv(x, wide, c, 3, pads=[1, 1]))
        skips.append((x, c))
        x, wide = net.op("Relu", net.conv(x, c, c, kernel, strides=[2], pads=pads)), c
    x = net.op("Tanh", net.conv(x, wide, wide, 5, pads=[2, 2]))
    for skip, c in reversed(skips):
        if up == "transpose":
            x = net.conv_transpose(x, wide, c, 4, strides=[2], pads=[0, 0])
        elif up == "nearest":
            x = net.conv(net.op("Resize", x, "", net.const(np.array([1.0, 1.0, 2.0]))), wide, c, 3, pads=[1, 1])
        elif up == "linear":
            x = net.op("Resize", x, "", net.const(np.array([1.0, 1.0, 2.0])), mode="linear")
            x = net.conv(x, wide, c, 3, pads=[1, 1])
        else:
            h = net.op("Reshape", net.conv(x, wide, 2 * c, 3, pads=[1, 1]), net.const([1, c, 2, -1]))
            x = net.op("Reshape", net.op("Transpose", h, perm=[0, 1, 3, 2]), net.const([1, c, -1]))
        x = cropped(net, x, skip) if join == "crop" else x
        x = net.op("Relu", net.conv(net.op("Concat", x, skip, axis=1), 2 * c, c, 3, pads=[1, 1]))
        wide = c
    return str(net.conv(x, wide, 2, 1))


@pytest.mark.parametrize("up", ["transpose", "nearest", "linear", "shuffle"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_odd_lengths_are_cropped_to_the_skip_connection(check: Check, levels: int, up: str) -> None:
    """Each level rounds its length up, and what it brings back is at least as long as the skip connection."""
    net, x = stack(3)
    check(net.model(unet(net, x, [4, 5, 6][:levels], 3, [1, 1], up, "crop")), **SHORT)


def test_demucs(check: Check) -> None:
    """Kernel 8, stride 4 without padding; an LSTM below; the input padded to a length that comes back."""
    net, x = stack(2)
    whole = net.op("Mul", net.op("Div", net.op("Add", net.length(x, 2), net.const([15])), net.const([16])),
                   net.const([16]))  # fmt: skip
    missing = net.op("Add", net.op("Sub", whole, net.length(x, 2)), net.const([20]))
    h = net.op("Pad", x, net.op("Concat", net.const([0] * 5), missing, axis=0))
    skips, wide = [], 2
    for c in (4, 6):
        h = net.op("Relu", net.conv(h, wide, c, 8, strides=[4]))
        a, b = net.op("Split", net.conv(h, c, 2 * c, 1), outputs=2, axis=1)
        h, wide = net.op("Mul", a, net.op("Sigmoid", b)), c
        skips.append(h)
    y = net.recurrent("LSTM", net.op("Transpose", h, perm=[2, 0, 1]), 6, 6)
    h = net.op("Transpose", net.op("Squeeze", y, net.const([1])), perm=[1, 2, 0])
    for c, skip in zip((4, 2), reversed(skips), strict=True):
        h = net.op("Add", h, net.op("Slice", skip, net.const([0]), net.length(h, 2), net.const([2])))
        h, wide = net.op("Relu", net.conv_transpose(h, wide, c, 8, strides=[4])), c
    check(net.model(cropped(net, h, x)), lengths=(1, 2, 15, 16, 17, 40, 61, 90), steps=(None, 24))


@pytest.mark.parametrize("time_last", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_time_and_frequency(check: Check, causal: bool, time_last: bool) -> None:
    """As on spectrograms: strides over both, transposed convolutions back, odd lengths padded to the skip."""
    net = Net()
    x = net.input([1, 1, 8, TIME] if time_last else [1, 1, TIME, 8])
    axis = 3 if time_last else 2

    def both(time: list[int], frequency: list[int]) -> list[int]:
        pairs = list(zip(frequency, time) if time_last else zip(time, frequency))
        return [v for pair in pairs for v in pair]

    pads = [2, 0] if causal else [1, 1]
    skips, h, wide = [], x, 1
    for c in (3, 4):
        h = net.op("Relu", net.conv(h, wide, c, [3, 3], pads=both(pads, [1, 1])))
        skips.append((h, c))
        h, wide = net.op("Relu", net.conv(h, c, c, [3, 3], strides=[2, 2], pads=both(pads, [1, 1]))), c
    for skip, c in reversed(skips):
        h, wide = net.op("Relu", net.conv_transpose(h, wide, c, [2, 2], strides=[2, 2])), c
        h = cropped(net, h, skip, axis)
        h = net.op("Relu", net.conv(net.op("Concat", h, skip, axis=1), 2 * c, c, [3, 3], pads=both(pads, [1, 1])))
    check(net.model(net.conv(h, wide, 2, [1, 1])), lengths=(1, 2, 3, 5, 8, 13, 21), steps=(None, 5))


def test_frequency_alone_is_strided(check: Check) -> None:
    """The common shape for speech: time keeps its rate, frequency goes down and up."""
    net = Net()
    x = net.input([1, 2, TIME, 16])
    skips, h, wide = [], x, 2
    for c in (4, 6):
        h, wide = net.op("Relu", net.conv(h, wide, c, [2, 3], strides=[1, 2], pads=[1, 1, 0, 1])), c
        skips.append((h, c))
    for (skip, c), out in zip(reversed(skips), (4, 2), strict=True):
        h = net.op("Concat", h, skip, axis=1)
        h = net.conv_transpose(h, 2 * c, out, [2, 4], strides=[1, 2], pads=[0, 1, 1, 1])
    check(net.model(h), lengths=(1, 2, 3, 5, 9, 16), steps=(None, 5))


@pytest.mark.parametrize("like", ["input", "less_one"])
def test_floored_levels_are_padded_or_cropped(check: Check, like: str) -> None:
    """Kernel 2, stride 2 drops the last frame of odd lengths; zeros bring it back, or one frame less is asked for."""
    net, x = stack(3)
    h = net.op("Relu", net.conv(x, 3, 4, 2, strides=[2]))
    h = net.conv_transpose(h, 4, 3, 2, strides=[2])
    if like == "input":
        y = net.op("Add", padded_to(net, h, x), x)
    else:
        less = net.op("Slice", x, net.const([0]), net.const([-1]), net.const([2]))
        y = net.op("Add", cropped(net, h, less), less)
    check(net.model(net.conv(y, 3, 2, 3, pads=[1, 1])), lengths=range(2, 24))


def test_floored_levels_that_nothing_evens_out_take_even_lengths(check: Check) -> None:
    """As offline, where the sum of an odd length does not run."""
    net, x = stack(3)
    h = net.conv_transpose(net.conv(x, 3, 4, 2, strides=[2]), 4, 3, 2, strides=[2])
    proof = check(net.model(net.op("Add", h, x)), lengths=range(1, 20))
    assert {n for _, n, _ in proof.runs} == set(range(2, 20, 2))


def test_an_odd_length_is_refused_at_flush(tmp_path: Path) -> None:
    net, x = stack(3)
    h = net.conv_transpose(net.conv(x, 3, 4, 2, strides=[2]), 4, 3, 2, strides=[2])
    runnel.compile(net.model(net.op("Add", h, x)), tmp_path / "even.rnl")
    for backend in ("native", "onnxruntime"):
        stream = runnel.load(tmp_path / "even.rnl", backend=backend).stream()
        stream.push(np.zeros((1, 3, 7), np.float32))
        with pytest.raises(StreamError, match="push 1 more before flush"):
            stream.flush()


def test_lengths_that_never_meet_are_refused() -> None:
    net, x = stack(3)
    less = net.op("Slice", x, net.const([0]), net.const([-1]), net.const([2]))
    with pytest.raises(Refused, match="different lengths"):
        oracle.check(net.model(net.op("Add", less, x)))


def test_branches_of_strides_two_and_three(check: Check) -> None:
    """Joined where their rates meet, and on the input's own frames."""
    net, x = stack(3)
    two = net.conv(net.conv(x, 3, 4, 3, strides=[2], pads=[1, 1]), 4, 4, 3, strides=[3], pads=[1, 1])
    three = net.conv(net.conv(x, 3, 4, 5, strides=[3], pads=[2, 2]), 4, 4, 4, strides=[2], pads=[1, 2])
    low = net.op("Add", two, three)
    back = net.op("Resize", low, "", net.const(np.array([1.0, 1.0, 6.0])), mode="linear")
    check(net.model(low, net.op("Concat", cropped(net, back, x), x, axis=1)), **SHORT)


def test_each_branch_back_at_full_rate(check: Check) -> None:
    net, x = stack(3)
    parts = [x]
    for s in (2, 3, 4):
        h = net.op("MaxPool", x, kernel_shape=[s], strides=[s], ceil_mode=1)
        h = net.conv(net.op("Resize", h, "", net.const(np.array([1.0, 1.0, float(s)]))), 3, 2, 3, pads=[1, 1])
        parts.append(cropped(net, h, x))
    check(net.model(net.conv(net.op("Concat", *parts, axis=1), 9, 2, 1)), **SHORT)


def test_pyramid_of_averages(check: Check) -> None:
    """Averages that count no padding, brought back to the length of the input and joined."""
    net, x = stack(3, opset=18)
    parts = [x]
    for s in (2, 3):
        h = net.op("AveragePool", x, kernel_shape=[s + 1], strides=[s], pads=[s // 2, s // 2], ceil_mode=1)
        h = net.op("Resize", h, "", net.const(np.array([1.0, 1.0, float(s)])), mode="linear")
        parts.append(cropped(net, h, x))
    check(net.model(net.op("Concat", *parts, axis=1)), **SHORT)
