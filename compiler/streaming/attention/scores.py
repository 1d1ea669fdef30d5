"""What lies between Q·Kᵀ and the softmax, run on numbers: masks and biases become arrays for any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runnel.compiler.graph.fold import node_proto, session
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.attention.pattern import SHAPES, Pattern

MOST_ELEMENTS = 96 << 20
Shape = Callable[[str, int], tuple[int, ...] | None]


class TooLarge(Exception):
    """The scores of this length are too many to be looked at."""


class Scores:
    """The part of a model between its products and one softmax, as a function of them and of the length.

    shape: (name, input frames) → shape of a tensor of the model there, None where it is not known.
    """

    def __init__(self, graph: Graph, pattern: Pattern, shape: Shape) -> None:
        self.graph, self.pattern, self.shape = graph, pattern, shape
        self._tables: dict[int, np.ndarray] = {}
        self.leaves = [p.node.outputs[0] for p in (pattern.scores, pattern.relative) if p is not None]
        self.inner = self._downstream(self.leaves)
        self.tanh = next((n for n in pattern.nodes if n.op == "Tanh" and self._on_path(n)), None)

    def _on_path(self, node: Node) -> bool:
        return bool(self._downstream([self.leaves[0]]).intersection(node.inputs))

    def _downstream(self, names: Sequence[str]) -> set[str]:
        found = set(names)
        for node in self.pattern.nodes:
            if node.op not in SHAPES and found.intersection(node.inputs):
                found.update(node.outputs)
        return found

    def run(self, frames: int, leaves: dict[str, np.ndarray], output: str) -> np.ndarray:
        """The value of ``output`` for an input of so many frames, given values at the ``leaves``.

        Raises TooLarge; whatever onnxruntime raises where the model does not take the length.
        """
        proto = self._proto(frames, leaves, output)
        return np.asarray(session(proto).run([output], leaves)[0])

    def zeros(self, frames: int, leaf: str, fill: float = 0.0) -> np.ndarray:
        """Scores of one value everywhere."""
        shape = self.shape(leaf, frames)
        assert shape is not None
        if leaf != self.leaves[0]:
            shape = (*shape[:-1], self.table(frames).shape[-1])
        if int(np.prod(shape, dtype=np.int64)) > MOST_ELEMENTS:
            raise TooLarge
        return np.full(shape, fill, np.float32)

    def table(self, frames: int) -> np.ndarray:
        """The table of the relative product, (batch…, features, columns)."""
        assert self.pattern.relative is not None
        name = self.pattern.relative.node.inputs[1]
        if name in self.graph.constants:
            return self.graph.constants[name]
        if frames not in self._tables:
            self._tables[frames] = self.run(frames, {}, name)
        return self._tables[frames]

    def _proto(self, frames: int, leaves: dict[str, np.ndarray], output: str) -> onnx.ModelProto:
        needed, nodes = {output}, []
        for node in reversed(self.pattern.nodes):
            if not needed.intersection(node.outputs) or set(node.outputs).issubset(leaves):
                continue
            given = node.op in SHAPES and not (leaves and node.inputs[0] in self.inner)
            nodes.append(self._shape_of(node, frames) if given else node_proto(node))
            if not given:
                needed.update(node.inputs)
        constants = [
            numpy_helper.from_array(np.asarray(v, order="C"), k) for k, v in self.graph.constants.items() if k in needed
        ]
        ports = [helper.make_tensor_value_info(k, onnx.TensorProto.FLOAT, v.shape) for k, v in leaves.items()]
        graph = helper.make_graph(
            nodes[::-1], "scores", ports, [helper.make_empty_tensor_value_info(output)], constants
        )
        proto = self.graph.proto
        return helper.make_model(graph, opset_imports=proto.opset_import, ir_version=max(8, min(proto.ir_version, 10)))

    def _shape_of(self, node: Node, frames: int) -> onnx.NodeProto:
        dims = self.shape(node.inputs[0], frames)
        if dims is None:
            raise ValueError(f"the shape of '{node.inputs[0]}' is not known")
        if node.op == "Size":
            value = np.array(np.prod(dims, dtype=np.int64))
        else:
            value = np.array(dims[slice(node.attrs.get("start"), node.attrs.get("end"))], np.int64)
        return helper.make_node("Constant", [], list(node.outputs), value=numpy_helper.from_array(value))

    def numbers(self, kinds: str = "iuf") -> list[int]:
        """Numbers (of these kinds) and sizes written in this part of the model, up to which its masks may change."""
        found: set[int] = set()
        used = {i for n in self.pattern.nodes for i in n.inputs} & set(self.graph.constants)
        for name in used:
            value = self.graph.constants[name]
            found.update(d for d in value.shape if d > 8)
            if value.size <= 64 and value.dtype.kind in kinds:
                found.update(_whole(value))
        for node in self.pattern.nodes:
            for attribute in node.attrs.values():
                found.update(_whole(np.asarray(attribute)) if _numeric(attribute) else ())
        return sorted(found)


def _numeric(value: Any) -> bool:
    return isinstance(value, (int, float, np.ndarray)) and np.asarray(value).dtype.kind in "iuf"


def _whole(values: np.ndarray) -> set[int]:
    flat = values.reshape(-1).astype(np.float64)
    flat = np.abs(flat[np.isfinite(flat)])
    return {int(v) for v in flat if v == np.floor(v) and 2 <= v < 2**31 - 1}
