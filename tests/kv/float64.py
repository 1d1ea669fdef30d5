"""A whole decoder in float64, token by token: its stream graph's ops on the standard's reference evaluator, its
attentions on the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator
from reference import Reference

from runnel.compiler.streaming.ir import Pointwise, Source, Stream, StreamGraph, Tail
from runnel.compiler.streaming.kinds.cache import CachedAttend
from runnel.kv import parse

SHAPED = ("Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten")


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype == np.float32 else x


class Float64:
    """Raises TypeError for a graph with other nodes than frame-local ops and attention over caches."""

    def __init__(self, graph: StreamGraph, start: int = 0) -> None:
        assert graph.kv is not None
        self.graph, self.spec = graph, parse(graph.kv)
        self.caches = {
            id(n): Reference(n, self.spec, start, max_frames=graph.max_frames or 0)
            for n in graph.nodes
            if isinstance(n, CachedAttend)
        }
        self._ops: dict[int, ReferenceEvaluator] = {}

    def step(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of one token, time axes of one."""
        values: dict[str, np.ndarray] = {}
        for node in self.graph.nodes:
            shape = tuple(1 if d is None else d for d in node.output.shape)
            given = [values[x.name] if isinstance(x, Stream) else x for x in node.inputs]
            if isinstance(node, Source):
                values[node.name] = _wide(inputs[node.name])
            elif isinstance(node, CachedAttend):
                q, k, v, retain, positions = (*given, None, None)[:5]
                assert q is not None and k is not None
                rows = k[0, :, 0, : node.value_dim] if v is None else v[0, :, 0]
                told = None if positions is None else [int(p) for p in positions[0, :, 0]]
                made = self.caches[id(node)].step(
                    q[0, :, 0], k[0, :, 0], rows, None if retain is None else retain[0, :, 0], told
                )
                values[node.output.name] = made.reshape(shape)
            elif isinstance(node, Pointwise):
                if node.op in SHAPED:
                    values[node.output.name] = np.reshape(given[0], shape)  # type: ignore[arg-type]
                else:
                    values[node.output.name] = self._run(node, given)
            else:
                raise TypeError(f"{type(node).__name__} '{node.name}' has no float64 form here")
        outputs = {n: s.stream if isinstance(s, Tail) else s for n, s in self.graph.outputs.items()}
        return {name: values[stream.name] for name, stream in outputs.items()}

    def _run(self, node: Pointwise, given: list[Any]) -> np.ndarray:
        if id(node) not in self._ops:
            names = [f"i{k}" if x is not None else "" for k, x in enumerate(given)]
            made = helper.make_node(node.op, names, ["y"], domain=node.domain, **node.attrs)
            ports = [helper.make_tensor_value_info(n, onnx.TensorProto.UNDEFINED, None) for n in names if n]
            out = helper.make_tensor_value_info("y", onnx.TensorProto.UNDEFINED, None)
            model = helper.make_model(
                helper.make_graph([made], "one", ports, [out]),
                opset_imports=[helper.make_opsetid(node.domain, self.graph.opset)],
            )
            self._ops[id(node)] = ReferenceEvaluator(model)
        feeds = {f"i{k}": _wide(np.asarray(x)) for k, x in enumerate(given) if x is not None}
        (result,) = self._ops[id(node)].run(None, feeds)
        return np.asarray(result)
