"""Images with their channels last: what convolutions over spatial axes make, and what follows them.

A frame (channels, height, width) is kept as (height, width, channels) where its maker is such a convolution, or follows
one and does not mind. Vectors then go over channels, whatever the width of the image and its padding. Frames that come
in, go out or are read by anything else keep the model's order; between the two a step turns them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.fuse import ANCHORS, CELLS, MOVING, NUMBERED, REDUCTIONS
from runnel.compiler.lowering.images import Order, gain, is_image_conv, turned
from runnel.compiler.lowering.lower import Lowering
from runnel.compiler.lowering.signals import Cached, Choose, Copy, Fetch, Read, Signal, Step, View

_POOLS = ("max_pool", "avg_pool")
_AXIS = {"concat": 0, "gather": 0, "softmax": -1, "log_softmax": -1}
_SAME_RANK = {"concat", "pad", "slice", "gather", "softmax", "log_softmax"} | REDUCTIONS
_STILL = (ANCHORS | CELLS | MOVING | NUMBERED | {"gather_at"}) - {"expand"} - _SAME_RANK
_TURN = 64
"""Multiply-adds in the time that turning one element takes."""


def put_channels_last(low: Lowering, lanes: int) -> Lowering:
    """A lowering with images turned where kernels for vectors of ``lanes`` gain more than turning costs."""
    left_out: set[int] = set()
    while True:
        layout = _Layout(low, lanes, left_out)
        layout.run()
        worse = layout.worse()
        if not worse:
            return low
        left_out |= worse
        low = Lowering(low.graph).run()


class _Layout:
    """last: the channels of the signals whose channels lie last. left_out: convolutions, by number, that keep the
    model's order."""

    def __init__(self, low: Lowering, lanes: int, left_out: set[int]) -> None:
        self.low, self.lanes = low, lanes
        self.left_out = {id(step) for i, step in enumerate(low.steps) if i in left_out}
        self.region: dict[Signal, list[Signal]] = {}
        self.balance: dict[Signal, float] = {}
        self.last: dict[Signal, int] = {}
        self.steps: list[Step | Cached | Choose | Copy | Fetch] = []
        self.again: dict[tuple[Signal, tuple[int, ...]], Signal] = {}
        self.carried = {signal for _, signal in low.feedback}
        self.fixed = {*low.inputs, *low.statics, *self.carried}
        self.readers: dict[Signal, list[Step]] = {}
        for step in low.steps:
            if isinstance(step, Step):
                for read in step.reads:
                    self.readers.setdefault(read.signal, []).append(step)

    def run(self) -> None:
        for step in self.low.steps:
            channels, out = 0 if isinstance(step, (Cached, Choose, Fetch)) else self._channels(step) or 0, step.output
            free = out not in self.fixed and out.unit == 1
            if free and 1 < channels < out.elements and turned(out.shape, channels):
                self.last[out] = channels
                self._join(step)
        if not self.last:
            return
        convolutions = [s for s in self.low.steps if isinstance(s, Step) and self._is_image(s)]
        self.convolutions = {s.output: self.low.steps.index(s) for s in convolutions}
        for step in self.low.steps:
            self._rewrite(step)
        for name, (view, tail) in self.low.outputs.items():
            if view.signal in self.last:
                signal = self._signal(view.signal, 0)
                self.low.outputs[name] = View(signal, view.offset, view.stride, view.shape, view.length), tail
        for signal, channels in self.last.items():
            order = turned(signal.shape, channels)
            assert order is not None
            signal.shape = tuple(signal.shape[i] for i in order)
        self.low.steps = self.steps

    def worse(self) -> set[int]:
        """The numbers of convolutions in regions that cost more than they gain."""
        found = set()
        for out, region in self.region.items():
            if out in self.convolutions and sum(self.balance.get(s, 0.0) for s in region) <= 0:
                found.add(self.convolutions[out])
        return found

    def _join(self, step: Step | Cached | Choose | Copy | Fetch) -> None:
        """Put a signal in the region of what it is made of."""
        region = [step.output]
        for read in step.reads if isinstance(step, Step) else [step.read]:  # type: ignore[union-attr]
            other = self.region.get(read.signal)
            if other is not None and other is not region:
                region += other
                for signal in region:
                    self.region[signal] = region
        self.region[step.output] = region
        if isinstance(step, Step) and is_image_conv(step.node):
            self.balance[step.output] = gain(step.node, self.lanes)
        elif isinstance(step, Step) and step.node.op == "transpose":
            self.balance[step.output] = _TURN * step.output.elements

    # Which signals ---------------------------------------------------------------------------------------------------

    def _channels(self, step: Step | Copy) -> int | None:
        """The channels of a step's output if they are to lie last."""
        if isinstance(step, Copy):
            return None if step.last else self.last.get(step.read.signal)
        node, shape = step.node, step.node.output.shape
        if self._is_image(step):
            read = next(r for r in step.reads if r.value is node.inputs[0])
            each = int(node.attrs.get("group", 1)) > 1
            return None if each and read.taps > 1 and read.signal in self.carried else shape[1]
        if node.op == "transpose":
            return self._turns_for_readers(step)
        if node.op in _POOLS:
            read = step.reads[0]
            return shape[1] if self.last.get(read.signal) == read.value.shape[1] else None
        if node.op == "unfold":
            return self.last[step.reads[0].signal] if self._unfolded(step) is not None else None
        order = self._output_order(step)
        if order is None or self._attributes(node, order) is None:
            return None
        return prod(shape[: order[0]])

    def _is_image(self, step: Step) -> bool:
        return is_image_conv(step.node) and id(step) not in self.left_out

    def _turns_for_readers(self, step: Step) -> int | None:
        """A transposition whose result with channels last is its input as it is, for a convolution that reads it."""
        read = step.reads[0]
        for reader in self._readers_behind(step.output):
            x = reader.node.inputs[0]
            if self._is_image(reader) and isinstance(x, FrameValue) and read.signal not in self.last:
                order = turned(step.node.output.shape, x.shape[1])
                if order and _in_order(read.value.shape, [step.node.attrs["perm"][i] for i in order]):
                    return x.shape[1]
        return None

    def _readers_behind(self, signal: Signal) -> Iterator[Step]:
        """What reads a signal, or what is made of it element by element."""
        for reader in self.readers.get(signal, ()):
            node = reader.node
            yield reader
            if node.op not in _STILL | _SAME_RANK and prod(node.output.shape) == signal.elements:
                yield from self._readers_behind(reader.output)

    def _unfolded(self, step: Step) -> Order | None:
        """The order that puts the channels of frames last, where taps become an axis behind them; else None."""
        read = step.reads[0]
        own = turned(read.value.shape, self.last[read.signal]) if read.signal in self.last else None
        return own if own is not None and int(step.node.attrs["axis"]) >= own[0] else None

    def _output_order(self, step: Step) -> Order | None:
        """The order of an output's axes that puts the channels of all that it is made of last."""
        node, found = step.node, set()
        rank = len(node.output.shape)
        if node.op in _STILL:
            return None
        for read in step.reads:
            if read.signal in self.last:
                own = turned(read.value.shape, self.last[read.signal])
                if own is None or (node.op in _SAME_RANK and len(own) != rank) or read.taps != 1:
                    return None
                found.add(own[0] + rank - len(own))
        if len(found) != 1:
            return None
        k = found.pop()
        return [*range(k, rank), *range(k)]

    def _attributes(self, node: FrameNode, order: Order) -> dict[str, Any] | None:
        """A node's attributes with its axes in another order; None where they cannot be."""
        attrs, rank = dict(node.attrs), len(order)
        if node.op in _SAME_RANK and any(x is not None and len(x.shape) != rank for x in _data(node)):
            return None
        if node.op in _AXIS:
            if node.op == "gather" and np.ndim(node.inputs[1]) != 1:  # type: ignore[arg-type]
                return None
            attrs["axis"] = order.index(int(attrs.get("axis", _AXIS[node.op])) % rank)
        elif node.op in REDUCTIONS:
            if not attrs.get("axes") or not attrs.get("keepdims"):
                return None
            attrs["axes"] = tuple(order.index(int(a) % rank) for a in attrs["axes"])
        elif node.op == "pad":
            attrs["pads"] = [int(attrs["pads"][i + end]) for end in (0, rank) for i in order]
        elif node.op == "slice":
            steps = attrs.get("steps") or [1] * rank
            attrs |= {"starts": [attrs["starts"][i] for i in order], "ends": [attrs["ends"][i] for i in order]}
            attrs["steps"] = [steps[i] for i in order]
        elif node.op == "expand":
            attrs["shape"] = tuple(node.output.shape[i] for i in order)
        return attrs

    # What steps become -----------------------------------------------------------------------------------------------

    def _rewrite(self, step: Step | Cached | Choose | Copy | Fetch) -> None:
        out = step.output
        if isinstance(step, Cached):
            new = {r: self._given(r, step.loop) for r in step.reads}
            retain, positions = (new[r] if r else None for r in (step.retain, step.positions))
            self.steps.append(replace(step, reads=list(new.values()), retain=retain, positions=positions))
            return
        if isinstance(step, Choose):
            step.reads = [self._given(r, step.loop) for r in step.reads]
            self.steps.append(step)
            return
        if isinstance(step, (Copy, Fetch)):
            if out not in self.last:
                step.read = self._given(step.read, step.loop)
            self.steps.append(step)
            return
        node = step.node
        pools = node.op in _POOLS and self._channels(step) is not None
        if (self._is_image(step) or pools) and (out in self.last or _in_order(node.output.shape, _moved_last(node))):
            self._window(step)
        elif node.op == "transpose":
            self._transpose(step)
        elif node.op == "unfold" and out in self.last:
            self._unfold(step)
        elif (order := self._output_order(step)) is not None and (
            out in self.last or _in_order(node.output.shape, order)
        ):
            attrs = self._attributes(node, order)
            if attrs is None:
                self._finish(step, node.attrs, node.output.shape, [None] * len(node.inputs))
            else:
                shape = tuple(node.output.shape[i] for i in order)
                self._finish(step, attrs, shape, [order] * len(node.inputs))
        else:
            self._finish(step, node.attrs, node.output.shape, [None] * len(node.inputs))

    def _window(self, step: Step) -> None:
        """A convolution or pool; a dense convolution of float32 reads images in either order."""
        node, shape = step.node, step.node.output.shape
        x = node.inputs[0]
        assert isinstance(x, FrameValue)
        read = next(r for r in step.reads if r.value is x)
        places = list(range(2, len(x.shape)))
        last: Order | None = [0, *places, 1]
        dense = node.op == "conv" and int(node.attrs.get("group", 1)) == 1 and x.dtype == "float32"
        if dense and self.last.get(read.signal) != x.shape[1] and not _in_order(x.shape, [0, *places, 1]):
            last = None
        attrs = node.attrs | {"channels_last": "both" if last else "output"}
        self._finish(step, attrs, (1, *shape[2:], shape[1]), [last] + [None] * (len(node.inputs) - 1))

    def _unfold(self, step: Step) -> None:
        own, shape = self._unfolded(step), step.node.output.shape
        assert own is not None
        attrs = {"axis": int(step.node.attrs["axis"]) - own[0]}
        self._finish(step, attrs, (*shape[own[0] :], *shape[: own[0]]), [own])

    def _transpose(self, step: Step) -> None:
        node, read = step.node, step.reads[0]
        perm, shape = [int(p) for p in node.attrs["perm"]], node.output.shape
        if step.output in self.last:
            order = turned(shape, self.last[step.output])
            assert order is not None
            perm, shape = [perm[i] for i in order], tuple(shape[i] for i in order)
        own = turned(read.value.shape, self.last[read.signal]) if read.signal in self.last else None
        sizes = read.value.shape
        if own is not None:
            perm, sizes = [own.index(p) for p in perm], tuple(sizes[i] for i in own)
        if _in_order(sizes, perm):
            step = replace(step, node=replace(node, op="reshape"))
            self._finish(step, {"shape": shape}, shape, [own])
        else:
            self._finish(step, {"perm": tuple(perm)}, shape, [own])

    def _finish(self, step: Step, attrs: dict[str, Any], shape: Sequence[int], orders: Sequence[Order | None]) -> None:
        """Add a step in its new form. orders: that of each operand's axes, aligned at the end; None as it is."""
        node = step.node
        old = {r.value: r for r in step.reads}
        new: dict[FrameValue, Read] = {}
        inputs: list[FrameValue | np.ndarray | None] = []
        for x, order in zip(node.inputs, orders, strict=True):
            if isinstance(x, FrameValue):
                if x not in new:
                    new[x] = self._operand(step, old[x], order)
                inputs.append(new[x].value)
            elif isinstance(x, np.ndarray) and order is not None and x.size > 1 and x.ndim <= len(order):
                full = (1,) * (len(order) - x.ndim) + x.shape
                indices = node.op == "gather"
                inputs.append(x if indices else np.ascontiguousarray(x.reshape(full).transpose(order)))
            else:
                inputs.append(x)
        reads = [new.get(x, read) for x, read in old.items()]
        output = FrameValue(node.output.name, tuple(shape), node.output.dtype)
        made = FrameNode(node.op, tuple(inputs), output, attrs)
        if step.output not in self.last and prod(shape) == step.output.elements:
            step.output.shape = output.shape
        self.steps.append(replace(step, node=made, reads=reads))

    def _given(self, read: Read, loop: int) -> Read:
        """A read of the same frames in the model's order."""
        return _moved(read, self._signal(read.signal, loop), read.value) if read.signal in self.last else read

    def _operand(self, step: Step, read: Read, order: Order | None) -> Read:
        """A read of the same frames with their axes in an order (longer than their rank: aligned at the end)."""
        shape = read.value.shape
        lead = len(order) - len(shape) if order else 0
        full = (1,) * lead + tuple(shape)
        wanted = order or list(range(len(full)))
        own = turned(shape, self.last[read.signal]) if read.signal in self.last else list(range(len(shape)))
        if own is None:  # seen with other axes than it has: first as the model has it
            return self._operand(step, self._given(read, step.loop), order)
        value = FrameValue(read.value.name, tuple(full[i] for i in wanted), read.value.dtype)
        if _kept(shape, own) == [i - lead for i in _kept(full, wanted)]:
            read.value = value
            return read
        sizes = tuple(shape[i] for i in own)
        perm = tuple(own.index(i - lead) for i in wanted if i >= lead)
        if read.taps > 1 or read.ring or read.ended is not None:
            return _moved(read, self._signal(read.signal, step.loop, (sizes, perm), step.output), value)
        signal = self._turn(read, sizes, perm, step.loop, step.count, step.length, step.output)
        return _entered(Read(signal, value, count=step.count, loop=step.loop))

    def _signal(
        self, signal: Signal, loop: int, turn: tuple[tuple[int, ...], tuple[int, ...]] | None = None,
        owner: Signal | None = None,
    ) -> Signal:  # fmt: skip
        """All frames of a signal in another order: that of the model if it has its channels last."""
        if turn is None:
            order = turned(signal.shape, self.last[signal])
            assert order is not None
            sizes = tuple(signal.shape[i] for i in order)
            perm = tuple(order.index(i) for i in range(len(order)))
        else:
            sizes, perm = turn
        key = (signal, tuple(sizes[p] for p in perm))
        if key not in self.again:
            read = Read(signal, FrameValue(signal.name, sizes, signal.dtype), count=signal.made, loop=loop)
            copy = self._turn(_entered(read), sizes, perm, loop, signal.made, signal.length, owner)
            copy.fill = signal.fill
            self.again[key] = copy
        return self.again[key]

    def _turn(
        self, read: Read, sizes: tuple[int, ...], perm: tuple[int, ...], loop: int, made: Any, length: Any,
        owner: Signal | None,
    ) -> Signal:  # fmt: skip
        """A step that transposes what ``read`` gives, seen as ``sizes``, at the cost of the region that needs it."""
        blamed = read.signal if read.signal in self.last else owner
        if blamed is not None:
            self.balance[blamed] = self.balance.get(blamed, 0.0) - _TURN * prod(sizes)
        source = FrameValue(read.value.name, sizes, read.value.dtype)
        read.value = source
        shape = tuple(sizes[p] for p in perm)
        signal = self.low.signal(f"{read.signal.name}/turned", shape, read.signal.stored, made, length)
        node = FrameNode("transpose", (source,), FrameValue(signal.name, shape, signal.dtype), {"perm": perm})
        self.steps.append(Step(node, [read], signal, loop))
        return signal


def _moved_last(node: FrameNode) -> Order:
    """The order that puts the channels of a convolution's or pool's output last."""
    return [0, *range(2, len(node.output.shape)), 1]


def _data(node: FrameNode) -> Sequence[Any]:
    return node.inputs[:1] if node.op == "gather" else node.inputs


def _kept(shape: Sequence[int], order: Sequence[int]) -> Order:
    """The axes of an order that have more than one place."""
    return [i for i in order if shape[i] != 1]


def _in_order(shape: Sequence[int], order: Sequence[int]) -> bool:
    """Whether an order of a shape's axes leaves memory as it is."""
    kept = _kept(shape, order)
    return kept == sorted(kept)


def _entered(read: Read) -> Read:
    """A read, entered with its signal."""
    read.signal.reads.append(read)
    return read


def _moved(read: Read, signal: Signal, value: FrameValue) -> Read:
    """The same read of another signal."""
    read.signal.reads.remove(read)
    return _entered(replace(read, signal=signal, value=value))
