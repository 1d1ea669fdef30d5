"""Loops over time as steps: what needs no state for all frames at once, the rest frame by frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.registry import LOWERERS, lowers
from runnel.compiler.lowering.signals import View
from runnel.compiler.streaming.ir import Stream, StreamNode
from runnel.compiler.streaming.kinds.scan import Body, Scan

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@lowers(Scan)
def scan(low: Lowering, node: Scan) -> View:
    key = ("scan", node.body)
    if key not in low.shared:
        low.shared[key] = _turns(low, node)
    return low.shared[key][node.index].reshaped(node.output.frame_shape)


def _turns(low: Lowering, node: Scan) -> dict[int, View]:
    """The views of all outputs that are read."""
    body, fact = node.body, node.output.fact
    for inner, x in zip(body.inputs, node.streams, strict=True):
        low.views[inner] = low.view(x).reshaped(inner.frame_shape)
    signals = []
    for state in body.states:
        x = state.stream
        signal = low.signal(
            f"{node.name}/{x.name}", x.frame_shape, x.dtype, fact.made, fact.length, initial=state.initial[None]
        )
        signals.append(signal)
        low.views[x] = View(signal, -1, 1, signal.shape, fact.length)
    read = {n.index for n in low.graph.nodes if isinstance(n, Scan) and n.body is body}
    before, inside, after = _parts(body, [body.outputs[i] for i in sorted(read)])
    for each in before:
        _lower(low, each)
    low.loop = low.new_loop()
    for each in inside:
        _lower(low, each)
    for state, signal in zip(body.states, signals, strict=True):
        frame = low.read(low.view(state.next))
        value = FrameValue(signal.name, signal.shape, signal.dtype)
        low.add(FrameNode("identity", (frame.value,), value), [frame], signal)
    low.loop = 0
    for each in after:
        _lower(low, each)
    return {i: low.view(body.outputs[i]) for i in read}


def _lower(low: Lowering, node: StreamNode) -> None:
    low.views[node.output] = LOWERERS[type(node)](low, node)


def _parts(body: Body, read: list[Stream]) -> tuple[list[StreamNode], list[StreamNode], list[StreamNode]]:
    """Nodes that need no state, those between a state and the next one, and those behind that something reads."""
    needed: set[Stream] = {s.next for s in body.states}
    for node in reversed(body.nodes):
        if node.output in needed:
            needed.update(node.streams)
    behind = needed | set(read)
    for node in reversed(body.nodes):
        if node.output in behind:
            behind.update(node.streams)
    carried: set[Stream] = {s.stream for s in body.states}
    before: list[StreamNode] = []
    inside: list[StreamNode] = []
    after: list[StreamNode] = []
    for node in body.nodes:
        if node.output not in behind:
            continue
        if not carried.intersection(node.streams):
            before.append(node)
            continue
        carried.add(node.output)
        (inside if node.output in needed else after).append(node)
    return before, inside, after
