"""Where queries, keys and values come from: the tensors before rotary positions turn them and heads repeat them.

From an operand of an attention's product upwards, as long as every op is linear in the data, there are tensors that all
of it passes through. The one next above everything that depends on positions is what a cache keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from runnel.compiler.graph.fold import node_proto, session
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.attention.pattern import SHAPES, tainted_names

MOVES = {
    "Identity", "Dropout", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Tile", "Concat",
    "Slice", "Split", "Gather", "GatherElements", "Pad",
}  # fmt: skip
LINEAR = {*MOVES, "Mul", "Div", "Add", "Sub", "Neg", "Sum", "MatMul", "Where", "Cast", "Einsum", "ScatterND"}
Shape = Callable[[str, int], tuple[int, ...] | None]
Shapes = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Place:
    """A tensor that all of an operand passes through. turns: ops with values of positions below it. moved: whether
    below it are only moves and factors (given ``turns``)."""

    name: str
    turns: int
    moved: bool
    nodes: tuple[Node, ...]


@dataclass(eq=False)
class Above:
    """What lies above the operands of attentions, and the shapes there. shape: (tensor, frames) → its shape."""

    graph: Graph
    shape: Shape
    tainted: set[str] = field(init=False)
    maker: dict[str, Node] = field(init=False)
    place: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.tainted = tainted_names(self.graph)
        self.maker = {o: n for n in self.graph.nodes for o in n.outputs if o}
        self.place = {id(n): i for i, n in enumerate(self.graph.nodes)}

    def cut(self, operand: str, frames: int) -> Place:
        """The tensor next above all positions, and above repeated heads."""
        places = self.places(operand)
        most = max(p.turns for p in places)
        reached = [p for p in places if p.turns == most]
        first = reached[0]
        open_ = [first]
        for place in reached[1:]:
            if not place.moved:
                break
            open_.append(place)
        sizes = [prod(self.shape(p.name, frames) or (1 << 60,)) for p in open_]
        return open_[int(np.argmin(sizes))]

    def places(self, operand: str) -> list[Place]:
        """From the operand upwards, itself first."""
        found = [Place(operand, 0, True, ())]
        open_, turns, moved = {operand}, 0, True
        nodes: list[Node] = []
        while True:
            makers = {n for name in open_ if (n := self.maker.get(name)) is not None}
            if len(makers) == 0 or any(name not in self.maker for name in open_):
                return found
            node = max(makers, key=lambda n: self.place[id(n)])
            if not self._linear(node):
                return found
            turn = self._turns(node)
            turns += turn
            moved = True if turn else moved and self._moves(node)
            nodes.append(node)
            open_ -= set(node.outputs)
            open_ |= {i for i in node.inputs if i in self.tainted}
            if len(open_) == 1:
                found.append(Place(next(iter(open_)), turns, moved, tuple(nodes)))

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


def _signed_moves(matrix: np.ndarray) -> bool:
    """Whether each column of a matrix takes one feature at most, as it is or negated."""
    if matrix.shape[0] != matrix.shape[1] or not np.isin(matrix, (-1, 0, 1)).all():
        return False
    return bool((np.abs(matrix).sum(0) <= 1).all())


class Function:
    """An operand of an attention as a function of the tensor it is made of, for any number of frames.

    given: further tensors that are fed (the positions that a user gives), by name: frames → value.
    """

    def __init__(self, above: Above, operand: str, place: Place, given: Mapping[str, Callable[[int], np.ndarray]]):
        self.above, self.operand, self.place, self.given = above, operand, place, given
        self._sessions: dict[int, ort.InferenceSession] = {}

    def __call__(self, x: np.ndarray, frames: int, **fed: np.ndarray) -> np.ndarray:
        """The operand for data x, float32 of the tensor's shape for so many frames.

        Raises whatever onnxruntime raises where the model does not take the length."""
        feeds = {self.place.name: x} | {n: make(frames) for n, make in self.given.items()} | fed
        if self.operand == self.place.name:
            return x
        if frames not in self._sessions:
            self._sessions = {frames: session(self._proto(frames, feeds))}  # one at a time: tables may be large
        run = self._sessions[frames]
        taken = {i.name for i in run.get_inputs()}
        feeds = {k: v for k, v in feeds.items() if k in taken}
        return np.asarray(run.run([self.operand], feeds)[0])

    def shape(self, frames: int) -> tuple[int, ...]:
        """The shape of the tensor that is fed."""
        shape = self.above.shape(self.place.name, frames)
        assert shape is not None
        return shape

    def _proto(self, frames: int, feeds: Mapping[str, np.ndarray]) -> onnx.ModelProto:
        graph = self.above.graph
        needed, nodes = {self.operand}, []
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
            nodes[::-1], "operand", ports, [helper.make_empty_tensor_value_info(self.operand)], constants
        )
        proto = graph.proto
        return helper.make_model(body, opset_imports=proto.opset_import, ir_version=max(8, min(proto.ir_version, 10)))

    def _shape_of(self, node: Node, frames: int) -> onnx.NodeProto:
        dims = self.above.shape(node.inputs[0], frames)
        if dims is None:
            raise ValueError(f"the shape of '{node.inputs[0]}' is not known")
        if node.op == "Size":
            value = np.array(prod(dims), np.int64)
        else:
            value = np.array(dims[slice(node.attrs.get("start"), node.attrs.get("end"))], np.int64)
        return helper.make_node("Constant", [], list(node.outputs), value=numpy_helper.from_array(value))


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
