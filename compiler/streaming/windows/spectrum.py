"""Fourier transforms of frames of a window, as convolutions: windows share their columns as they share others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.rules.spectrum import stft_kernel


def stft_as_convolution(graph: Graph, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    """Replace every STFT of real signals with a constant step and window, in place. shapes: of the tensors it reads."""
    nodes: list[Node] = []
    for node in graph.nodes:
        known = node.op == "STFT" and node.inputs[0] in shapes
        nodes += _replaced(graph, node, *shapes[node.inputs[0]]) if known else [node]
    graph.nodes = nodes


def _replaced(graph: Graph, node: Node, shape: tuple[int, ...], dtype: str) -> list[Node]:
    values = [graph.constants.get(i) for i in [*node.inputs[1:], "", ""][:3]]
    if any(v is None and i for v, i in zip(values, node.inputs[1:], strict=False)):
        return [node]
    step, window, length = values
    if step is None or (len(shape) == 3 and shape[2] != 1):
        return [node]
    try:
        kernel = stft_kernel(window, length, bool(node.attrs.get("onesided", 1)), shape[0], dtype)
    except Refusal:
        return [node]
    bins, size = kernel.shape[0] // (2 * shape[0]), kernel.shape[2]
    names = {k: f"{node.outputs[0]}/{k}" for k in ("rows", "kernel", "bins", "split", "rows.shape", "split.shape")}
    graph.constants[names["kernel"]] = kernel
    graph.constants[names["rows.shape"]] = np.array([1, shape[0], -1])
    graph.constants[names["split.shape"]] = np.array([shape[0], bins, 2, -1])
    attrs = {"kernel_shape": [size], "strides": [int(step.reshape(-1)[0])], "group": shape[0]}
    return [
        Node("Reshape", names["rows"], [node.inputs[0], names["rows.shape"]], [names["rows"]]),
        Node("Conv", node.name, [names["rows"], names["kernel"]], [names["bins"]], attrs),
        Node("Reshape", names["split"], [names["bins"], names["split.shape"]], [names["split"]]),
        Node("Transpose", f"{node.name}/order", [names["split"]], node.outputs, {"perm": [0, 3, 1, 2]}),
    ]
