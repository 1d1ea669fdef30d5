"""The portable form of the kinds of stream nodes that most models have."""

from __future__ import annotations

from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.ir import (
    STACKED,
    Feedback,
    Pointwise,
    Shift,
    Source,
    Stream,
    Tail,
    Unfold,
    Upsample,
    Window,
)
from runnel.compiler.streaming.portable.registry import Chunks, read, writes


@writes(Source)
def _source(b: Builder, node: Source, chunks: Chunks) -> Chunk:
    return Chunk(node.output.name, 0, b.frames_of(node.output))


@writes(Feedback)
def _feedback(b: Builder, node: Feedback, chunks: Chunks) -> Chunk:
    initial = 0.0 if node.initial is None else node.initial
    b.add_state(node.output.name, node.source, node.output.frame_shape, node.output.dtype, initial)
    return Chunk(node.output.name, 0, 1)


@writes(Pointwise)
def _pointwise(b: Builder, node: Pointwise, chunks: Chunks) -> Chunk:
    delay = max(chunks[s].delay for s in node.streams)
    if chunks[node.streams[0]].each:
        return _each(b, node, {s: b.delayed(s, chunks[s], delay) for s in node.streams})
    names: list[str] = []
    for i, operand in enumerate(node.inputs):
        if operand is None:
            names.append("")
        elif isinstance(operand, Stream):
            late = b.delayed(operand, chunks[operand], delay)
            rows = node.op == "Gather" and i == 1 and operand.axis != STACKED  # frames that are not there name row 0
            names.append(b.masked(operand, late, 0.0) if rows else late.name)
        else:
            names.append(b.constant(operand))
    frames = chunks[node.streams[0]].frames
    attrs = dict(node.attrs)
    if node.op in ("Reshape", "Expand") and node.output.axis != STACKED:
        shape = attrs.pop("shape")
        names = [names[0], b.constant([frames if d is None else d for d in shape])]
        attrs.pop("allowzero", None)
    while names and not names[-1]:
        names.pop()
    index = attrs.pop("runnel.output", None)
    if index is None:
        return Chunk(b.node(node.op, names, b.fresh(node.output.name), node.domain, **attrs), delay, frames)
    count = int(attrs.pop("runnel.outputs", index + 1))  # Split shares its input out among all that it has
    outputs = [b.fresh(node.output.name if i == index else "unused") for i in range(count)]
    from onnx import helper

    b.nodes.append(helper.make_node(node.op, names, outputs, name=outputs[index], domain=node.domain, **attrs))
    return Chunk(outputs[index], delay, frames)


def _each(b: Builder, node: Pointwise, chunks: Chunks) -> Chunk:
    """The node for every tensor that a call carries."""
    first = chunks[node.streams[0]]
    parts = [
        _pointwise(b, node, {s: Chunk(c.each[i], c.delay, 1) for s, c in chunks.items()}).name
        for i in range(first.frames)
    ]
    return Chunk(parts[0], first.delay, first.frames, tuple(parts))


def reading(b: Builder, x: Stream, chunk: Chunk, left: int, stride: int, span: int, frames: int, fill: float,
            padded: bool, hint: str) -> tuple[str, int]:  # fmt: skip
    """The input frames of ``frames`` windows and the delay of the output."""
    delay = max(0, -(-(chunk.delay + span - stride - left) // stride))
    past = stride * delay + left - chunk.delay
    name = b.masked(x, chunk, fill) if padded else chunk.name
    whole = b.history(x, name, chunk.frames, past, fill, hint)
    have, need = chunk.frames + past, stride * (frames - 1) + span
    return (b.slice(whole, 0, need, x.axis) if have > need else whole), delay


@writes(Window)
def _window(b: Builder, node: Window, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    frames = b.frames_of(node.output)
    padded = node.left > 0 or node.right > 0
    if node.right > 0:
        chunk = b.known(x, chunk)
    name, delay = reading(
        b, x, chunk, node.left, node.stride, node.span, frames, node.fill, padded, f"window.{node.output.name}"
    )
    names = [name, *("" if w is None else b.constant(w) for w in node.inputs[1:] if not isinstance(w, Stream))]
    while not names[-1]:
        names.pop()
    return Chunk(b.node(node.op, names, b.fresh(node.output.name), **node.attrs), delay, frames)


@writes(Unfold)
def _unfold(b: Builder, node: Unfold, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    hint = f"window.{node.output.name}"
    name, delay = reading(b, x, chunk, -node.offset, node.stride, node.span, 1, 0.0, False, hint)
    if node.dilation > 1:
        bounds = [b.constant([v]) for v in (0, node.span, x.axis, node.dilation)]
        name = b.node("Slice", [name, *bounds])
    return Chunk(name, delay, 1)


@writes(Upsample)
def _upsample(b: Builder, node: Upsample, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    frames, past = b.frames_of(node.output), node.taps - 1
    chunk = b.known(x, chunk)
    whole = b.history(x, b.masked(x, chunk, 0.0), chunk.frames, past, 0.0, f"upsample.{node.output.name}")
    names = [whole, *("" if w is None else b.constant(w) for w in node.inputs[1:] if not isinstance(w, Stream))]
    while not names[-1]:
        names.pop()
    attrs = dict(node.attrs)
    if node.stride > node.span:  # the last block is whole: its frames past the kernel are the bias alone
        attrs["output_padding"] = list(attrs["output_padding"])
        attrs["output_padding"][x.axis - 2] = node.stride - node.span
    full = b.node("ConvTranspose", names, **attrs)
    name = b.slice(full, node.stride * past, node.stride * past + frames, x.axis)
    return Chunk(name, node.stride * chunk.delay + node.crop, frames)


@writes(Shift)
def _shift(b: Builder, node: Shift, chunks: Chunks) -> Chunk:
    x, chunk = read(node, chunks)
    if node.mode != "constant":
        return _mirror(b, node, x, chunk)
    if node.right is None or node.right > 0:
        chunk = b.known(x, chunk)
    if node.pads:
        chunk = Chunk(b.masked(x, chunk, node.fill), chunk.delay, chunk.frames)
    late = -node.offset - chunk.delay
    if late > 0:
        whole = b.history(x, chunk.name, chunk.frames, late, node.fill, f"shift.{node.output.name}")
        chunk = Chunk(b.slice(whole, 0, chunk.frames, x.axis), chunk.delay + late, chunk.frames)
    return Chunk(chunk.name, chunk.delay + node.offset, chunk.frames)


def _mirror(b: Builder, node: Shift, x: Stream, chunk: Chunk) -> Chunk:
    """Reflect and edge pads: frames are picked by number from the recent past."""
    chunk = b.known(x, chunk)
    left, right, rate = node.left, node.right or 0, x.fact.rate
    reflect = node.mode == "reflect"
    delay = chunk.delay + (left if reflect else 0)
    past = 2 * (left + right) if reflect else left + right
    whole = b.history(x, chunk.name, chunk.frames, past, 0.0, f"pad.{node.output.name}")
    number = b.node("Sub", [b.numbers(rate, delay, chunk.frames), b.constant(left)])
    last = b.node("Sub", [b.length(x.fact.length), b.constant(1)])
    if reflect:
        number = b.node("Abs", [number])
        over = b.node("Sub", [b.node("Mul", [last, b.constant(2)]), number])
        number = b.node("Min", [number, over])
    else:
        number = b.node("Min", [b.node("Max", [number, b.constant(0)]), last])
    first = b.start(rate, chunk.delay + past)
    place = b.node("Sub", [number, first])
    place = b.node("Min", [b.node("Max", [place, b.constant(0)]), b.constant(chunk.frames + past - 1)])
    return Chunk(b.node("Gather", [whole, place], axis=x.axis), delay, chunk.frames)


def bounds(b: Builder, x: Stream, chunk: Chunk) -> tuple[str, str]:
    """Scalars: where in the chunk the stream's own frames begin and end."""
    start = b.start(x.fact.rate, chunk.delay)
    n, zero = b.constant(chunk.frames), b.constant(0)
    low = b.node("Min", [b.node("Max", [b.node("Neg", [start]), zero]), n])
    high = b.node("Min", [b.node("Max", [b.node("Sub", [b.length(x.fact.length), start]), zero]), n])
    return low, high


def recent_frames(b: Builder, x: Stream, chunk: Chunk, start: int, stop: int, hint: str) -> str:
    """Frames [-start, -stop) of what there is of x so far."""
    shape = tuple(start if d is None else d for d in x.shape)
    state, out = b.state(hint, shape, x.dtype, 0.0)
    whole = b.node("Concat", [state, chunk.name], axis=x.axis)
    _, high = bounds(b, x, chunk)
    first = b.node("Reshape", [high, b.constant([1])])
    last = b.node("Add", [first, b.constant([start])])
    recent = b.slice(whole, first, last, x.axis, out)
    return b.slice(recent, 0, start - stop, x.axis)


def emit_tail(b: Builder, name: str, tail: Tail, chunk: Chunk) -> list[int]:
    """The last frames so far, as an output; returns its shape."""
    b.node("Identity", [recent_frames(b, tail.stream, chunk, tail.start, tail.stop, f"tail.{name}")], name)
    return [tail.start - tail.stop if d is None else d for d in tail.stream.shape]
