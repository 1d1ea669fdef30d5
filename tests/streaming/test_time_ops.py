"""Slices, pads and joins along time: what exists, what is certain, and what is padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused

END = 1 << 62
SLICES = {
    "drop_first": (3, END),
    "drop_last": (0, -4),
    "drop_both": (2, -3),
    "everything": (0, END),
    "int_max": (1, 2**31 - 1),
}


def sliced(net: Net, x: str, start: int, stop: int, axis: int = 2) -> str:
    return str(net.op("Slice", x, net.const([start]), net.const([stop]), net.const([axis])))


@pytest.mark.parametrize("case", SLICES)
def test_slice(check: Check, case: str) -> None:
    net, x = stack(2)
    check(net.model(sliced(net, x, *SLICES[case])))


@pytest.mark.parametrize("case", SLICES)
def test_slice_between_padded_layers(check: Check, case: str) -> None:
    """Frames that the slice takes away must read as padding, and whether they are taken is known only later."""
    net, x = stack(2)
    h = net.op("Sigmoid", net.conv(x, 2, 3, 3, pads=[1, 1]))
    h = sliced(net, h, *SLICES[case])
    check(net.model(net.conv(h, 3, 2, 5, pads=[2, 2])))


@pytest.mark.parametrize(("start", "stop"), [(2, END), (3, -2), (1, -6), (7, END), (0, -1)])
@pytest.mark.parametrize("pads", [(3, 3), (0, 0), (1, 6)])
def test_crop_of_a_convolution(check: Check, start: int, stop: int, pads: tuple[int, int]) -> None:
    """The compiler makes one convolution of other padding of it."""
    net, x = stack(2)
    h = sliced(net, net.conv(net.op("Exp", x), 2, 2, 4, pads=list(pads)), start, stop)
    check(net.model(net.conv(h, 2, 2, 3, pads=[1, 1])), lengths=range(3, 24), steps=(None, 1, 5))


@pytest.mark.parametrize(("start", "stop", "step"), [(0, END, 2), (1, END, 3), (2, -1, 2), (0, -4, 3), (5, END, 4)])
@pytest.mark.parametrize("behind", ["output", "padded", "edge", "strided", "sum"])
def test_slice_in_steps(check: Check, start: int, stop: int, step: int, behind: str) -> None:
    """Every other frame, after and before layers that look ahead and pad."""
    net, x = stack(2)
    h = net.op("Sigmoid", net.conv(x, 2, 2, 3, pads=[1, 1]))
    y = net.op("Slice", h, net.const([start]), net.const([stop]), net.const([2]), net.const([step]))
    if behind == "padded":
        y = net.conv(y, 2, 2, 3, pads=[1, 1])
    elif behind == "edge":
        y = net.op("Pad", y, net.const([0, 0, 2, 0, 0, 1]), mode="edge")
    elif behind == "strided":
        y = net.conv(net.conv(y, 2, 2, 2), 2, 2, 2, strides=[2])
    elif behind == "sum":
        y = net.op("Add", y, net.op("Exp", y))
    check(net.model(y), lengths=range(5, 34, 2), at_least=8)


def test_slice_of_steps_of_time_and_channels(check: Check) -> None:
    net, x = stack(5)
    y = net.op("Slice", x, net.const([1, 1]), net.const([END, END]), net.const([1, 2]), net.const([2, 2]))
    check(net.model(y))


def test_even_and_odd_frames(check: Check) -> None:
    """Two phases of one signal, as stacked frames are written; they are equally long where the end is cut to pairs."""
    net, x = stack(2)
    even = net.op("Slice", x, net.const([0]), net.const([-1]), net.const([2]), net.const([2]))
    odd = net.op("Slice", x, net.const([1]), net.const([END]), net.const([2]), net.const([2]))
    check(net.model(net.op("Concat", even, odd, axis=1)))


@pytest.mark.parametrize("axis", [-1, 2])
def test_chomp(check: Check, axis: int) -> None:
    """Pad both sides, then cut the future off: causal, although it does not look so."""
    net, x = stack(2)
    for _ in range(3):
        x = net.op("Relu", sliced(net, net.conv(x, 2, 2, 4, pads=[3, 3]), 0, -3, axis))
    check(net.model(x), at_least=12)


def test_slice_of_time_and_channels_at_once(check: Check) -> None:
    net, x = stack(5)
    y = net.op("Slice", x, net.const([1, 2]), net.const([4, -1]), net.const([1, -1]), net.const([2, 1]))
    check(net.model(y))


def test_two_slices_joined_on_channels(check: Check) -> None:
    net, x = stack(2)
    a, b = sliced(net, x, 3, END), sliced(net, x, 0, -3)
    check(net.model(net.op("Concat", a, b, axis=1), net.op("Sub", a, b)))


def test_a_crop_and_what_it_crops_wait_for_the_same_branch(check: Check) -> None:
    """Both are late, by different amounts, of one and the same chunk."""
    net, x = stack(2)
    late = net.conv(x, 2, 2, 9, pads=[4, 4])
    whole = net.op("Add", x, late)
    cropped = net.op("Add", sliced(net, x, 3, END), sliced(net, late, 0, -3))
    check(net.model(whole, cropped), lengths=range(4, 20))


def test_a_crop_and_what_it_crops_are_padded(check: Check) -> None:
    net, x = stack(2)
    cropped = sliced(net, x, 0, -3)
    a, b = (net.conv(t, 2, 2, 5, pads=[2, 2]) for t in (x, cropped))
    check(net.model(a, b), lengths=range(4, 20))


def test_difference_then_recurrence(check: Check) -> None:
    net, x = stack(2)
    d = net.op("Sub", sliced(net, x, 1, END), sliced(net, x, 0, -1))
    check(net.model(net.recurrent("GRU", net.op("Transpose", d, perm=[2, 0, 1]), 2, 3)))


@pytest.mark.parametrize("stop", ["same", "shorter"])
def test_symbolic_slice_end(check: Check, stop: str) -> None:
    """h[:, :, : x.shape[2] - n], as exporters write it."""
    net, x = stack(2)
    h = net.conv(x, 2, 2, 4, pads=[3, 3])
    end = net.length(x, 2)
    if stop == "shorter":
        end = net.op("Sub", end, net.const([2]))
    y = net.op("Slice", h, net.const([0]), end, net.const([2]))
    check(net.model(net.conv(y, 2, 2, 3, pads=[1, 1])), lengths=range(3, 20))


def test_symbolic_slice_start_counts_from_the_end(check: Check) -> None:
    """x[:, :, T - 3 :] is known only when the stream ends."""
    net, x = stack(2)
    start = net.op("Sub", net.length(x, 2), net.const([3]))
    y = net.op("Slice", x, start, net.const([END]), net.const([2]))
    check(net.model(net.conv(x, 2, 2, 3, pads=[1, 1]), y), lengths=range(3, 20))


@pytest.mark.parametrize(("start", "stop"), [(-3, END), (-5, -2), (-1, END)])
def test_last_frames(check: Check, start: int, stop: int) -> None:
    net, x = stack(2)
    h = net.conv(x, 2, 2, 3, pads=[1, 1])
    check(net.model(h, sliced(net, h, start, stop), sliced(net, x, start, stop)))


def test_last_frames_of_a_tensor_that_ends_early(check: Check) -> None:
    net, x = stack(2)
    h = sliced(net, x, 0, -4)
    check(net.model(h, sliced(net, h, -3, END)), lengths=range(5, 22))


PADS = {"left": (3, 0), "right": (0, 4), "both": (2, 3), "crop": (-2, -1), "left_crop_right": (3, -2), "none": (0, 0)}


@pytest.mark.parametrize("value", [None, 0.0, -1.5])
@pytest.mark.parametrize("case", PADS)
def test_pad_constant(check: Check, case: str, value: float | None) -> None:
    net, x = stack(2)
    left, right = PADS[case]
    extra = [] if value is None else [net.const(value)]
    y = net.op("Pad", x, net.const([0, 0, left, 0, 0, right]), *extra)
    h = net.op(
        "Sigmoid",
        net.conv(net.op("Pad", net.op("Exp", x), net.const([0, 0, left, 0, 0, right]), *extra), 2, 2, 3, pads=[1, 1]),
    )
    check(net.model(y, net.conv(h, 2, 2, 3, pads=[1, 1])), lengths=range(4, 20))


@pytest.mark.parametrize("mode", ["reflect", "edge"])
@pytest.mark.parametrize("case", ["left", "right", "both"])
def test_pad_mirrored(check: Check, case: str, mode: str) -> None:
    net, x = stack(2)
    left, right = PADS[case]
    h = net.op("Sigmoid", net.conv(x, 2, 2, 3, pads=[1, 1]))
    y = net.op("Pad", h, net.const([0, 0, left, 0, 0, right]), mode=mode)
    check(net.model(y, net.conv(y, 2, 2, 4, strides=[2])), lengths=range(1, 24), at_least=18)


@pytest.mark.parametrize(("left", "right"), [(17, 0), (0, 12), (11, 19)])
@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_pads_as_long_as_the_input(check: Check, mode: str, left: int, right: int) -> None:
    """A reflection before the start holds its first frames back until what it mirrors has come."""
    net, x = stack(2)
    h = net.op("Sigmoid", net.conv(x, 2, 2, 3, pads=[1, 1]))
    y = net.op("Pad", h, net.const([0, 0, left, 0, 0, right]), mode=mode)
    check(net.model(net.conv(y, 2, 2, 5, strides=[3])), lengths=(1, 2, 12, 13, 18, 19, 20, 21, 25, 40), at_least=4)


def test_wrap_is_refused() -> None:
    net, x = stack(2, opset=19)
    with pytest.raises(Refused, match="in mode 'wrap'"):
        oracle.check(net.model(net.op("Pad", x, net.const([0, 0, 2, 0, 0, 2]), mode="wrap")))


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_pad_mirrored_after_a_slice(check: Check, mode: str) -> None:
    """The mirror stands at an end that is known late."""
    net, x = stack(2)
    y = net.op("Pad", sliced(net, x, 1, -3), net.const([0, 0, 2, 0, 0, 2]), mode=mode)
    check(net.model(y), lengths=range(5, 24), at_least=14)


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_pad_mirrored_is_as_long_as_the_input(check: Check, mode: str) -> None:
    net, x = stack(2)
    y = net.op("Pad", x, net.const([0, 0, 5, 0, 0, 5]), mode=mode)
    check(net.model(y), lengths=[1, 2, 4, 5, 6, 7, 8], at_least=3)


def test_pad_time_and_channels_at_once(check: Check) -> None:
    net, x = stack(2)
    y = net.op("Pad", x, net.const([0, 1, 2, 0, 0, 1]), net.const(0.5))
    check(net.model(y))


def test_pad_with_axes(check: Check) -> None:
    net, x = stack(2, opset=18)
    check(net.model(net.op("Pad", x, net.const([2, 1]), "", net.const([-1]))))


def padded_to_a_multiple(net: Net, x: str, of: int) -> str:
    """(-T) mod ``of`` frames at the end, by shape arithmetic."""
    missing = net.op(
        "Mod", net.op("Sub", net.const([of]), net.op("Mod", net.length(x, 2), net.const([of]))), net.const([of])
    )
    return str(net.op("Pad", x, net.op("Concat", net.const([0, 0, 0, 0, 0]), missing, axis=0)))


@pytest.mark.parametrize("multiple", [2, 3, 8])
def test_pad_to_a_multiple(check: Check, multiple: int) -> None:
    net, x = stack(2)
    y = padded_to_a_multiple(net, net.op("Exp", x), multiple)
    h = net.op("Tanh", net.conv(y, 2, 3, multiple, strides=[multiple]))
    up = net.conv_transpose(h, 3, 2, multiple, strides=[multiple])
    back = net.op("Slice", up, net.const([0]), net.length(x, 2), net.const([2]))
    check(net.model(net.op("Add", back, x), h), lengths=range(1, 26), at_least=24)


def test_division_of_lengths(check: Check) -> None:
    """Rounds T up to a multiple of 4 with Add, Div and Mul."""
    net, x = stack(2)
    whole = net.op(
        "Mul", net.op("Div", net.op("Add", net.length(x, 2), net.const([3])), net.const([4])), net.const([4])
    )
    missing = net.op("Sub", whole, net.length(x, 2))
    y = net.op("Pad", x, net.op("Concat", net.const([0, 0, 0, 0, 0]), missing, axis=0))
    check(net.model(net.conv(y, 2, 2, 4, strides=[4])), lengths=range(1, 20))


@pytest.mark.parametrize(("left", "right"), [(2, 0), (0, 3), (1, 2)])
@pytest.mark.parametrize("value", [0.0, 2.5])
def test_concat_of_constant_frames(check: Check, left: int, right: int, value: float) -> None:
    net, x = stack(2)
    parts = [net.const(np.full((1, 2, left), value))] * (left > 0) + [x]
    parts += [net.const(np.full((1, 2, right), value))] * (right > 0)
    y = net.op("Concat", *parts, axis=-1)
    check(net.model(y, net.conv(y, 2, 2, 3, pads=[1, 1])))


def expand_refused(build: Any, reason: str) -> None:
    net, x = stack(2)
    with pytest.raises(Refused, match=reason):
        oracle.check(net.model(build(net, x)))


def test_refusals() -> None:
    def stepped(net: Net, x: str) -> Any:
        return net.op("Slice", x, net.const([-5]), net.const([END]), net.const([2]), net.const([2]))

    def reversed_(net: Net, x: str) -> Any:
        return net.op("Slice", x, net.const([-1]), net.const([-END]), net.const([2]), net.const([-1]))

    def many_behind(net: Net, x: str) -> Any:
        return net.op("Concat", x, net.const(np.arange(40.0).reshape(1, 2, 20)), axis=2)

    def itself(net: Net, x: str) -> Any:
        return net.op("Concat", x, x, axis=2)

    def half(net: Net, x: str) -> Any:
        middle = net.op("Div", net.length(x, 2), net.const([2]))
        return net.op("Slice", x, middle, net.const([END]), net.const([2]))

    def first_half(net: Net, x: str) -> Any:
        return net.op("Slice", x, net.const([0]), net.op("Div", net.length(x, 2), net.const([2])), net.const([2]))

    def doubled(net: Net, x: str) -> Any:
        return net.op("Pad", x, net.op("Concat", net.const([0] * 5), net.length(x, 2), axis=0))

    def sawtooth(net: Net, x: str) -> Any:
        return net.op(
            "Pad", x, net.op("Concat", net.const([0] * 5), net.op("Mod", net.length(x, 2), net.const([8])), axis=0)
        )

    expand_refused(first_half, "depends on the length")
    expand_refused(doubled, "depends on the length")
    expand_refused(sawtooth, "fewer for some longer inputs")
    expand_refused(stepped, "every 2. frame, counted from the end")
    expand_refused(reversed_, "reverses time")
    expand_refused(many_behind, "20 different frames behind")
    expand_refused(itself, "behind another in time")
    expand_refused(half, "depends on the length")


def test_time_first(check: Check) -> None:
    net = Net()
    x = net.input([TIME, 3])
    check(net.model(net.op("Pad", sliced(net, x, 2, -1, axis=0), net.const([4, 0, 1, 0]))))


def split_at(net: Net, x: str, sizes: list[str]) -> list[str]:
    """Split along axis 2 into parts of the given sizes."""
    parts = [net.name("part") for _ in sizes]
    sizes_input = net.op("Concat", *sizes, axis=0)
    net.nodes.append(onnx.helper.make_node("Split", [x, sizes_input], parts, axis=2))
    return parts


def test_split_by_the_length(check: Check) -> None:
    """The first frames go, the rest streams; and the other way round, the last frames come at the end."""
    net, x = stack(2)
    h = net.conv(x, 2, 2, 3, pads=[1, 1])
    rest = net.op("Sub", net.length(x, 2), net.const([2]))
    _, kept = split_at(net, h, [net.const([2]), rest])
    check(net.model(net.conv(kept, 2, 2, 3, pads=[1, 1])), lengths=range(3, 24))
    net, x = stack(2)
    rest = net.op("Sub", net.length(x, 2), net.const([3]))
    body, last = split_at(net, x, [rest, net.const([3])])
    check(net.model(net.conv(body, 2, 2, 5, pads=[2, 2]), last), lengths=range(4, 24))


def test_split_in_the_middle_and_too_short_inputs(check: Check) -> None:
    net, x = stack(2)
    h = net.conv(x, 2, 2, 3, pads=[1, 1], strides=[2])
    rest = net.op("Sub", net.length(h, 2), net.const([5]))
    first, body, last = split_at(net, h, [net.const([2]), rest, net.const([3])])
    check(net.model(first, net.conv(body, 2, 2, 3, pads=[1, 1]), last), lengths=range(9, 24))
    for read, least in (([body], 9), ([first], 9)):
        assert analyse(load(net.model(*read))).shortest == least


def test_split_into_fixed_or_equal_parts_is_refused() -> None:
    net, x = stack(2)
    parts = split_at(net, x, [net.const([32]), net.const([32])])
    with pytest.raises(Refused, match="takes 64 frames alone"):
        oracle.check(net.model(parts[1]))
    for options in ({"opset": 17}, {"opset": 18, "num_outputs": 2}):
        net, x = stack(2, opset=options.pop("opset"))
        with pytest.raises(Refused, match="into equal parts"):
            oracle.check(net.model(net.op("Split", x, outputs=2, axis=2, **options)[0]))
