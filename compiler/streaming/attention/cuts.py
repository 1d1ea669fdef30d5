"""Where queries, keys and values come from: the tensors before rotary positions turn them and heads repeat them.

From an operand of an attention's product upwards, as long as every op is linear in the data, there are tensors that
it is made of. Those next above everything that depends on positions are what a cache keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from runnel.compiler.graph.fold import node_proto, session
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.attention.likeness import Key, likeness
from runnel.compiler.streaming.attention.pattern import SHAPES, tainted_names
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.unruled import reads

MOVES = {
    "Identity", "Dropout", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Concat",
    "Slice", "Split", "Gather", "GatherElements", "Pad",
}  # fmt: skip
LINEAR = {*MOVES, "Mul", "Div", "Add", "Sub", "Neg", "Sum", "MatMul", "Where", "Cast", "Einsum", "ScatterND"}
COMPARED = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")
FARTHEST = 1 << 40
Shape = Callable[[str, int], tuple[int, ...] | None]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Place:
    """Tensors that an operand is made of by linear ops. turns: ops with values of positions among these. moved: whether
    the uppermost of them only moves or scales. apart: whether none of the tensors is made of another."""

    names: tuple[str, ...]
    turns: int
    moved: bool
    apart: bool


@dataclass(eq=False)
class Above:
    """What lies above the operands of attentions, and the shapes there.

    shape: (tensor, frames) → its shape. given: inputs that tell positions. known: what operands that are made alike
    are.
    """

    graph: Graph
    shape: Shape
    tainted: set[str] = field(init=False)
    maker: dict[str, Node] = field(init=False)
    given: tuple[str, ...] = ()
    known: dict[Key, Any] = field(default_factory=dict)
    place: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        known = [p for p in self.graph.inputs if p.name not in self.given]
        self.tainted = tainted_names(replace(self.graph, inputs=known))
        self.maker = {o: n for n in self.graph.nodes for o in n.outputs if o}
        self.place = {id(n): i for i, n in enumerate(self.graph.nodes)}

    def cut(self, operand: str, frames: int) -> Place:
        """The tensors next above all positions, and above repeated heads: of those with the fewest values the
        nearest."""
        places = self.places(operand)
        most = max(p.turns for p in places)
        first = next((i for i, p in enumerate(places) if p.turns == most and p.apart), None)
        if first is None:
            raise Refusal("mixes tensors that positions turn with others that they do not", "turn them on their own")
        moved = next((i for i, p in enumerate(places) if i > first and not p.moved), len(places))
        open_ = [p for p in places[first:moved] if p.apart]
        sizes = [sum(prod(self.shape(n, frames) or (1 << 60,)) for n in p.names) for p in open_]
        best = min(range(len(open_)), key=lambda i: (sizes[i], len(open_[i].names), i))
        return open_[best]

    def places(self, operand: str) -> list[Place]:
        """From the operand upwards, itself first."""
        found = [Place((operand,), 0, True, True)]
        open_, stuck = {operand: None}, set[str]()
        turns = 0
        while makers := {n for name in open_ if name not in stuck and (n := self.maker.get(name)) is not None}:
            node = max(makers, key=lambda n: self.place[id(n)])
            if not self._linear(node):
                stuck.update(node.outputs)
                continue
            turns += self._turns(node)
            for name in node.outputs:
                open_.pop(name, None)
            open_ |= dict.fromkeys(i for i in node.inputs if i in self.tainted)
            apart = not any(self._made_of(name, open_) for name in open_)
            found.append(Place(tuple(open_), turns, self._moves(node), apart))
        return found

    def _made_of(self, name: str, others: Collection[str]) -> bool:
        """Whether linear ops make a tensor of one of the others."""
        pending, seen = [name], {name}
        while pending:
            node = self.maker.get(pending.pop())
            if node is None or not self._linear(node):
                continue
            for i in node.inputs:
                if i in others and i != name:
                    return True
                if i in self.tainted and i not in seen:
                    seen.add(i)
                    pending.append(i)
        return False

    def _linear(self, node: Node) -> bool:
        data = [i for i in node.inputs if i in self.tainted]
        if node.op not in LINEAR or not data:
            return False
        if node.op in ("Mul", "MatMul", "Einsum") and len(data) > 1:
            return False
        if node.op in ("MatMul", "Einsum") and any(self._weights(i) for i in node.inputs):
            return False
        if node.op in ("Div", "Where", "Slice", "Gather", "Reshape", "Expand") and (
            data != [node.inputs[0]] if node.op != "Where" else node.inputs[0] in self.tainted
        ):
            return False
        return not (node.op in ("Add", "Sub", "Sum") and len(data) < len(node.inputs))

    def _weights(self, name: str) -> bool:
        """Whether a constant of a product is more than a matrix that moves features."""
        value = self.graph.constants.get(name)
        return value is not None and (value.ndim != 2 or not _signed_moves(value))

    def _turns(self, node: Node) -> int:
        """Whether values of positions come in here."""
        if node.op not in ("Mul", "MatMul", "Einsum", "Div"):
            return 0
        return int(any(i not in self.tainted and i not in self.graph.constants for i in node.inputs if i))

    def _moves(self, node: Node) -> bool:
        if node.op in MOVES:
            return True
        factors = [self.graph.constants[i] for i in node.inputs if i in self.graph.constants]
        return node.op in ("Mul", "Div") and len(factors) == 1 and factors[0].size == 1

    def proto(self, output: str, frames: int, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        """The part of the model that makes a tensor, for so many frames, of what is fed."""
        graph = self.graph
        needed, nodes = {output}, []
        for node in reversed(graph.nodes):
            if not needed.intersection(node.outputs) or set(node.outputs) & set(feeds):
                continue
            given = node.op in SHAPES
            nodes.append(self._shape_of(node, frames) if given else node_proto(node))
            if not given:
                needed.update(i for i in node.inputs if i)
        constants = [
            numpy_helper.from_array(np.asarray(v, order="C"), k) for k, v in graph.constants.items() if k in needed
        ]
        element = helper.np_dtype_to_tensor_dtype
        ports = [helper.make_tensor_value_info(k, element(v.dtype), v.shape) for k, v in feeds.items() if k in needed]
        body = helper.make_graph(
            nodes[::-1], "operand", ports, [helper.make_empty_tensor_value_info(output)], constants
        )
        proto = graph.proto
        return helper.make_model(body, opset_imports=proto.opset_import, ir_version=max(8, min(proto.ir_version, 10)))

    def _shape_of(self, node: Node, frames: int) -> onnx.NodeProto:
        dims = self.shape(node.inputs[0], frames)
        if dims is None:
            raise ValueError(f"the shape of '{node.inputs[0]}' is not known")
        if node.op == "Size":
            value = np.array(prod(dims), np.int64)
        else:
            value = np.array(dims[slice(node.attrs.get("start"), node.attrs.get("end"))], np.int64)
        return helper.make_node("Constant", [], list(node.outputs), value=numpy_helper.from_array(value))

    def value(self, name: str, frames: int) -> np.ndarray:
        """A tensor that depends on lengths alone."""
        if name in self.graph.constants:
            return self.graph.constants[name]
        return np.asarray(session(self.proto(name, frames, {})).run([name], {})[0])


def _signed_moves(matrix: np.ndarray) -> bool:
    """Whether each column of a matrix takes one feature at most, as it is or negated."""
    if matrix.shape[0] != matrix.shape[1] or not np.isin(matrix, (-1, 0, 1)).all():
        return False
    return bool((np.abs(matrix).sum(0) <= 1).all())


class Function:
    """An operand of an attention as a function of the tensors it is made of, for any number of frames.

    widths: features of a frame of each of them, axes: where their time lies.
    """

    def __init__(self, above: Above, operand: str, place: Place) -> None:
        self.above, self.operand, self.place = above, operand, place
        self.axes = [self._time_axis(name) for name in place.names]
        self.widths = [prod(self._shape(name, 1)) for name in place.names]
        self._sessions: dict[int, ort.InferenceSession] = {}

    def __call__(self, features: np.ndarray, frames: int, positions: np.ndarray | None = None) -> np.ndarray:
        """The operand for the features of all tensors side by side, (frames, width). positions: (axes, frames) where
        they are told; 0, 1, … on every axis where not.

        Raises whatever onnxruntime raises where the model does not take the length."""
        parts = np.split(np.asarray(features, np.float32), np.cumsum(self.widths)[:-1], axis=1)
        feeds = {
            name: self._placed(part, self._shape(name, frames), axis)
            for name, part, axis in zip(self.place.names, parts, self.axes, strict=True)
        }
        if self.operand in feeds:
            return feeds[self.operand]
        for name in self.above.given:
            shape = self._shape(name, frames)
            told = np.arange(frames) if positions is None else positions.reshape(shape)
            feeds[name] = np.ascontiguousarray(np.broadcast_to(told, shape), np.int64)
        if frames not in self._sessions:
            proto = self.above.proto(self.operand, frames, feeds)
            self._sessions = {frames: session(proto)}  # one at a time: tables may be large
        run = self._sessions[frames]
        taken = {i.name for i in run.get_inputs()}
        feeds = {k: v for k, v in feeds.items() if k in taken}
        return np.asarray(run.run([self.operand], feeds)[0])

    def ancestors(self) -> list[str]:
        """All that the operand is made of below the tensors that are fed."""
        found: dict[str, None] = {}
        pending = [self.operand]
        while pending:
            name = pending.pop()
            if name in found or name in self.place.names:
                continue
            found[name] = None
            node = self.above.maker.get(name)
            pending += [] if node is None or node.op in SHAPES else reads(node)
        return list(found)

    def changes_at(self, least: int) -> int | None:
        """The least number from ``least`` on that a length or position is compared with on the way: up to it, what was
        seen for fewer holds."""
        above, numbers = self.above, []
        for node in self._nodes():
            names = [i for i in node.inputs if i in above.graph.constants] if node.op in COMPARED else []
            for value in (above.graph.constants[i] for i in names):
                if value.size == 1 and value.dtype.kind in "iuf" and least <= value.reshape(-1)[0] < FARTHEST:
                    numbers.append(int(value.reshape(-1)[0]))
        return min(numbers, default=None)

    def _nodes(self) -> list[Node]:
        above = self.above
        makers = {id(n): n for name in self.ancestors() if (n := above.maker.get(name)) is not None}
        return sorted(makers.values(), key=lambda n: above.place[id(n)])

    def key(self) -> Key:
        """What operands that are made alike have in common."""
        above = self.above
        made = likeness(
            self._nodes(), self.place.names, above.graph.constants, self.operand,
            lambda name: (above.shape(name, 64), above.shape(name, 5)),
        )  # fmt: skip
        return (made, *(above.shape(name, 64) for name in self.place.names))

    @staticmethod
    def _placed(features: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
        rest = [d for a, d in enumerate(shape) if a != axis]
        return np.ascontiguousarray(np.moveaxis(features.reshape(len(features), *rest), 0, axis))

    def _shape(self, name: str, frames: int) -> tuple[int, ...]:
        shape = self.above.shape(name, frames)
        if shape is None:
            raise Refusal(f"reads '{name}', whose size does not grow with the tokens", "keep one axis of time")
        return shape

    def _time_axis(self, name: str) -> int:
        one, two = self._shape(name, 5), self._shape(name, 6)
        axes = [i for i, (a, b) in enumerate(zip(one, two, strict=True)) if a != b]
        if len(axes) != 1 or one[axes[0]] != 5:
            raise Refusal(f"reads '{name}', in which time is no axis of its own", "keep one axis of time")
        return axes[0]


def shapes_by_length(first: Shapes, second: Shapes, lengths: tuple[int, int]) -> Shape:
    """(tensor, frames) → shape, from the shapes at two lengths; None where a size is another function of the length."""

    def shape(name: str, frames: int) -> tuple[int, ...] | None:
        if name not in first or name not in second:
            return None
        one, other = first[name][0], second[name][0]
        if len(one) != len(other):
            return None
        dims = []
        for a, b in zip(one, other, strict=True):
            slope = (a - b) / (lengths[0] - lengths[1])
            if slope != int(slope):
                return None
            dims.append(a + int(slope) * (frames - lengths[0]))
        return tuple(dims)

    return shape
