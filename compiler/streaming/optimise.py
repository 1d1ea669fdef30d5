"""Small rewrites of the stream graph that change no result: crops and batch statistics move into the convolution
before them."""

from __future__ import annotations

from collections import Counter

import numpy as np

from runnel.compiler.streaming.ir import Operand, Pointwise, Shift, Stream, StreamGraph, StreamNode, Tail, Window


def optimise(graph: StreamGraph) -> None:
    """Apply every rewrite, in place."""
    _crop_into_window(graph)
    _statistics_into_window(graph)
    _drop_unread(graph)


def _readers(graph: StreamGraph) -> Counter[Stream]:
    count = Counter(s for n in graph.nodes for s in n.streams)
    count.update(v.stream if isinstance(v, Tail) else v for v in graph.outputs.values())
    count.update(graph.carried.values())
    return count


def _replace(graph: StreamGraph, old: StreamNode, new: StreamNode) -> None:
    """``new`` makes the output of ``old``, at the same place."""
    graph.nodes[graph.nodes.index(old)] = new
    new.output.node = new


def _crop_into_window(graph: StreamGraph) -> None:
    """conv → slice of time, as a convolution with other padding that makes only the frames that are kept."""
    readers = _readers(graph)
    for node in list(graph.nodes):
        if not isinstance(node, Shift) or node.pads or node.mode != "constant" or node.offset < 0:
            continue
        window = node.streams[0].node
        if not isinstance(window, Window) or window.stride != 1 or readers[window.output] != 1:
            continue
        left = window.left - node.offset
        x = window.streams[0]
        right = node.output.fact.length - x.fact.length - left + (window.span - 1)
        if not right.is_const:
            continue
        cropped = Window(
            window.name, window.op, window.inputs, node.output, kernel=window.kernel, stride=1,
            dilation=window.dilation,
            left=left, right=max(0, int(right.values[0])), fill=window.fill, attrs=window.attrs,
        )  # fmt: skip
        _replace(graph, node, cropped)


def _statistics_into_window(graph: StreamGraph) -> None:
    """conv → batch normalisation, as a convolution with scaled weights."""
    readers = _readers(graph)
    for node in list(graph.nodes):
        if not isinstance(node, Pointwise) or node.op != "BatchNormalization":
            continue
        window = node.streams[0].node
        if not isinstance(window, Window) or window.op != "Conv" or readers[window.output] != 1:
            continue
        scale, shift, mean, variance = (np.asarray(v, np.float64) for v in node.inputs[1:5])
        factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        weight = np.asarray(window.inputs[1], np.float64)
        bias = window.inputs[2] if len(window.inputs) > 2 else None
        old = np.asarray(bias, np.float64) if bias is not None else np.zeros(len(factor))
        shape = (-1, *(1,) * (weight.ndim - 1))
        inputs: list[Operand] = [
            window.streams[0], (weight * factor.reshape(shape)).astype(np.float32),
            ((old - mean) * factor + shift).astype(np.float32),
        ]  # fmt: skip
        merged = Window(
            window.name, "Conv", inputs, node.output, kernel=window.kernel, stride=window.stride,
            dilation=window.dilation, left=window.left, right=window.right, fill=window.fill, attrs=window.attrs,
        )  # fmt: skip
        _replace(graph, node, merged)


def _drop_unread(graph: StreamGraph) -> None:
    from runnel.compiler.streaming.ir import Source

    while True:
        readers = _readers(graph)
        kept = [n for n in graph.nodes if readers[n.output] or isinstance(n, Source)]
        if len(kept) == len(graph.nodes):
            return
        graph.nodes = kept
