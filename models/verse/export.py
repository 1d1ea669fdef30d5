"""Write the trained decoder as one ONNX file, node by node, and compare it with PyTorch.

    python -m runnel.models.verse.export --build build/verse --text build/verse/kjv.txt

tokens (1, T) int64 to logits (1, T, VOCABULARY) float32. Rotary angles are computed from Range, so the graph itself
sets no limit to the length. Copies the tokenizer and one held-out book beside the model.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .constants import BEGIN, CONTEXT, NORM_EPSILON, ROPE_BASE, VOCABULARY, Shape
from .network import Decoder, Layer, RMSNorm
from .text import split

OPSET = 17
IR_VERSION = 8
MAX_BYTES = 2_000_000
HERE = Path(__file__).resolve().parent
HELD_OUT_SHIPPED = "Acts"
CHECK_LENGTHS = (1, 2, 33, 512)


class Graph:
    """Collects nodes and initializers; a node's output carries the node's name."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def const(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.array(value, order="C"), name)
        return name

    def ints(self, *values: int) -> str:
        return self.const("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, name: str, value: float) -> str:
        return self.const(name, np.array(value, np.float32))

    def op(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def linear(self, name: str, x: str, layer: torch.nn.Linear) -> str:
        weight = self.const(f"{name}.weight", array(layer.weight).T)
        if layer.bias is None:
            return self.op("MatMul", name, x, weight)
        product = self.op("MatMul", f"{name}.product", x, weight)
        return self.op("Add", name, product, self.const(f"{name}.bias", array(layer.bias)))

    def rms_norm(self, name: str, x: str, layer: RMSNorm) -> str:
        square = self.op("Mul", f"{name}.square", x, x)
        mean = self.op("ReduceMean", f"{name}.mean", square, axes=[-1], keepdims=1)
        floored = self.op("Add", f"{name}.floored", mean, self.scalar("norm_epsilon", NORM_EPSILON))
        unit = self.op("Div", f"{name}.unit", x, self.op("Sqrt", f"{name}.root", floored))
        return self.op("Mul", name, unit, self.const(f"{name}.scale", array(layer.scale)))

    def heads(self, name: str, x: str, count: int) -> str:
        """(1, T, count * head width) as (1, count, T, head width)."""
        split_up = self.op("Reshape", f"{name}.split", x, self.ints(0, 0, count, self.shape.head_width))
        return self.op("Transpose", f"{name}.heads", split_up, perm=[0, 2, 1, 3])

    def rotate(self, name: str, x: str) -> str:
        halves = (f"{name}.first", f"{name}.second")
        half = self.shape.head_width // 2
        self.nodes.append(
            helper.make_node("Split", [x, self.ints(half, half)], list(halves), name=f"{name}.halves", axis=-1)
        )
        turned = self.op("Concat", f"{name}.turned", self.op("Neg", f"{name}.minus", halves[1]), halves[0], axis=-1)
        level = self.op("Mul", f"{name}.cos", x, "cos")
        return self.op("Add", f"{name}.rotated", level, self.op("Mul", f"{name}.sin", turned, "sin"))

    def repeat(self, name: str, x: str) -> str:
        """Each key or value head once for every query head of its group."""
        kv_heads, group = self.shape.kv_heads, self.shape.heads // self.shape.kv_heads
        apart = self.op("Unsqueeze", f"{name}.apart", x, self.ints(2))
        copies = self.op("Expand", f"{name}.copies", apart, self.ints(1, kv_heads, group, 1, 1))
        return self.op("Reshape", f"{name}.repeated", copies, self.ints(1, self.shape.heads, -1, self.shape.head_width))

    def attention(self, name: str, x: str, layer: Layer) -> str:
        heads, kv_heads, width = self.shape.heads, self.shape.kv_heads, self.shape.head_width
        q = self.rotate(f"{name}.q", self.heads(f"{name}.q", self.linear(f"{name}.query", x, layer.query), heads))
        k = self.rotate(f"{name}.k", self.heads(f"{name}.k", self.linear(f"{name}.key", x, layer.key), kv_heads))
        v = self.heads(f"{name}.v", self.linear(f"{name}.value", x, layer.value), kv_heads)
        k, v = self.repeat(f"{name}.k", k), self.repeat(f"{name}.v", v)
        columns = self.op("Transpose", f"{name}.k.columns", k, perm=[0, 1, 3, 2])
        scores = self.op("MatMul", f"{name}.products", q, columns)
        scores = self.op("Mul", f"{name}.scaled", scores, self.scalar("score_scale", width**-0.5))
        scores = self.op("Where", f"{name}.masked", "seen", scores, self.scalar("never", float("-inf")))
        weights = self.op("Softmax", f"{name}.weights", scores, axis=-1)
        mixed = self.op("Transpose", f"{name}.rows", self.op("MatMul", f"{name}.mixed", weights, v), perm=[0, 2, 1, 3])
        joined = self.op("Reshape", f"{name}.joined", mixed, self.ints(0, 0, heads * width))
        return self.linear(f"{name}.out", joined, layer.out)

    def feed_forward(self, name: str, x: str, layer: Layer) -> str:
        gate = self.op("Relu", f"{name}.active", self.linear(f"{name}.gate", x, layer.gate))
        inner = self.op("Mul", f"{name}.inner", gate, self.linear(f"{name}.up", x, layer.up))
        return self.linear(f"{name}.down", inner, layer.down)

    def positions(self) -> None:
        """cos and sin, (T, head width), and what each token sees, (T, T)."""
        length = self.op(
            "Gather", "length", self.op("Shape", "shape", "tokens"), self.const("one", np.array(1)), axis=0
        )
        zero, one = self.const("zero", np.array(0)), self.const("one", np.array(1))
        number = self.op("Range", "positions", zero, length, one)
        column = self.op("Unsqueeze", "positions.column", number, self.ints(1))
        row = self.op("Unsqueeze", "positions.row", number, self.ints(0))
        self.op("LessOrEqual", "seen", row, column)
        width = self.shape.head_width
        frequency = ROPE_BASE ** (-np.arange(0, width, 2) / width)
        both = self.const("rope.frequencies", np.concatenate([frequency, frequency]).astype(np.float32))
        angle = self.op("Mul", "angles", self.op("Cast", "positions.float", column, to=TensorProto.FLOAT), both)
        self.op("Cos", "cos", angle)
        self.op("Sin", "sin", angle)


def array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return tensor.detach().cpu().numpy().astype(np.float32)


def build(net: Decoder, graph_name: str = "verse") -> onnx.ModelProto:
    """The whole ONNX model."""
    g = Graph(net.shape)
    g.positions()
    embedding = g.const("embedding.weight", array(net.embedding.weight))
    x = g.op("Gather", "embedding", embedding, "tokens", axis=0)
    for i, layer in enumerate(net.layers):
        assert isinstance(layer, Layer)
        name = f"layers.{i}"
        y = g.attention(f"{name}.attention", g.rms_norm(f"{name}.attention_norm", x, layer.attention_norm), layer)
        x = g.op("Add", f"{name}.attended", x, y)
        y = g.feed_forward(f"{name}.inner", g.rms_norm(f"{name}.inner_norm", x, layer.inner_norm), layer)
        x = g.op("Add", name, x, y)
    columns = g.op("Transpose", "embedding.columns", embedding, perm=[1, 0])
    g.op("MatMul", "logits", g.rms_norm("norm", x, net.norm), columns)
    layers = net.shape.layers
    graph = helper.make_graph(
        g.nodes,
        graph_name,
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "T"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, "T", VOCABULARY])],
        list(g.initializers.values()),
        doc_string=f"Decoder of English text, {layers} layers; trained on pieces of {CONTEXT} tokens behind {BEGIN}.",
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="runnel")
    model.ir_version = IR_VERSION
    helper.set_model_props(model, {"license": "Apache-2.0", "bos_token_id": "0", "context": str(CONTEXT)})
    onnx.checker.check_model(model, full_check=True)
    return model


def compare(net: Decoder, model: bytes) -> float:
    """Worst deviation of onnxruntime from PyTorch on random tokens, relative to the logits' range."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    rng, worst = np.random.default_rng(0), 0.0
    for length in CHECK_LENGTHS:
        tokens = rng.integers(VOCABULARY, size=(1, length))
        with torch.no_grad():
            expected = net(torch.from_numpy(tokens)).numpy()
        (got,) = session.run(None, {"tokens": tokens})
        worst = max(worst, float(np.abs(got - expected).max() / np.abs(expected).max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/verse"), help="folder of verse.pt and tokenizer.json")
    parser.add_argument("--text", type=Path, required=True, help="the text it was trained on")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for the model")
    options = parser.parse_args()
    net = Decoder()
    net.load_state_dict(torch.load(options.build / "verse.pt", map_location="cpu", weights_only=True))
    net.eval()
    data = build(net).SerializeToString()
    if len(data) > MAX_BYTES:
        raise SystemExit(f"the model takes {len(data)} bytes, more than the {MAX_BYTES} allowed; make it narrower")
    worst = compare(net, data)
    if worst > 1e-5:
        raise SystemExit(f"onnxruntime deviates from PyTorch by {worst:.2e} of the range, more than 1e-5")
    (options.out / "verse.onnx").write_bytes(data)
    shutil.copyfile(options.build / "tokenizer.json", options.out / "tokenizer.json")
    (options.out / "held_out.txt").write_text(split(options.text)[1][HELD_OUT_SHIPPED], encoding="utf-8")
    parameters = sum(p.numel() for p in net.parameters())
    print(f"verse.onnx: {len(data)} bytes, {parameters} parameters, deviation from PyTorch {worst:.1e} of the range")


if __name__ == "__main__":
    main()
