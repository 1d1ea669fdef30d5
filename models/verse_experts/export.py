"""The decoder with experts as ONNX: verse's graph, its weights anew, MoE of com.microsoft for feed-forward layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import helper, numpy_helper

from .network import CHOSEN, EXPERTS, LAYERS, VERSE, Decoder, Mixture

MICROSOFT = "com.microsoft"


def write(net: Decoder) -> bytes:
    """The whole ONNX model."""
    model = onnx.load(VERSE)
    graph = model.graph
    nodes = [n for n in graph.node if ".inner." not in n.name]
    kept = [t for t in graph.initializer if ".inner." not in t.name]
    values = {n.replace("/", "."): v for n, v in net.values.items()}
    tensors = [_tensor(t.name, values[t.name]) if t.name in values else t for t in kept]
    tensors.append(numpy_helper.from_array(np.array([-1, EXPERTS]), "rows_of_scores"))
    for i, mixture in enumerate(net.mixtures):
        assert isinstance(mixture, Mixture)
        x, name = f"layers.{i}.inner_norm", f"layers.{i}.experts"
        parts = {part: getattr(mixture, part) for part in ("router", "first", "second")}
        tensors += [_tensor(f"{name}.{part}", value) for part, value in parts.items()]
        scores = helper.make_node("MatMul", [x, f"{name}.router"], [f"{name}.scores"], name=f"{name}.scores")
        rows = helper.make_node("Reshape", [f"{name}.scores", "rows_of_scores"], [f"{name}.rows"], name=f"{name}.rows")
        moe = helper.make_node(
            "MoE", [x, f"{name}.rows", f"{name}.first", "", f"{name}.second"], [f"layers.{i}.inner.down"], name=name,
            domain=MICROSOFT, k=CHOSEN, activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=1,
        )  # fmt: skip
        at = next(n for n, node in enumerate(nodes) if f"layers.{i}.inner.down" in node.input)
        nodes[at:at] = [scores, rows, moe]
    for field, items in ((graph.node, nodes), (graph.initializer, tensors)):
        del field[:]
        field.extend(items)
    graph.name = "verse_experts"
    graph.doc_string = f"Decoder of English text, {LAYERS} layers with {EXPERTS} experts."
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return bytes(model.SerializeToString())


def _tensor(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(value.detach().numpy(), name)


def deviation(net: Decoder, model: bytes) -> float:
    """Of onnxruntime from PyTorch on random tokens, relative to the logits' range."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    tokens = np.random.default_rng(0).integers(700, size=(1, 33))
    with torch.no_grad():
        expected = net(torch.from_numpy(tokens)).numpy()
    (got,) = session.run(None, {"tokens": tokens})
    return float(np.abs(got - expected).max() / np.abs(expected).max())
