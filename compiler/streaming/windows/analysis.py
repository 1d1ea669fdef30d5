"""From an offline graph to the stream graph of window mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runnel.compiler.graph.fold import fold_shapes, probe_shapes
from runnel.compiler.graph.model import Graph
from runnel.compiler.streaming.ir import Source, Stream, StreamGraph, StreamNode, Tail
from runnel.compiler.streaming.windows import rules as _rules  # noqa: F401  (registers them)
from runnel.compiler.streaming.windows.reuse import Reuse
from runnel.compiler.streaming.windows.signal import Signal, context_of
from runnel.compiler.streaming.windows.spectrum import stft_as_convolution
from runnel.compiler.streaming.windows.walk import WINDOW_RULES, Walk
from runnel.errors import InputError, Refused

__all__ = ["WINDOW_RULES", "analyse_windows"]


def analyse_windows(
    graph: Graph, axes: Mapping[str, int], window: tuple[int, int], mode: str = "exact", padding: str = "zero"
) -> StreamGraph:
    """Rewrite an offline graph whose time axes are ``axes`` for windows of (W, H) frames.

    mode: "exact", or "reuse", which differs from the offline model. padding: "signal" for reuse with signal padding.
    The multiply-adds of a hop are those of each mode and of running every window again. Raises Refused with every
    reason at once, InputError where the model does not run on W frames.
    """
    width, hop = window
    fold_shapes(graph, axes, width)
    _, shapes = probe_shapes(graph, axes, [width])
    if any(node.op == "STFT" for node in graph.nodes):
        stft_as_convolution(graph, shapes)
        _, shapes = probe_shapes(graph, axes, [width])
    if padding == "signal":
        return _with_signal(graph, axes, window, shapes)
    shared = hop < width and mode == "reuse"
    walks = {"naive": Walk(graph, window, shapes, False), "exact": Walk(graph, window, shapes)}
    if hop < width:
        walks["reuse"] = Reuse(graph, window, shapes)
    outputs = {name: _walked(walk, axes) for name, walk in walks.items()}
    chosen = walks[mode] if shared else walks["exact"]
    if chosen.reasons:
        raise Refused(chosen.reasons)
    made: dict[str, Stream | Tail] = {}
    made |= {name: s for name, s in outputs["reuse" if shared else "exact"].items() if s is not None}
    inputs = [n.output for n in chosen.nodes if isinstance(n, Source)]
    result = StreamGraph(
        graph.name, inputs, made, chosen.nodes, graph.opset, window, notes=chosen.notes, shortest=width
    )
    result.window_macs = {name: macs_per_hop(w.nodes, hop) for name, w in walks.items() if not w.reasons}
    if isinstance(chosen, Reuse) and chosen.changed:
        result.modes, result.mode_nodes = {"window": "reuse"}, {"window": list(dict.fromkeys(chosen.changed))}
    return result


def _with_signal(
    graph: Graph, axes: Mapping[str, int], window: tuple[int, int], shapes: Mapping[str, tuple[tuple[int, ...], str]]
) -> StreamGraph:
    """The stream graph with signal padding; the first walk finds how far beyond the window it reaches."""
    width, hop = window
    found = Signal(graph, window, shapes)
    outputs = _walked(found, axes)
    if found.reasons:
        raise Refused(found.reasons)
    walk = Signal(graph, window, shapes, context_of(found.nodes, outputs, width))
    outputs = _walked(walk, axes)
    made: dict[str, Stream | Tail] = {name: s for name, s in outputs.items() if s is not None}
    inputs = [n.output for n in walk.nodes if isinstance(n, Source)]
    result = StreamGraph(graph.name, inputs, made, walk.nodes, graph.opset, window, notes=walk.notes, shortest=width)
    others = {"naive": Walk(graph, window, shapes, False), "exact": Walk(graph, window, shapes)}
    for other in others.values():
        _walked(other, axes)
    walks = others | {"reuse": walk}
    result.window_macs = {name: macs_per_hop(w.nodes, hop) for name, w in walks.items() if not w.reasons}
    if walk.changed:
        result.modes, result.mode_nodes = {"padding": "signal"}, {"padding": list(dict.fromkeys(walk.changed))}
    return result


def _walked(walk: Walk, axes: Mapping[str, int]) -> dict[str, Stream | None]:
    """The outputs, after all nodes are visited."""
    for port in walk.graph.inputs:
        if port.name not in axes:
            raise InputError(
                f"input '{port.name}' has no time axis; bind it to a value at compile time (--bind {port.name}:VALUE)."
            )
        walk.source(port, axes[port.name])
    for node in walk.graph.nodes:
        walk.visit(node)
    outputs = {port.name: walk.output(port) for port in walk.graph.outputs}
    walk.drop_unread([s for s in outputs.values() if s is not None])
    return outputs


def macs_per_hop(nodes: Sequence[StreamNode], hop: int) -> float:
    """Multiply-adds of all nodes while ``hop`` input frames come in."""
    return float(sum(n.macs * n.output.fact.rate * hop for n in nodes))
