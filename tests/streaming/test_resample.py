"""Resize over time and off it: every mode that is decided by the factor, and reasons for the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.errors import Refused

PLACES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "half_pixel_symmetric")
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def resized(net: Net, x: str, scale: float, axis: int = 2, rank: int = 3, **attrs: Any) -> str:
    scales = [scale if i == axis else 1.0 for i in range(rank)]
    return str(net.op("Resize", x, "", net.const(np.array(scales)), **attrs))


def between_layers(scale: float, **attrs: Any) -> bytes:
    net, x = stack(3, opset=19)
    h = net.op("Sigmoid", net.conv(x, 3, 3, 3, pads=[1, 1]))
    h = resized(net, h, scale, **attrs)
    return net.model(h, net.conv(h, 3, 2, 3, pads=[1, 1]))


@pytest.mark.parametrize("rounding", NEAREST)
@pytest.mark.parametrize("places", [*PLACES, "tf_half_pixel_for_nn"])
def test_nearest_up(check: Check, places: str, rounding: str) -> None:
    for scale in (2.0, 3.0):
        check(
            between_layers(scale, mode="nearest", coordinate_transformation_mode=places, nearest_mode=rounding),
            lengths=(1, 2, 3, 5, 8, 13), steps=(None, 4),
        )  # fmt: skip


@pytest.mark.parametrize("places", PLACES)
@pytest.mark.parametrize("scale", [2.0, 3.0, 4.0])
def test_linear_up(check: Check, places: str, scale: float) -> None:
    check(
        between_layers(scale, mode="linear", coordinate_transformation_mode=places),
        lengths=(1, 2, 3, 4, 7, 12), steps=(None, 5),
    )  # fmt: skip


@pytest.mark.parametrize("places", ["half_pixel", "pytorch_half_pixel", "asymmetric"])
@pytest.mark.parametrize("scale", [0.5, 0.25, 1.5, 0.75])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_down_and_by_ratios(check: Check, mode: str, scale: float, places: str) -> None:
    model = between_layers(scale, mode=mode, coordinate_transformation_mode=places)
    alone = (
        places == "pytorch_half_pixel" and scale < 1
    )  # one frame alone is taken from another place: refused at flush
    check(model, lengths=(8, 9, 10, 11, 13, 22, 31) if alone else (4, 5, 6, 7, 8, 13, 22, 31), steps=(None, 5))


@pytest.mark.parametrize("channels", [1, 5, 16, 20])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_frames_of_any_size(check: Check, mode: str, channels: int) -> None:
    """Frames of 16 elements and more are padded in memory."""
    net, x = stack(channels)
    y = resized(net, x, 4.0, mode=mode)
    check(net.model(y, net.conv(y, channels, 2, 3, pads=[1, 1])), lengths=(1, 2, 5, 9), steps=(None,))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("scales", [(2.0, 1.0), (2.0, 2.0), (1.0, 3.0), (0.5, 1.6), (1.5, 0.4)])
def test_time_and_frequency(check: Check, scales: tuple[float, float], axis: int, mode: str) -> None:
    net = Net(opset=19)
    x = net.input([1, 2, TIME, 5] if axis == 2 else [1, 2, 5, TIME])
    places = net.const(np.array([1.0, 1.0, *(scales if axis == 2 else scales[::-1])]))
    h = net.conv(x, 2, 2, [3, 3], pads=[1, 1, 1, 1])
    check(net.model(net.op("Resize", h, "", places, mode=mode)), lengths=(4, 5, 8, 13), steps=(None, 3))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("places", ["half_pixel", "align_corners", "asymmetric"])
def test_frequency_alone(check: Check, mode: str, places: str) -> None:
    """Frame by frame, so that every mode will do."""
    net = Net(opset=19)
    x = net.input([1, 2, TIME, 6])
    sizes = net.op("Concat", net.op("Shape", x, end=3), net.const([10]), axis=0)
    y = net.op("Resize", x, "", "", sizes, mode=mode, coordinate_transformation_mode=places)
    check(net.model(y), lengths=(1, 2, 5, 9), steps=(None, 3))


def to_the_length_of(net: Net, x: str, other: str, **attrs: Any) -> str:
    """As exporters write interpolate(x, size=other.shape[2:])."""
    sizes = net.op("Concat", net.op("Shape", x, end=2), net.op("Shape", other, start=2), axis=0)
    return str(net.op("Resize", x, "", "", sizes, **attrs))


def test_to_the_length_of_a_skip_connection(check: Check) -> None:
    """Nearest with asymmetric places, rounded down, as PyTorch exports it: odd lengths pick the same frames."""
    net, x = stack(3, opset=18)
    down = net.op("Relu", net.conv(x, 3, 4, 3, strides=[2], pads=[1, 1]))
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    up = to_the_length_of(net, down, x, **nearest)
    check(net.model(net.conv(net.op("Concat", up, x, axis=1), 7, 2, 3, pads=[1, 1])), lengths=range(1, 24))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_to_a_multiple_of_the_length(check: Check, mode: str) -> None:
    net, x = stack(2, opset=18)
    h = net.conv(x, 2, 2, 3, pads=[1, 1])
    twice = net.op("Mul", net.length(h, 2), net.const([2]))
    sizes = net.op("Concat", net.const([1, 2]), twice, axis=0)
    check(net.model(net.op("Resize", h, "", "", sizes, mode=mode)), lengths=(1, 2, 5, 9))


def test_linear_back_to_a_length_that_divides(check: Check) -> None:
    """Padded to an even length, halved, and resized to the length it had."""
    net, x = stack(2, opset=18)
    odd = net.op("Mod", net.length(x, 2), net.const([2]))
    even = net.op("Pad", x, net.op("Concat", net.const([0] * 5), odd, axis=0))
    half = net.conv(even, 2, 2, 2, strides=[2])
    check(net.model(net.op("Add", even, to_the_length_of(net, half, even, mode="linear"))), lengths=range(1, 20))


def test_of_whole_numbers(check: Check) -> None:
    net = Net()
    x = net.input([1, 2, TIME], dtype="int32")
    y = resized(net, x, 2.0)
    check(net.model(y, dtypes={y: "int32"}), lengths=(1, 2, 5, 9))


def test_with_axes(check: Check) -> None:
    net, x = stack(2, opset=18)
    check(net.model(net.op("Resize", x, "", net.const(np.array([2.0])), axes=[2], mode="linear")))


REFUSED: dict[str, tuple[float, dict[str, Any], str]] = {
    "cubic": (2.0, {"mode": "cubic"}, "cubic interpolation"),
    "corners": (2.0, {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, "last frame to the last"),
    "antialias": (0.5, {"mode": "linear", "antialias": 1}, "antialias"),
    "no_ratio": (1 / 3, {"mode": "nearest"}, "no simple ratio"),
    "symmetric": (0.5, {"mode": "linear", "coordinate_transformation_mode": "half_pixel_symmetric"}, "not quite 1/2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    scale, attrs, reason = REFUSED[case]
    net = Net(opset=19)
    x = net.input([1, 2, TIME, 4])
    with pytest.raises(Refused, match=reason):
        oracle.check(net.model(resized(net, x, scale, rank=4, **attrs)))


@pytest.mark.parametrize("attrs", [{"mode": "linear"}, {"mode": "nearest"}])
def test_a_length_that_does_not_divide_is_refused(attrs: dict[str, Any]) -> None:
    """Places half a frame in depend on the exact ratio of the lengths, which odd lengths change."""
    net, x = stack(3, opset=18)
    down = net.conv(x, 3, 3, 3, strides=[2], pads=[1, 1])
    with pytest.raises(Refused, match="not quite 2 for every length"):
        oracle.check(net.model(net.op("Add", to_the_length_of(net, down, x, **attrs), x)))


def test_a_fixed_size_is_refused() -> None:
    net, x = stack(2, opset=18)
    with pytest.raises(Refused, match="to 40 frames"):
        oracle.check(net.model(net.op("Resize", x, "", "", net.const([1, 2, 40]))))
