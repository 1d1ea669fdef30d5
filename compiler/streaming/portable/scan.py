"""The portable form of loops over time: a Scan over the call's frames, its states carried from call to call."""

from __future__ import annotations

from onnx import helper

from runnel.compiler.streaming.emit import Builder, Chunk, value_info
from runnel.compiler.streaming.kinds.scan import Body, Scan
from runnel.compiler.streaming.portable.registry import WRITERS, Chunks, writes


@writes(Scan)
def scan(b: Builder, node: Scan, chunks: Chunks) -> Chunk:
    delay = max(chunks[s].delay for s in node.streams)
    frames = chunks[node.streams[0]].frames
    key = ("scan", node.body)
    if key not in b.shared:
        b.shared[key] = _write(b, node, chunks, delay)
    return Chunk(b.shared[key][node.index], delay, frames)


def _write(b: Builder, node: Scan, chunks: Chunks, delay: int) -> list[str]:
    """The names of the outputs."""
    body, x = node.body, node.streams[0]
    late = [b.delayed(s, chunks[s], delay) for s in node.streams]
    taken = [c.name for c in late]
    if not b.steady:
        numbers = b.numbers(x.fact.rate, delay, late[0].frames)
        started = b.node("Less", [b.constant(-1), numbers])
        taken.append(b.node("And", [started, b.node("Less", [numbers, b.length(x.fact.length)])]))
    ports = []
    for state in body.states:
        kept = state.stream
        ports.append(b.state(f"loop.{kept.name}", kept.frame_shape, kept.dtype, state.initial))
    outputs = [b.fresh(f"{node.name}.{i}") for i in range(len(body.outputs))]
    inputs = [name for name, _ in ports] + taken
    axes = [s.axis for s in node.streams] + ([] if b.steady else [0])
    b.nodes.append(
        helper.make_node(
            "Scan",
            inputs,
            [out for _, out in ports] + outputs,
            name=b.fresh(node.name),
            body=_turn(b, body),
            num_scan_inputs=len(taken),
            scan_input_axes=axes,
            scan_output_axes=body.axes,
        )  # fmt: skip
    )
    return outputs


def _turn(b: Builder, body: Body) -> object:
    """The body: it keeps its states on frames that are not the stream's own."""
    around, b.nodes = b.nodes, []
    named = [s.stream for s in body.states] + body.inputs
    chunks = {s: Chunk(b.fresh(s.name), 0, 1) for s in named}
    inputs = [value_info(chunks[s].name, s.dtype, s.shape) for s in named]
    valid = b.fresh("valid")
    for node in body.nodes:
        chunks[node.output] = WRITERS[type(node)](b, node, chunks)
    outputs = []
    for state in body.states:
        names = [chunks[state.next].name, chunks[state.stream].name]
        name = b.node("Identity", names[:1]) if b.steady else b.node("Where", [valid, *names])
        outputs.append(value_info(name, state.next.dtype, state.next.shape))
    for stream in body.outputs:
        outputs.append(value_info(b.node("Identity", [chunks[stream].name]), stream.dtype, stream.shape))
    if not b.steady:
        inputs.append(value_info(valid, "bool", ()))
    nodes, b.nodes = b.nodes, around
    return helper.make_graph(nodes, "turn", inputs, outputs)
