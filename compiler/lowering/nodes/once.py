"""Values known at the end as steps that run once, when the stream has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.signals import Read, View
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import STACKED, StreamFact, StreamNode
from runnel.compiler.streaming.kinds.once import First, Last
from runnel.compiler.streaming.kinds.running import Stack, Unstack

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

MOST_AT_ONCE = 12


@lowers(Stack, Unstack)
def as_it_is(low: Lowering, node: StreamNode) -> View:
    return low.view(node.streams[0]).reshaped(node.output.frame_shape)


@lowers(Last)
def last(low: Lowering, node: Last) -> View:
    x = node.streams[0]
    view = low.view(x)
    shape = tuple(1 if d is None else d for d in x.shape)
    reads = [read_last(low, view, x.fact, k, shape) for k in range(node.start, node.stop, -1)]
    views = [joined(low, node, reads[i : i + MOST_AT_ONCE], x.axis) for i in range(0, len(reads), MOST_AT_ONCE)]
    while len(views) > 1:
        parts = [views[i : i + MOST_AT_ONCE] for i in range(0, len(views), MOST_AT_ONCE)]
        views = [joined(low, node, [low.read(v) for v in part], x.axis) for part in parts]
    return views[0].reshaped(node.output.frame_shape)


@lowers(First)
def first(low: Lowering, node: First) -> View:
    """The frames are put together when the last of them is there, and kept."""
    x = node.streams[0]
    view, axis = low.view(x), x.axis
    made = x.fact.made.affine(1, 1 - node.stop).minimum_with(1)
    shape = tuple(1 if d is None else d for d in x.shape)
    reads = [low.read(view.reshaped(shape), offset=k) for k in range(node.start, node.stop)]
    parts = [reads[i : i + MOST_AT_ONCE] for i in range(0, len(reads), MOST_AT_ONCE)]
    fact = StreamFact(STACKED, made, Count.const(1))
    views = [joined(low, node, part, axis, fact) for part in parts]
    return joined(low, node, [low.read(v) for v in views], axis).reshaped(node.output.frame_shape)


def read_last(low: Lowering, view: View, fact: StreamFact, k: int, shape: tuple[int, ...]) -> Read:
    """A read of the k-th frame from the end of a stream."""
    behind = (view.signal.length - view.length - view.offset).later(low.graph.shortest)
    if view.stride != 1 or not behind.is_const or behind.minimum < 0:
        view, behind = owned(low, view, fact), Count.const(0)
    value = FrameValue(view.signal.name, shape, view.signal.dtype)
    read = Read(view.signal, value, -k - behind.minimum, ended=fact.made, oldest=view.offset - k)
    view.signal.reads.append(read)
    return read


def owned(low: Lowering, view: View, fact: StreamFact) -> View:
    """The view's frames in a signal of their own."""
    signal = low.signal(f"{view.signal.name}/own", view.shape, view.signal.stored, fact.made, view.length)
    read = low.read(view)
    output = FrameValue(signal.name, view.shape, view.signal.dtype)
    return low.add(FrameNode("identity", (read.value,), output), [read], signal)


def joined(low: Lowering, node: StreamNode, reads: list[Read], axis: int, fact: StreamFact | None = None) -> View:
    """The frames of reads, one after the other along an axis, at the end or when ``fact`` says."""
    fact, values = fact or node.output.fact, [r.value for r in reads]
    shape = list(values[0].shape)
    shape[axis] = sum(v.shape[axis] for v in values)
    output = FrameValue(node.name, tuple(shape), values[0].dtype)
    signal = low.signal(node.output.name, output.shape, output.dtype, fact.made, fact.length)
    op, attrs = ("concat", {"axis": axis}) if len(values) > 1 else ("identity", {})
    return low.add(FrameNode(op, tuple(values), output, attrs), reads, signal)
