"""The portable form of recurrences along time."""

from __future__ import annotations

import numpy as np
from onnx import helper

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.ir import Recurrent
from runnel.compiler.streaming.kinds.recurrence import Backward
from runnel.compiler.streaming.portable.basic import bounds
from runnel.compiler.streaming.portable.registry import Chunks, read, writes


def _constant(b: Builder, value: object) -> str:
    return b.constant(value) if isinstance(value, np.ndarray) else ""


def _op(b: Builder, node: Recurrent | Backward, inputs: list[str], outputs: list[str]) -> None:
    while not inputs[-1]:
        inputs.pop()
    b.nodes.append(helper.make_node(node.op, inputs, outputs, name=outputs[0], **node.attrs))


@writes(Recurrent)
def recurrent(b: Builder, node: Recurrent, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    if node.cells:
        chunk = b.known(x, chunk)
    weights = node.inputs[1:4]
    assert isinstance(weights[1], np.ndarray)
    hidden, batch = weights[1].shape[2], x.shape[1] or 1
    kinds = ["h", "c"] if node.op == "LSTM" else ["h"]
    initial = [v if isinstance(v, np.ndarray) else 0.0 for v in node.inputs[4 : 4 + len(kinds)]]
    ports = [
        b.state(f"{k}.{node.output.name}", (1, batch, hidden), x.dtype, v) for k, v in zip(kinds, initial, strict=True)
    ]
    name, lengths, back = chunk.name, "", ""
    if not b.steady:
        low, high = bounds(b, x, chunk)
        count = b.node("Max", [b.node("Sub", [high, low]), b.constant(0)])
        if chunk.frames > 1 and chunk.delay > 0:
            last, zero, steps = b.constant(chunk.frames - 1), b.constant(0), b.constant(np.arange(chunk.frames))
            forth = b.node("Min", [b.node("Add", [steps, low]), last])
            back = b.node("Max", [b.node("Sub", [steps, low]), zero])
            name = b.node("Gather", [name, forth], axis=0)
        any_frames = b.node("Less", [b.constant(0), count])
        at_least_one = b.node("Max", [count, b.constant(1)])
        lengths = b.node("Expand", [b.node("Cast", [at_least_one], to=6), b.constant([batch])])
    y = b.fresh(node.output.name)
    finals = [b.fresh(k) for k in kinds]
    states = [p[0] for p in ports] + [""] * (2 - len(ports))
    peephole = _constant(b, node.inputs[6] if len(node.inputs) > 6 else None)
    _op(b, node, [name, *(_constant(b, w) for w in weights), lengths, *states, peephole], [y, *finals])
    for (state, out), final in zip(ports, finals, strict=True):
        if b.steady:
            b.node("Identity", [final], out)
        else:
            b.node("Where", [any_frames, final, state], out)
    if node.cells:  # the state after the call's last frame, which the stream's last frame is read from
        shape = b.constant([chunk.frames, 1, batch, hidden])
        return Chunk(b.node("Expand", [ports[1][1], shape]), chunk.delay, chunk.frames)
    if back:
        y = b.node("Gather", [y, back], axis=0)
    return Chunk(y, chunk.delay, chunk.frames)


@writes(Backward)
def backward(b: Builder, node: Backward, chunks: Chunks) -> Chunk:
    """Every block that the call's frames touch is a sequence of a batch, with its own length near the end."""
    x, chunk = read(node, chunks)
    chunk = b.known(x, chunk)
    weights = node.inputs[1:4]
    assert isinstance(weights[1], np.ndarray)
    hidden, batch, size = weights[1].shape[2], x.shape[1] or 1, node.ahead
    frames, span = chunk.frames, 2 * size
    delay = chunk.delay + span - 1
    past = delay + size - 1 - chunk.delay
    whole = b.history(x, chunk.name, frames, past, 0.0, f"ahead.{node.output.name}")
    start = b.start(x.fact.rate, delay)
    phase = b.node("Mod", [start, b.constant(size)])  # never negative: the sign of the divisor
    first = b.node("Sub", [start, phase])
    blocks = (frames + size - 2) // size + 1
    origins = b.node("Add", [first, b.constant(np.arange(blocks) * size)])
    origin = b.node("Unsqueeze", [origins, b.constant([1])])
    places = b.node("Add", [origin, b.constant(np.arange(span)[None])])
    places = b.node("Sub", [places, b.start(x.fact.rate, chunk.delay + past)])
    places = b.node("Min", [b.node("Max", [places, b.constant(0)]), b.constant(frames + past - 1)])
    taken = b.node("Transpose", [b.node("Gather", [whole, places], axis=0)], perm=[1, 0, 2, 3])
    taken = b.node("Reshape", [taken, b.constant([span, blocks * batch, x.frame_shape[-1]])])
    left = b.node("Sub", [b.length(x.fact.length), origins])
    left = b.node("Min", [b.node("Max", [left, b.constant(1)]), b.constant(span)])
    lengths = b.node("Expand", [b.node("Unsqueeze", [left, b.constant([1])]), b.constant([blocks, batch])])
    lengths = b.node("Cast", [b.node("Reshape", [lengths, b.constant([-1])])], to=6)
    initial = [np.tile(v, (1, blocks, 1)) if isinstance(v, np.ndarray) else None for v in node.inputs[4:6]]
    states = [_constant(b, v) for v in initial]
    peephole = _constant(b, node.inputs[6] if len(node.inputs) > 6 else None)
    y = b.fresh(node.output.name)
    _op(b, node, [taken, *(_constant(b, w) for w in weights), lengths, *states, peephole], [y])
    kept = b.node("Reshape", [b.slice(y, 0, size, 0), b.constant([size, 1, blocks, batch, hidden])])
    kept = b.node("Transpose", [kept], perm=[2, 0, 1, 3, 4])
    kept = b.node("Reshape", [kept, b.constant([blocks * size, 1, batch, hidden])])
    mine = b.node("Add", [phase, b.constant(np.arange(frames))])
    return Chunk(b.node("Gather", [kept, mine], axis=0), delay, frames)
