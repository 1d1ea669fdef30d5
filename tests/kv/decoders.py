"""Small random decoders in the forms that exporters write, each with how onnxruntime itself is to be fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from nets import Net
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"
VOCABULARY = 29
LOWEST = float(np.finfo(np.float32).min)
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """Of a decoder: layers, heads of queries and of keys, features of a head, width."""

    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    size: int = 8
    width: int = 24

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


SIZES = Sizes()


@dataclass
class Decoder:
    """A model, and what it takes besides the past: feeds(tokens before, tokens now) → arrays.

    past: {input: (output that continues it, its value before the first token)}.
    """

    model: bytes
    feeds: Callable[[int, np.ndarray], Feeds]
    past: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)
    statics: Feeds = field(default_factory=dict)

    def logits(self, tokens: np.ndarray, cuts: Sequence[int]) -> np.ndarray:
        """(1, T, vocabulary): what onnxruntime gives, called with so many tokens at a time."""
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # Products by codes are else computed with activations of 8 bits.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        taken = {i.name for i in session.get_inputs()}
        past = {name: value for name, (_, value) in self.past.items()}
        parts, start = [], 0
        for count in cuts if past else [tokens.shape[1]]:
            now = tokens[:, start : start + count]
            feeds = {k: v for k, v in (self.feeds(start, now) | self.statics).items() if k in taken}
            got = dict(zip(names, session.run(None, feeds | past), strict=True))
            past = {name: got[out] for name, (out, _) in self.past.items()}
            parts.append(got["logits"])
            start += count
        return np.concatenate(parts, axis=1)


class Maker(Net):
    """A net of a decoder's parts. Tensors are (1, T, width); heads are (1, heads, T, size)."""

    def __init__(self, sizes: Sizes = SIZES, opset: int = 17, seed: int = 0) -> None:
        super().__init__(seed=seed, opset=opset)
        self.sizes = sizes
        self.outputs: list[str] = []
        self.past_rank = 4
        self.ranks: dict[str, int] = {}

    def ms(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """One node of com.microsoft."""
        names = [self.name(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=self.name(f"node_{op}"), domain=MICROSOFT,
                                           **attrs))  # fmt: skip
        return names[0] if outputs == 1 else names

    def named(self, x: str, name: str) -> str:
        """The tensor as an output of that name."""
        self.nodes.append(helper.make_node("Identity", [x], [name], name=self.name("node_named")))
        self.outputs.append(name)
        return name

    def linear(self, x: str, cin: int, cout: int) -> str:
        return str(self.op("MatMul", x, self.weight(cin, cout, scale=cin**-0.5)))

    def embedded(self, tokens: str) -> str:
        return str(self.op("Gather", self.weight(VOCABULARY, self.sizes.width, scale=1.0), tokens, axis=0))

    def rms(self, x: str, size: int | None = None) -> str:
        """RMS norm in plain ops."""
        size = size or self.sizes.width
        mean = (
            self.op("ReduceMean", self.op("Pow", x, self.const(2.0)), axes=[-1], keepdims=1)
            if (self.opset < 18)
            else self.op("ReduceMean", self.op("Pow", x, self.const(2.0)), self.const([-1]))
        )
        root = self.op("Sqrt", self.op("Add", mean, self.const(1e-5)))
        gain = self.const(1 + 0.2 * self.rng.standard_normal(size))
        return str(self.op("Mul", self.op("Div", x, root), gain))

    def mlp(self, x: str, norm: Callable[[str], str]) -> str:
        width = self.sizes.width
        h = norm(x)
        gate, up = self.linear(h, width, 2 * width), self.linear(h, width, 2 * width)
        gate = self.op("Mul", gate, self.op("Sigmoid", gate))
        return str(self.op("Add", x, self.linear(self.op("Mul", gate, up), 2 * width, width)))

    def head(self, x: str, norm: Callable[[str], str]) -> None:
        """The last norm and the logits."""
        self.named(self.linear(norm(x), self.sizes.width, VOCABULARY), "logits")

    def split(self, x: str, heads: int) -> str:
        """(1, T, heads·size) as (1, heads, T, size)."""
        shape = self.const([0, 0, heads, self.sizes.size])
        return str(self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 1, 3]))

    def joined(self, y: str) -> str:
        """(1, heads, T, size) as (1, T, width)."""
        s = self.sizes
        flat = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), self.const([0, 0, s.heads * s.size]))
        return self.linear(str(flat), s.heads * s.size, s.width)

    def projections(self, x: str) -> list[str]:
        """q, k and v as (1, T, heads·size)."""
        s = self.sizes
        return [self.linear(x, s.width, n * s.size) for n in (s.heads, s.kv_heads, s.kv_heads)]

    def cut(self, x: str, start: int, stop: int, axis: int, step: int = 1) -> str:
        return str(self.op("Slice", x, *(self.const([v]) for v in (start, stop, axis, step))))

    def dim(self, x: str, axis: int) -> str:
        """The size of an axis, a scalar."""
        return str(self.op("Gather", self.op("Shape", x), self.const(axis), axis=0))

    # Positions ------------------------------------------------------------------------------------------------------

    def tables(self, positions: str, inv_freq: np.ndarray, factor: float = 1.0) -> tuple[str, str]:
        """cos and sin (1, 1, T, 2·pairs) of positions (1, T), as transformers writes them."""
        place = self.op("Cast", self.op("Unsqueeze", positions, self.const([1])), to=1)
        angles = self.op("MatMul", self.const(inv_freq.astype(np.float32)[None, :, None]), place)
        angles = self.op("Transpose", angles, perm=[0, 2, 1])
        both = self.op("Concat", angles, angles, axis=-1)
        cos, sin = (self.op("Mul", self.op(f, both), self.const(factor)) for f in ("Cos", "Sin"))
        return tuple(self.op("Unsqueeze", t, self.const([1])) for t in (cos, sin))  # type: ignore[return-value]

    def half_turned(self, x: str, cos: str, sin: str, dims: int | None = None) -> str:
        """Rotary positions with halves, on the first ``dims`` features."""
        size = self.sizes.size
        dims = dims or size
        turned = self.cut(x, 0, dims, 3) if dims < size else x
        negative = self.op("Neg", self.cut(turned, dims // 2, dims, 3))
        swapped = self.op("Concat", negative, self.cut(turned, 0, dims // 2, 3), axis=-1)
        y = self.op("Add", self.op("Mul", turned, cos), self.op("Mul", swapped, sin))
        return str(self.op("Concat", y, self.cut(x, dims, size, 3), axis=-1) if dims < size else y)

    # Attention ------------------------------------------------------------------------------------------------------

    def repeated(self, x: str) -> str:
        """Each head of keys as often as queries read it, as transformers writes it."""
        s = self.sizes
        if s.group == 1:
            return x
        length = self.op("Unsqueeze", self.dim(x, 2), self.const([0]))
        wide = self.op("Concat", self.const([1, s.kv_heads, s.group]), length, self.const([s.size]), axis=0)
        flat = self.op("Concat", self.const([1, s.heads]), length, self.const([s.size]), axis=0)
        return str(self.op("Reshape", self.op("Expand", self.op("Unsqueeze", x, self.const([2])), wide), flat))

    def attended(self, q: str, k: str, v: str, mask: str | None, scale: float | None = None,
                 bend: Callable[[str], str] | None = None) -> str:  # fmt: skip
        """softmax(scale·q·kᵀ + mask)·v."""
        scale = self.sizes.size**-0.5 if scale is None else scale
        scores = self.op("Mul", self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2])), self.const(scale))
        scores = bend(scores) if bend else scores
        scores = self.op("Add", scores, mask) if mask else scores
        return str(self.op("MatMul", self.op("Softmax", scores, axis=-1), v))

    def causal(self, tokens: str, total: str, window: int = 0, padding: str | None = None) -> str:
        """A mask (1, 1, T, total) to be added; total: a scalar. padding: (1, total), 1 for tokens that are there."""
        past = self.op("Sub", total, self.dim(tokens, 1))
        i = self.op("Unsqueeze", self.op("Range", past, total, self.const(1)), self.const([1]))
        j = self.op("Unsqueeze", self.op("Range", self.const(0), total, self.const(1)), self.const([0]))
        hidden = self.op("Greater", j, i)
        if window:
            hidden = self.op("Or", hidden, self.op("LessOrEqual", j, self.op("Sub", i, self.const(window))))
        hidden = self.op("Unsqueeze", hidden, self.const([0, 1]))
        if padding:
            absent = self.op("Equal", self.op("Unsqueeze", padding, self.const([1, 2])), self.const(0))
            hidden = self.op("Or", hidden, absent)
        return str(self.op("Where", hidden, self.const(LOWEST), self.const(0.0)))

    # The past -------------------------------------------------------------------------------------------------------

    def past(self, layer: int, what: str, heads: int | None = None, size: int | None = None) -> str:
        """An input of earlier keys or values, in Optimum's names."""
        heads, size = heads or self.sizes.kv_heads, size or self.sizes.size
        return self.input(["batch_size", heads, "past_sequence_length", size], f"past_key_values.{layer}.{what}")

    def grown(self, layer: int, what: str, x: str) -> str:
        """Earlier keys or values and those of now."""
        size = None
        return self.named(self.op("Concat", self.past(layer, what, size=size), x, axis=2), f"present.{layer}.{what}")

    def made(self) -> bytes:
        """The model."""
        ports = []
        for name in self.outputs:
            rank = self.ranks.get(name, 3 if name == "logits" or "conv" in name else self.past_rank)
            shape = [f"{name}.{axis}" for axis in range(rank)]
            ports.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        graph = helper.make_graph(self.nodes, "decoder", self.inputs, ports, self.initializers)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid(MICROSOFT, 1)]
        ir = 8 if self.opset < 21 else 10 if self.opset < 23 else 11
        return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=ir).SerializeToString())

    def optimum(self) -> tuple[str, str, str, str]:
        """Tokens, mask and positions in Optimum's names, and the number of all tokens."""
        tokens = self.input(["batch_size", "sequence_length"], "input_ids", "int64")
        mask = self.input(["batch_size", "past_sequence_length + sequence_length"], "attention_mask", "int64")
        positions = self.input(["batch_size", "sequence_length"], "position_ids", "int64")
        return tokens, mask, positions, self.dim(mask, 1)


def optimum_feeds(start: int, tokens: np.ndarray) -> Feeds:
    """What Optimum's names take."""
    count = tokens.shape[1]
    return {
        "input_ids": tokens,
        "attention_mask": np.ones((1, start + count), np.int64),
        "position_ids": np.arange(start, start + count)[None],
    }


def empty_past(sizes: Sizes, value_size: int | None = None) -> dict[str, tuple[str, np.ndarray]]:
    """No tokens before, in Optimum's names."""
    wide = {"key": sizes.size, "value": value_size or sizes.size}
    return {
        f"past_key_values.{layer}.{what}": (
            f"present.{layer}.{what}", np.zeros((1, sizes.kv_heads, 0, wide[what]), np.float32)
        )
        for layer in range(sizes.layers) for what in ("key", "value")
    }  # fmt: skip


def frequencies(dims: int, base: float = 10000.0) -> np.ndarray:
    """inv_freq as transformers computes it, float32."""
    return (1.0 / (np.float32(base) ** (np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)))).astype(np.float32)


def without_unused(model: bytes) -> onnx.ModelProto:
    """The model as a proto, for tests that change it."""
    return onnx.load_from_string(model)


def tensor(model: onnx.ModelProto, name: str) -> np.ndarray:
    """A weight."""
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))
