"""From an offline graph to the stream graph of window mode."""

from __future__ import annotations

from collections.abc import Mapping

from runnel.compiler.graph.fold import fold_shapes, probe_shapes
from runnel.compiler.graph.model import Graph
from runnel.compiler.streaming.ir import Source, Stream, StreamGraph, Tail
from runnel.compiler.streaming.windows import rules as _rules  # noqa: F401  (registers them)
from runnel.compiler.streaming.windows.spectrum import stft_as_convolution
from runnel.compiler.streaming.windows.walk import WINDOW_RULES, Walk
from runnel.errors import InputError, Refused

__all__ = ["WINDOW_RULES", "analyse_windows"]


def analyse_windows(graph: Graph, axes: Mapping[str, int], window: tuple[int, int], share: bool = True) -> StreamGraph:
    """Rewrite an offline graph whose time axes are ``axes`` for windows of (W, H) frames.

    share: False runs every op on whole windows. Raises Refused with every reason at once, InputError where the model
    does not run on W frames.
    """
    width, _ = window
    fold_shapes(graph, axes, width)
    _, shapes = probe_shapes(graph, axes, [width])
    if any(node.op == "STFT" for node in graph.nodes):
        stft_as_convolution(graph, shapes)
        _, shapes = probe_shapes(graph, axes, [width])
    walk = Walk(graph, window, shapes, share)
    for port in graph.inputs:
        if port.name not in axes:
            raise InputError(
                f"input '{port.name}' has no time axis; bind it to a value at compile time (--bind {port.name}:VALUE)."
            )
        walk.source(port, axes[port.name])
    for node in graph.nodes:
        walk.visit(node)
    outputs = {port.name: walk.output(port) for port in graph.outputs}
    if walk.reasons:
        raise Refused(walk.reasons)
    made: dict[str, Stream | Tail] = {name: stream for name, stream in outputs.items() if stream is not None}
    inputs = [n.output for n in walk.nodes if isinstance(n, Source)]
    return StreamGraph(
        graph.name, inputs, made, walk.nodes, graph.opset, window, notes=walk.notes, shortest=width
    )  # fmt: skip
