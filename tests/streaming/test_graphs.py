"""Whole networks: branches with different delays, strides and back, several outputs."""

from __future__ import annotations

import pytest
from nets import TIME, Net, stack
from oracle import Check


@pytest.mark.parametrize("pads", [[2, 2], [4, 0], [0, 4], [1, 3]])
def test_residual_stack(check: Check, pads: list[int]) -> None:
    net, x = stack(3)
    h = net.conv(x, 3, 3, 1)
    for dilation in (1, 2, 4):
        left, right = (p * dilation // 1 for p in pads)
        h = net.op("Add", h, net.op("Relu", net.conv(h, 3, 3, 5, dilations=[dilation], pads=[left, right])))
    check(net.model(net.conv(h, 3, 1, 1)))


def test_branches_with_different_delays(check: Check) -> None:
    net, x = stack(3)
    branches = [net.op("Tanh", net.conv(x, 3, 2, k, pads=[k - 1 - r, r])) for k, r in ((1, 0), (3, 1), (7, 2), (9, 8))]
    h = net.op("Concat", *branches, axis=1)
    h = net.recurrent("GRU", net.op("Transpose", h, perm=[2, 0, 1]), 8, 4, initial=True)
    h = net.op("Transpose", net.op("Squeeze", h, net.const([1])), perm=[1, 2, 0])
    check(net.model(net.op("Add", h, net.conv(branches[0], 2, 4, 3, pads=[2, 0]))))


def unet(net: Net, x: str, levels: int) -> str:
    """Down by two and back up, with a skip and a crop to the skip's length at every level."""
    skips = []
    h = x
    for _ in range(levels):
        skips.append(h)
        h = net.op("Sigmoid", net.conv(h, 3, 3, 4, strides=[2], pads=[1, 2]))
    h = net.op("Sigmoid", net.conv(h, 3, 3, 3, pads=[1, 1]))
    for skip in reversed(skips):
        h = net.op("Sigmoid", net.conv_transpose(h, 3, 3, 4, strides=[2], pads=[1, 0]))
        h = net.op("Slice", h, net.const([0]), net.length(skip, 2), net.const([2]))
        h = net.op("Concat", h, skip, axis=1)
        h = net.conv(h, 6, 3, 3, pads=[1, 1])
    return h


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_unet(check: Check, levels: int) -> None:
    net, x = stack(3)
    check(net.model(unet(net, x, levels)), lengths=(1, 2, 3, 7, 8, 9, 16, 17, 29, 45), steps=(None, 20))


def test_unet_padded_to_a_multiple(check: Check) -> None:
    """As exporters write it: pad T up to a multiple of 8, run, cut back to T."""
    net, x = stack(3)
    missing = net.op("Mod", net.op("Neg", net.length(x, 2)), net.const([8]))
    h = net.op("Pad", x, net.op("Concat", net.const([0] * 5), missing, axis=0))
    h = net.op("Slice", unet(net, h, 3), net.const([0]), net.length(x, 2), net.const([2]))
    check(net.model(net.op("Mul", h, x)), lengths=(1, 2, 7, 8, 9, 16, 17, 30), steps=(None, 20))


def test_strided_and_dilated_stack(check: Check) -> None:
    net, x = stack(2)
    h = x
    for stride, dilation in ((2, 1), (1, 4), (3, 2), (1, 1)):
        h = net.op("Tanh", net.conv(h, 2, 2, 3, strides=[stride], dilations=[dilation], pads=[2 * dilation, dilation]))
    check(net.model(h), lengths=(1, 5, 6, 7, 12, 13, 29, 40, 61))


def test_outputs_with_different_delays_and_rates(check: Check) -> None:
    net, x = stack(2)
    a = net.conv(x, 2, 2, 3, pads=[2, 0])
    b = net.conv(a, 2, 3, 9, pads=[4, 4])
    c = net.conv(b, 3, 1, 4, strides=[3], pads=[0, 3])
    d = net.conv_transpose(c, 1, 2, 5, strides=[2], pads=[2, 1])
    check(net.model(a, b, c, d))


def test_input_as_output(check: Check) -> None:
    net, x = stack(2)
    check(net.model(net.op("Identity", x), net.conv(x, 2, 2, 5, pads=[2, 2])), lengths=(1, 2, 5, 9))


def test_one_tensor_as_two_outputs(check: Check) -> None:
    net, x = stack(2)
    h = net.conv(x, 2, 2, 5, pads=[2, 2])
    check(net.model(h, net.op("Identity", h)), lengths=(1, 2, 5, 9))


def test_reflect_at_the_start_comes_in_a_burst(check: Check) -> None:
    net, x = stack(2)
    h = net.op("Pad", x, net.const([0, 0, 5, 0, 0, 0]), mode="reflect")
    check(net.model(net.conv(h, 2, 2, 3, strides=[2])), at_least=8)


def test_filterbank_in_and_out(check: Check) -> None:
    """Analysis by a strided convolution over a reflected edge, a mask from a recurrence, synthesis by its transpose."""
    net = Net()
    x = net.input([1, TIME])
    padded = net.op("Pad", net.op("Unsqueeze", x, net.const([1])), net.const([0, 0, 8, 0, 0, 8]), mode="reflect")
    bank = net.weight(6, 1, 16)
    spectrum = net.op("Conv", padded, bank, strides=[4])
    h = net.recurrent("GRU", net.op("Transpose", net.op("Abs", spectrum), perm=[2, 0, 1]), 6, 6)
    mask = net.op("Sigmoid", net.op("Transpose", net.op("Squeeze", h, net.const([1])), perm=[1, 2, 0]))
    wave = net.op("ConvTranspose", net.op("Mul", spectrum, mask), bank, strides=[4], pads=[8, 8])
    check(net.model(net.op("Squeeze", wave, net.const([1]))), lengths=(9, 10, 16, 17, 31, 40, 77), steps=(None, 16))


def test_two_inputs_that_meet_late(check: Check) -> None:
    net = Net()
    a, b = net.input([1, 2, TIME], "a"), net.input([1, TIME, 3], "b")
    h = net.op("Transpose", net.recurrent("GRU", net.op("Transpose", b, perm=[1, 0, 2]), 3, 2), perm=[1, 2, 3, 0])
    h = net.op("Squeeze", h, net.const([1]))
    h = net.op("Reshape", h, net.const([1, 2, -1]))
    check(net.model(net.op("Add", net.conv(a, 2, 2, 7, pads=[3, 3]), h)))


def test_small_weights_and_large_input(check: Check) -> None:
    net, x = stack(3)
    check(net.model(net.conv(net.op("Relu", net.conv(x, 3, 3, 3, pads=[1, 1])), 3, 3, 3, pads=[1, 1])), scale=1e4)
