"""Fusion: steps become groups, one kernel each."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from runnel.compiler.lowering.choices import Guards, guards
from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.lower import Lowering
from runnel.compiler.lowering.signals import Cached, Choose, Copy, Fetch, Read, Signal, Step
from runnel.compiler.lowering.work import macs
from runnel.compiler.streaming.count import Count

ANCHORS = {
    "conv",
    "conv_transpose",
    "matmul",
    "matmul_blocks",
    "round_blocks",
    "comb_product",
    "picked_product",
    "max_pool",
    "avg_pool",
    "softmax",
    "log_softmax",
}
ANCHORS |= {
    "gru_sequence",
    "lstm_sequence",
    "rnn_sequence",
    "attend",
    "choose",
    "among",
    "shares",
    "active",
    "active_part",
    "neuron_values",
    "neuron_sum",
}
REDUCTIONS = {"reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l2"}
MOVING = {"transpose", "reshape", "slice", "pad", "gather", "expand", "concat", "unfold", "pick"}
CELLS = {"gru_cell", "lstm_c", "lstm_h"}
FROM_FRAMES = {"gather_at", "unfold", "pick"}  # they read frames where these lie
NUMBERED = {"frame_number", "frame_length", "table_row"}
MOST_POINTERS = 14


@dataclass(eq=False)
class FusedStep:
    """Steps that become one kernel; the last makes the output. guards: the flags under which it runs."""

    steps: list[Step]
    reads: list[Read]
    loop: int
    guards: Guards = ()

    @property
    def output(self) -> Signal:
        return self.steps[-1].output

    @property
    def anchor(self) -> Step | None:
        return next((s for s in self.steps if s.node.op in ANCHORS | REDUCTIONS), None)

    @property
    def chosen(self) -> Step | None:
        """The step whose constants are those of a chosen unit."""
        return next((s for s in self.steps if s.chosen is not None), None)

    @property
    def macs(self) -> int:
        """Multiply-adds of one output frame."""
        return sum(macs(s.node) for s in self.steps)

    @property
    def count(self) -> Count:
        return self.steps[-1].count

    @property
    def length(self) -> Count:
        return self.steps[-1].length


def fuse(low: Lowering) -> list[FusedStep | Cached | Choose | Copy | Fetch]:
    """Groups in an order that keeps every producer before its readers."""
    chosen = guards(low)
    kept = {view.signal for view, _ in low.outputs.values()} | {flag for each in chosen.values() for flag, _ in each}
    groups: list[FusedStep | Cached | Choose | Copy | Fetch] = []
    makers: dict[Signal, FusedStep] = {}
    for step in low.steps:
        if isinstance(step, (Copy, Cached, Choose, Fetch)):
            groups.append(step)
            continue
        group = FusedStep([step], list(step.reads), step.loop, chosen.get(step, ()))
        for read in list(step.reads):
            maker = makers.get(read.signal)
            if maker is not None and read in group.reads and read.signal not in kept and _fusible(maker, group, read):
                _absorb(maker, group, read)
                groups.remove(maker)
        groups.append(group)
        makers[group.output] = group
    groups.sort(key=lambda g: isinstance(g, Copy) and g.last)
    return groups


def _fusible(maker: FusedStep, group: FusedStep, read: Read) -> bool:
    signal, step = read.signal, group.steps[-1]
    if (
        len(signal.reads) != 1
        or not read.same_frame
        or (maker.loop, maker.guards) != (group.loop, group.guards)
        or signal.unit != 1
        or signal.initial is not None
        or maker.steps[-1].place is not None
    ):
        return False
    if signal.made != group.count or signal.fill is not None:
        return False
    if len(maker.reads) + len(group.reads) + _constants(maker) + _constants(group) > MOST_POINTERS:
        return False
    ops = [s.node.op for s in maker.steps]
    anchor = maker.anchor
    anchored = anchor is not None
    if anchor is not None and "puts" in anchor.node.attrs:
        return False  # its elements come one by one
    if anchored and any(r.signal is group.output for r in group.reads):
        return False  # a step that reads its own last frame makes one at a time
    op = step.node.op
    if group.anchor is not None and step is not group.anchor:
        return False
    if op in ANCHORS | CELLS | FROM_FRAMES or any(o in CELLS for o in ops):
        return False
    if op in REDUCTIONS:
        return not anchored and not any(o in MOVING for o in ops) and maker.output.shape == read.value.shape
    if anchored:
        same = _squeezed(maker.output.shape) == _squeezed(step.node.output.shape) == _squeezed(read.value.shape)
        return same and op not in MOVING and group.anchor is None and not any(s.node.op in MOVING for s in group.steps)
    if group.anchor is not None:
        return op in REDUCTIONS
    return signal.elements == int(np.prod(read.value.shape, dtype=np.int64))


def _constants(group: FusedStep) -> int:
    numbered = sum(s.node.op in NUMBERED for s in group.steps)
    return sum(isinstance(x, np.ndarray) and x.size > 1 for s in group.steps for x in s.node.inputs) + numbered + 1


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(d for d in shape if d != 1)


def _absorb(maker: FusedStep, group: FusedStep, read: Read) -> None:
    """Pass the maker's value to the group directly."""
    made = maker.steps[-1].node.output
    group.reads.remove(read)
    nodes = [s.node for s in group.steps]
    if maker.anchor is not None:
        nodes = _in_shape(nodes, made.shape, {read.value: made})
    elif made.shape == read.value.shape:
        nodes = [_substituted(n, {read.value: made}) for n in nodes]
    else:
        reshaped = FrameValue(read.value.name, read.value.shape, made.dtype)
        bridge = FrameNode("reshape", (made,), reshaped, {"shape": reshaped.shape})
        nodes = [_substituted(n, {read.value: reshaped}) for n in nodes]
        maker_steps = [*maker.steps, Step(bridge, [], maker.output, maker.loop)]
        maker = FusedStep(maker_steps, maker.reads, maker.loop, maker.guards)
    renamed = [replace(step, node=node) for step, node in zip(group.steps, nodes, strict=True)]
    for r in group.reads:
        r.value = _find_value(r, group.steps, renamed)
    group.steps = [*maker.steps, *renamed]
    group.reads = [*maker.reads, *group.reads]


def _find_value(read: Read, before: list[Step], after: list[Step]) -> FrameValue:
    """The value that stands for this read after its node was rewritten."""
    for old, new in zip(before, after, strict=True):
        for a, b in zip(old.node.inputs, new.node.inputs, strict=True):
            if a is read.value and isinstance(b, FrameValue):
                return b
    return read.value


def _substituted(node: FrameNode, values: dict[FrameValue, FrameValue]) -> FrameNode:
    inputs = tuple(values.get(x, x) if isinstance(x, FrameValue) else x for x in node.inputs)
    return replace(node, inputs=inputs)


def _in_shape(nodes: list[FrameNode], shape: tuple[int, ...], values: dict[FrameValue, FrameValue]) -> list[FrameNode]:
    """Element-wise nodes brought to the rank of the anchor's output: axes of one come back in. ``values`` are
    replaced."""
    keep = [i for i, d in enumerate(shape) if d != 1]
    replaced = dict(values)

    def full(dims: tuple[int, ...]) -> tuple[int, ...]:
        dims = (1,) * (len(keep) - len(dims)) + tuple(dims)
        out = [1] * len(shape)
        for at, d in zip(keep, dims, strict=True):
            out[at] = d
        return tuple(out)

    result = []
    for node in nodes:
        inputs: list[FrameValue | np.ndarray | None] = []
        for x in node.inputs:
            if isinstance(x, np.ndarray):
                inputs.append(x.reshape(full(x.shape)))
            elif x is None:
                inputs.append(None)
            else:
                if x not in replaced:
                    replaced[x] = FrameValue(x.name, full(x.shape), x.dtype)
                inputs.append(replaced[x])
        output = FrameValue(node.output.name, shape, node.output.dtype)
        replaced[node.output] = output
        result.append(replace(node, inputs=tuple(inputs), output=output))
    return result
