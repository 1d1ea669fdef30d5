"""The named mode ``weights``: large weights rounded to few bits, so that a step reads less memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from runnel.compiler.graph.experts import Stacked
from runnel.compiler.graph.rounded import parse, rounded, worth
from runnel.compiler.streaming.ir import Pointwise, Recurrent, StreamGraph, StreamNode, Window

MODE = "weights"


def round_weights(graph: StreamGraph, value: str) -> None:
    """Round the weights of matrix products, of experts, of convolutions over time and of recurrences, in place."""
    bits, block = parse(value)
    done: dict[tuple[int, int], np.ndarray] = {}
    changed: list[StreamNode] = []
    for node in graph.nodes:
        for i in large_weights(node):
            weight, axis = np.asarray(node.inputs[i]), _weights(node)[i]
            key = (id(weight), axis)
            if key not in done:
                done[key] = rounded(weight, bits, block, axis)
            if done[key] is not weight:
                node.inputs[i] = done[key]
                changed.append(node)
    names = dict.fromkeys(f"{n.op} '{n.name}'" for n in changed)
    if names:
        graph.modes = graph.modes | {MODE: value}
        graph.mode_nodes = graph.mode_nodes | {MODE: list(names)}
        for node in {n.name: n for n in changed}.values():
            if (node.op, "exact") in graph.decided:
                graph.decided[graph.decided.index((node.op, "exact"))] = (node.op, f"{MODE}={value}")


def _weights(node: StreamNode) -> dict[int, int]:
    """Which inputs are weights, and along which of their axes inputs are summed up."""
    attrs: dict[str, Any] = getattr(node, "attrs", {})
    if isinstance(node, Recurrent) or (isinstance(node, Pointwise) and node.op in ("GRU", "LSTM", "RNN")):
        return {1: 2, 2: 2}
    if node.op == "MatMul" and isinstance(node, Pointwise):
        return {1: -2} if isinstance(node.inputs[1], np.ndarray) and node.inputs[1].ndim >= 2 else {}
    if node.op == "MoE" and isinstance(node, Pointwise):
        return {i: 2 for i in (2, 4) if not isinstance(node.inputs[i], Stacked)}
    if node.op == "Gemm" and isinstance(node, Pointwise):
        return {1: 1 if attrs.get("transB") else 0}
    if node.op == "Conv" and isinstance(node, Window) and int(attrs.get("group", 1)) == 1:
        return {1: 1} if isinstance(node.inputs[1], np.ndarray) and node.inputs[1].ndim == 3 else {}
    return {}


def large_weights(node: StreamNode) -> list[int]:
    """Which inputs are weights of float32 that are worth rounding."""
    found = []
    for i, axis in _weights(node).items():
        weight = node.inputs[i]
        if isinstance(weight, np.ndarray) and weight.dtype == np.float32 and _large(weight, axis):
            found.append(i)
    return found


def _large(weight: np.ndarray, axis: int) -> bool:
    inputs = weight.shape[axis]
    return worth(inputs, weight.shape[0] if weight.ndim == 3 and axis == 1 else weight.size // inputs)
