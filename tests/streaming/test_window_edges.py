"""Window mode where windows have edges: padding, strides against the hop, crops, joins of branches with other edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nets import Net
from oracle import Check

import runnel
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.ir import STACKED, Pointwise, Window

HOPS = [1, 2, 3, 7, 40]


def head(net: Net, h: str) -> str:
    return str(net.op("ReduceMean", h, axes=[2], keepdims=0))


def deep(net: Net, x: str) -> str:
    for left, right in ((1, 1), (2, 2), (4, 0)):
        x = net.op("Relu", net.conv(x, 3, 3, 3 if left < 4 else 5, pads=[left, right], dilations=[max(1, left // 2)]))
    return x


def strided(net: Net, x: str) -> str:
    h = net.op("Relu", net.conv(x, 3, 4, 3, pads=[1, 1], strides=[2]))
    return str(net.op("Relu", net.conv(h, 4, 3, 3, pads=[1, 1])))


def twice_strided(net: Net, x: str) -> str:
    h = net.op("MaxPool", net.conv(x, 3, 4, 3, pads=[1, 1]), kernel_shape=[2], strides=[2])
    return str(net.op("MaxPool", net.conv(h, 4, 3, 3, pads=[1, 1]), kernel_shape=[3], strides=[3], pads=[1, 1]))


def averages(net: Net, x: str) -> str:
    h = net.op("AveragePool", x, kernel_shape=[3], strides=[1], pads=[1, 1])
    h = net.op("AveragePool", h, kernel_shape=[4], strides=[2], pads=[2, 1], count_include_pad=1)
    return str(net.op("AveragePool", net.conv(h, 3, 3, 3, pads=[2, 0]), kernel_shape=[2], strides=[2], ceil_mode=1))


def same_padding(net: Net, x: str) -> str:
    h = net.conv(x, 3, 4, 4, auto_pad="SAME_UPPER", strides=[3])
    return str(net.op("MaxPool", net.conv(h, 4, 3, 2, auto_pad="SAME_LOWER"), kernel_shape=[2], auto_pad="SAME_UPPER"))


def reflected(net: Net, x: str) -> str:
    h = net.conv(net.op("Pad", x, net.const([0, 0, 3, 0, 0, 2]), mode="reflect"), 3, 3, 4)
    h = net.op("Relu", net.conv(net.op("Pad", h, net.const([0, 0, 1, 0, 0, 1]), mode="edge"), 3, 3, 3))
    return str(net.conv(net.op("Pad", h, net.const([0, 1, 2, 0, 0, 0]), net.const(0.5)), 4, 3, 3))


def residual(net: Net, x: str) -> str:
    h = net.op("Relu", net.conv(x, 3, 3, 5, pads=[2, 2]))
    h = net.op("Add", net.conv(h, 3, 3, 3, pads=[2, 0]), x)
    return str(h)


def branches(net: Net, x: str) -> str:
    h = net.op("Concat", net.conv(x, 3, 2, 3, pads=[1, 1]), net.conv(x, 3, 1, 7, pads=[3, 3]), x, axis=1)
    return str(net.op("Relu", net.conv(h, 6, 3, 3, strides=[2], pads=[1, 1])))


def cropped(net: Net, x: str) -> str:
    h = net.conv(x, 3, 3, 3, pads=[1, 1])
    h = net.op("Slice", h, net.const([2]), net.const([-3]), net.const([2]))
    return str(net.op("Add", net.conv(h, 3, 3, 3, pads=[1, 1]), h))


def every_second(net: Net, x: str) -> str:
    h = net.op("Slice", net.conv(x, 3, 3, 3), net.const([1]), net.const([1 << 62]), net.const([2]), net.const([2]))
    return str(net.conv(h, 3, 3, 3, pads=[1, 1]))


def rolled(net: Net, x: str) -> str:
    h = net.conv(x, 3, 3, 3, pads=[1, 1])
    first = net.op("Slice", h, net.const([0]), net.const([2]), net.const([2]))
    rest = net.op("Slice", h, net.const([2]), net.const([1 << 62]), net.const([2]))
    return str(net.op("Add", net.op("Concat", rest, first, axis=2), h))


def token(net: Net, x: str) -> str:
    h = net.op("Concat", net.weight(1, 3, 1), net.conv(x, 3, 3, 3, pads=[1, 1]), axis=2)
    return str(net.conv(h, 3, 3, 3, pads=[1, 1]))


def transposed_layout(net: Net, x: str) -> str:
    h = net.op("Transpose", net.conv(x, 3, 4, 3, pads=[1, 1]), perm=[0, 2, 1])
    h = net.op("Softmax", net.op("MatMul", h, net.weight(4, 3)), axis=-1)
    return str(net.conv(net.op("Transpose", h, perm=[0, 2, 1]), 3, 3, 3, pads=[1, 1]))


BODIES = (
    deep, strided, twice_strided, averages, same_padding, reflected, residual, branches, cropped, every_second, rolled,
    token, transposed_layout,
)  # fmt: skip


@pytest.mark.parametrize("hop", HOPS)
@pytest.mark.parametrize("body", BODIES)
def test_every_window_is_exact(check: Check, body: Any, hop: int) -> None:
    net = Net()
    h = body(net, net.input([1, 3, 36]))
    check(net.model(h, head(net, h)), window=36, hop=hop)


@pytest.mark.parametrize("hop", [1, 5, 8])
@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax"])
def test_sums_over_the_window_are_of_blocks(check: Check, op: str, hop: int) -> None:
    net = Net()
    h = net.conv(net.input([1, 3, 64]), 3, 4, 3, pads=[2, 1], strides=[1 if op.startswith("Global") else 2])
    if op.startswith("Global"):
        y = net.op(op, h)
    else:
        t = net.op("Transpose", h, perm=[0, 2, 1])
        y = net.op(op, t, net.const([1, 2]), keepdims=0) if op == "ReduceSum" else net.op(op, t, axes=[1], keepdims=0)
    graph = analyse(load(net.model(y)), window=64, hop=hop)
    assert max(int(n.output.shape[-1] or 0) for n in graph.nodes if n.op == "Unfold") < 32
    check(net.model(y), window=64, hop=hop)


def test_mean_over_time_and_bins(check: Check) -> None:
    net = Net()
    h = net.op("Unsqueeze", net.input([1, 40, 6]), net.const([1]))
    h = net.op("Relu", net.conv(h, 1, 4, [3, 3], pads=[1, 1, 1, 1]))
    check(net.model(net.op("GlobalAveragePool", h)), window=40, hop=4)


def test_two_dimensional_with_padding(check: Check) -> None:
    net = Net()
    h = net.op("Unsqueeze", net.input([1, 24, 6]), net.const([1]))
    h = net.op("Relu", net.conv(h, 1, 4, [5, 4], pads=[2, 1, 2, 2], strides=[2, 2]))
    h = net.op("Relu", net.conv(h, 4, 4, [3, 3], pads=[1, 1, 1, 1], group=4))
    h = net.op("AveragePool", h, kernel_shape=[12, 3], strides=[12, 3])
    y = net.op("Softmax", net.op("Gemm", net.op("Flatten", h), net.weight(5, 4), net.weight(5), transB=1))
    for hop in (1, 2, 5):
        check(net.model(y), window=24, hop=hop)


def test_columns_and_edges_of_images_are_joined_without_turning_them(check: Check, tmp_path: Path) -> None:
    net = Net()
    h = net.op("Unsqueeze", net.input([1, 24, 6]), net.const([1]))
    for inputs in (1, 16, 16):
        h = net.op("Relu", net.conv(h, inputs, 16, [3, 3], pads=[1, 1, 1, 1]))
    model = net.model(net.op("GlobalAveragePool", h))
    info = runnel.compile(model, tmp_path / "m.rnl", window=24, hop=2)
    joins = [kernel["ops"] for kernel in info.manifest["kernels"] if kernel["output"].startswith("Conv")]
    assert joins == ["unfold+concat"] * 4
    check(model, window=24, hop=2)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_recurrence_behind_padding(check: Check, kind: str) -> None:
    net = Net()
    h = net.conv(net.input([1, 3, 20]), 3, 4, 3, pads=[1, 1], strides=[2])
    y = net.recurrent(kind, net.op("Transpose", h, perm=[2, 0, 1]), 4, 3)
    check(net.model(net.op("Gather", y, net.const(-1), axis=0)), window=20, hop=3)


def test_positions_of_the_window(check: Check) -> None:
    """Another row of a table for every column of the window: nothing is shared from there on."""
    net = Net()
    h = net.op("Add", net.conv(net.input([1, 3, 20]), 3, 3, 3, pads=[1, 1]), net.weight(1, 3, 20))
    check(net.model(head(net, net.conv(h, 3, 3, 3))), window=20, hop=2)


def test_a_single_column_is_made_once_a_hop() -> None:
    """A convolution over the whole window needs no phase but the window's own."""
    net = Net()
    y = net.conv(net.conv(net.input([1, 3, 20]), 3, 4, 5), 4, 4, 16)
    graph = analyse(load(net.model(y)), window=20, hop=3)
    assert [n.stride for n in graph.nodes if isinstance(n, Window)] == [1, 3]


def test_phases_of_a_hop_against_the_stride() -> None:
    """Hop 3 behind a stride of 2: every frame is made, and a window takes every second one of them."""
    net = Net()
    h = net.conv(net.input([1, 3, 41]), 3, 4, 3, strides=[2])
    y = net.conv(h, 4, 4, 3)
    graph = analyse(load(net.model(y)), window=41, hop=3)
    assert [(n.stride, n.dilation) for n in graph.nodes if isinstance(n, Window)] == [(1, 1), (1, 2)]
    graph = analyse(load(net.model(y)), window=41, hop=4)
    assert [(n.stride, n.dilation) for n in graph.nodes if isinstance(n, Window)] == [(2, 1), (1, 1)]


def test_only_what_padding_touches_is_made_for_each_window() -> None:
    net = Net()
    h = net.conv(net.input([1, 3, 64]), 3, 4, 3, pads=[1, 1])
    y = net.conv(h, 4, 4, 3, pads=[1, 1])
    graph = analyse(load(net.model(y)), window=64, hop=4)
    edges = [n for n in graph.nodes if isinstance(n, Pointwise) and n.op == "Conv"]
    assert [n.output.shape[2] for n in edges if n.output.axis == STACKED] == [1, 1, 2, 2]
    assert graph.notes == []


def test_edges_that_meet_are_told() -> None:
    net = Net()
    x = net.input([1, 3, 8])
    for _ in range(4):
        x = net.conv(x, 3, 3, 3, pads=[1, 1])
    (note,) = analyse(load(net.model(x)), window=8, hop=1).notes
    assert "as a whole" in note
