"""The models of the table: one a question that people ask of a converter, each with one input and one output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

CHANNELS = 8
FAR = 1 << 60


class Net:
    """Collects nodes; every method returns the name of what it makes."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def constant(self, value: Any) -> str:
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.standard_normal(shape) / max(1, int(np.prod(shape[1:]))) ** 0.5)

    def op(self, op: str, *inputs: str, **attrs: Any) -> str:
        name = f"{op}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], f"node_{name}", **attrs))
        return name

    def conv(self, x: str, kernel: int, pads: tuple[int, int] = (0, 0), **attrs: Any) -> str:
        weight = self.weight(CHANNELS, CHANNELS // attrs.get("group", 1), kernel)
        return self.op("Conv", x, weight, self.weight(CHANNELS), pads=list(pads), **attrs)

    def up(self, x: str, pad: int = 0) -> str:
        weight = self.weight(CHANNELS, CHANNELS, 4)
        return self.op("ConvTranspose", x, weight, self.weight(CHANNELS), strides=[2], pads=[pad, pad])

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step))

    def recurrent(self, op: str, x: str, direction: str = "forward") -> str:
        """Over time, [1, C, T] in and out."""
        ways, gates = (2 if direction == "bidirectional" else 1), {"GRU": 3, "LSTM": 4}[op]
        t = self.op("Transpose", x, perm=[2, 0, 1])
        weights = [self.weight(ways, gates * CHANNELS, CHANNELS) for _ in range(2)]
        y = self.op(op, t, *weights, self.weight(ways, 2 * gates * CHANNELS), hidden_size=CHANNELS, direction=direction)
        y = self.op("Transpose", y, perm=[2, 1, 3, 0])
        return self.op("Reshape", y, self.ints(1, ways * CHANNELS, -1))

    def positions(self, x: str) -> str:
        """0 … T - 1 for [1, T, C]."""
        length = self.op("Gather", self.op("Shape", x), self.constant(np.array(1)), axis=0)
        return self.op("Range", self.constant(np.array(0)), length, self.constant(np.array(1)))

    def attention(self, x: str, mask: str = "") -> str:
        """One head over [1, T, C]; mask: "causal", "window" (8 back), "chunk" (4 frames, 2 chunks back), "trilu"."""
        q, k, v = (self.op("MatMul", x, self.weight(CHANNELS, CHANNELS)) for _ in range(3))
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 2, 1]))
        if mask == "trilu":
            length = self.op("Gather", self.op("Shape", x), self.ints(1), axis=0)
            square = self.op("Concat", length, length, axis=0)
            low = numpy_helper.from_array(np.array([-1e9], np.float32))
            ones = self.op("ConstantOfShape", square, value=low)
            scores = self.op("Add", scores, self.op("Trilu", ones, self.constant(np.array(1)), upper=1))
        elif mask:
            n = self.positions(x)
            rows, columns = self.op("Unsqueeze", n, self.ints(1)), self.op("Unsqueeze", n, self.ints(0))
            if mask == "chunk":
                rows, columns = (self.op("Div", r, self.constant(np.array(4))) for r in (rows, columns))
            back = self.op("Sub", rows, columns)
            seen = self.op("GreaterOrEqual", back, self.constant(np.array(0)))
            if mask != "causal":
                most = self.constant(np.array(2 if mask == "chunk" else 8))
                seen = self.op("And", seen, self.op("LessOrEqual", back, most))
            scores = self.op("Where", seen, scores, self.constant(-1e9))
        return self.op("MatMul", self.op("Softmax", scores, axis=-1), v)


@dataclass(frozen=True)
class Model:
    """A row. make: adds the nodes behind input "x" and returns the output. multiple: what lengths must divide by.

    options: what runnel.compile is given. mode: options under which a refused model runs with a named deviation.
    """

    name: str
    make: Callable[[Net], str]
    shape: tuple[int | str, ...] = (1, CHANNELS, "T")
    options: dict[str, Any] = field(default_factory=dict)
    mode: dict[str, Any] = field(default_factory=dict)
    multiple: int = 1
    opset: int = 17

    @property
    def axis(self) -> int:
        return self.shape.index("T")

    def proto(self) -> bytes:
        net = Net()
        net.op("Identity", self.make(net))
        net.nodes[-1].output[0] = "y"
        ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(self.shape))]
        results = [helper.make_empty_tensor_value_info("y")]
        results[0].type.tensor_type.elem_type = TensorProto.FLOAT
        graph = helper.make_graph(net.nodes, "net", ports, results, net.constants)
        version = helper.make_opsetid("", self.opset)
        model = helper.make_model(graph, opset_imports=[version], ir_version=8 if self.opset < 21 else 10)
        model = infer_shapes(model)
        if not model.graph.output[0].type.tensor_type.HasField("shape"):  # of the same rank, where it is not told
            for axis in range(len(self.shape)):
                model.graph.output[0].type.tensor_type.shape.dim.add().dim_param = f"y{axis}"
        return bytes(model.SerializeToString())


TC: tuple[int | str, ...] = (1, "T", CHANNELS)


def _unet(n: Net) -> str:
    down = n.op("Relu", n.op("Conv", "x", n.weight(CHANNELS, CHANNELS, 4), strides=[2], pads=[1, 1]))
    return n.op("Concat", n.up(down, 1), "x", axis=1)


def _gate(n: Net) -> str:
    return n.op("Mul", "x", n.op("Sigmoid", n.op("GlobalAveragePool", "x")))


def _scales(n: Net) -> tuple[str, str]:
    return n.constant(np.ones(CHANNELS)), n.constant(np.zeros(CHANNELS))


def _over_frequency(n: Net) -> str:
    t = n.op("Transpose", "x", perm=[1, 0, 2])
    weights = [n.weight(1, 3 * CHANNELS, CHANNELS) for _ in range(2)]
    y = n.op("GRU", t, *weights, n.weight(1, 6 * CHANNELS), hidden_size=CHANNELS)
    return n.op("Transpose", n.op("Squeeze", y, n.ints(1)), perm=[1, 0, 2])


def _table(n: Net) -> str:
    length = n.op("Slice", n.op("Shape", "x"), n.ints(1), n.ints(2))
    return n.op("Add", "x", n.op("Slice", n.weight(512, CHANNELS), n.ints(0), length, n.ints(0)))


def _quantised(n: Net) -> str:
    scale, zero = n.constant(np.array(0.05, np.float32)), n.constant(np.array(0, np.int8))
    x = n.op("DequantizeLinear", n.op("QuantizeLinear", "x", scale, zero), scale, zero)
    codes = n.constant(n.rng.integers(-50, 50, (CHANNELS, CHANNELS, 3)).astype(np.int8))
    weight = n.op("DequantizeLinear", codes, n.constant(np.array(0.01, np.float32)), zero)
    y = n.op("Conv", x, weight, pads=[2, 0])
    return n.op("DequantizeLinear", n.op("QuantizeLinear", y, scale, zero), scale, zero)


def _pool(n: Net, op: str, **attrs: Any) -> str:
    return n.op(op, "x", **attrs)


def _resize(n: Net, mode: str) -> str:
    how = {"nearest": "asymmetric", "linear": "half_pixel"}[mode]
    more = {"nearest_mode": "floor"} if mode == "nearest" else {}
    return n.op("Resize", "x", "", n.constant([1.0, 1, 2]), mode=mode, coordinate_transformation_mode=how, **more)


MODELS = [
    Model("convolution, causal", lambda n: n.conv("x", 3, (2, 0))),
    Model("convolution, symmetric padding", lambda n: n.conv("x", 5, (2, 2))),
    Model("4 symmetric dilated layers (end of stream)", lambda n: n.conv(n.conv(n.conv(n.conv(
        "x", 3, (1, 1)), 3, (2, 2), dilations=[2]), 3, (4, 4), dilations=[4]), 3, (8, 8), dilations=[8])),
    Model("depthwise", lambda n: n.conv("x", 3, (2, 0), group=CHANNELS)),
    Model("chomp: pad both, slice :-p", lambda n: n.slice(n.conv("x", 3, (4, 4), dilations=[2]), 0, -4, 2)),
    Model("residual around a symmetric convolution", lambda n: n.op("Add", n.conv("x", 5, (2, 2)), "x")),
    Model("stride 2, symmetric, any chunk", lambda n: n.conv("x", 3, (1, 1), strides=[2])),
    Model("max pool k3 s2 p1", lambda n: _pool(n, "MaxPool", kernel_shape=[3], strides=[2], pads=[1, 1])),
    Model("max pool, ceil_mode", lambda n: _pool(n, "MaxPool", kernel_shape=[2], strides=[2], ceil_mode=1)),
    Model("average pool with padding, excluded", lambda n: _pool(n, "AveragePool", kernel_shape=[3], pads=[1, 1])),
    Model("average pool with padding, included",
          lambda n: _pool(n, "AveragePool", kernel_shape=[3], pads=[1, 1], count_include_pad=1)),
    Model("reflect padding", lambda n: n.conv(n.op("Pad", "x", n.ints(0, 0, 2, 0, 0, 2), mode="reflect"), 5)),
    Model("edge padding", lambda n: n.conv(n.op("Pad", "x", n.ints(0, 0, 4, 0, 0, 4), mode="edge"), 5)),
    Model("transposed convolution", lambda n: n.up("x", 1)),
    Model("transposed convolution after look-ahead", lambda n: n.up(n.conv("x", 3, (1, 1)), 1)),
    Model("resize, nearest x2", lambda n: _resize(n, "nearest")),
    Model("resize, linear x2", lambda n: _resize(n, "linear")),
    Model("U-Net, symmetric, skip joined", _unet, multiple=2),
    Model("instance norm over time", lambda n: n.op("InstanceNormalization", "x", *_scales(n)),
          mode={"mode": "norm=running"}),
    Model("group norm over time", lambda n: n.op("GroupNormalization", "x", *_scales(n), num_groups=2), opset=21,
          mode={"mode": "norm=running"}),
    Model("layer norm over channels", lambda n: n.op("LayerNormalization", "x", *_scales(n)), shape=TC),
    Model("squeeze-excite over time", _gate, mode={"mode": "pool=cumulative"}),
    Model("mean over time (classifier)", lambda n: n.op("ReduceMean", "x", axes=[2], keepdims=1)),
    Model("cumulative sum", lambda n: n.op("CumSum", "x", n.constant(np.array(2)))),
    Model("softmax over time", lambda n: n.op("Softmax", "x", axis=2)),
    Model("GRU", lambda n: n.recurrent("GRU", "x")),
    Model("LSTM after look-ahead", lambda n: n.recurrent("LSTM", n.conv("x", 5, (2, 2)))),
    Model("GRU, bidirectional", lambda n: n.recurrent("GRU", "x", "bidirectional"), mode={"mode": "rnn=lookahead:16"}),
    Model("GRU over frequency, time as batch", _over_frequency, shape=("T", 6, CHANNELS)),
    Model("attention, full", lambda n: n.attention("x"), shape=TC, mode={"mode": "attention=left:16,right:4"}),
    Model("attention, causal (Range, Where)", lambda n: n.attention("x", "causal"), shape=TC,
          options={"max_frames": 1024}),
    Model("attention, causal (Trilu)", lambda n: n.attention("x", "trilu"), shape=TC, options={"max_frames": 1024}),
    Model("attention, sliding window", lambda n: n.attention("x", "window"), shape=TC),
    Model("attention, chunked", lambda n: n.attention("x", "chunk"), shape=TC),
    Model("positional table pe[:T]", _table, shape=TC),
    Model("2-D convolution, causal in time",
          lambda n: n.op("Conv", "x", n.weight(4, 1, 3, 3), pads=[2, 1, 0, 1], strides=[1, 2]), shape=(1, 1, "T", 16)),
    Model("3-D convolution (video)", lambda n: n.op("Conv", "x", n.weight(4, 3, 3, 3, 3), pads=[2, 1, 1, 0, 1, 1]),
          shape=(1, 3, "T", 8, 8)),
    Model("int8 convolution (QDQ)", _quantised),
    Model("frame stacking, T to T/4", lambda n: n.op("Reshape", n.op("Transpose", "x", perm=[0, 2, 1]),
                                                     n.ints(1, -1, 4 * CHANNELS)), multiple=4),
    Model("time reversed", lambda n: n.slice("x", -1, -FAR, 2, -1)),
]  # fmt: skip
