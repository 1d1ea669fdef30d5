"""Feed-forward layers with Relu as ONNX graphs."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

WIDTH, NEURONS = 40, 128
OPSETS = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]


class Graph:
    """Nodes and constants of one model. bias: what is added to every gate, in deviations: the lower, the fewer are
    active."""

    def __init__(self, bias: float | np.ndarray = -1.2, seed: int = 0) -> None:
        self.rng, self.bias = np.random.default_rng(seed), bias
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def const(self, value: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def weight(self, inputs: int, outputs: int) -> np.ndarray:
        return (self.rng.standard_normal((inputs, outputs)) / inputs**0.5).astype(np.float32)

    def linear(self, x: str, inputs: int, outputs: int, bias: float | np.ndarray | None = None) -> str:
        product = self.op("MatMul", x, self.const(self.weight(inputs, outputs)))
        if bias is None:
            return product
        row = (bias + 0.1 * self.rng.standard_normal(outputs)).astype(np.float32)
        return self.op("Add", product, self.const(row))

    def model(self, output: str, width: int = WIDTH, channels_first: bool = False) -> bytes:
        dims = [1, width, "T"] if channels_first else [1, "T", width]
        graph = helper.make_graph(
            self.nodes, "layers", [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, dims)], self.constants,
        )  # fmt: skip
        return helper.make_model(graph, opset_imports=OPSETS, ir_version=10).SerializeToString()


def plain(g: Graph, x: str) -> str:
    return g.linear(g.op("Relu", g.linear(x, WIDTH, NEURONS, g.bias)), NEURONS, WIDTH, 0.0)


def squared(g: Graph, x: str) -> str:
    active = g.op("Relu", g.linear(x, WIDTH, NEURONS, g.bias))
    return g.linear(g.op("Mul", active, active), NEURONS, WIDTH)


def power(g: Graph, x: str) -> str:
    active = g.op("Relu", g.linear(x, WIDTH, NEURONS, g.bias))
    return g.linear(g.op("Pow", active, g.const(np.array(2, np.float32))), NEURONS, WIDTH)


def gated(g: Graph, x: str) -> str:
    active = g.op("Relu", g.linear(x, WIDTH, NEURONS, g.bias))
    return g.linear(g.op("Mul", active, g.linear(x, WIDTH, NEURONS)), NEURONS, WIDTH)


def gated_second(g: Graph, x: str) -> str:
    """The gate as the second operand; both products with a bias."""
    up = g.linear(x, WIDTH, NEURONS, 0.2)
    return g.linear(g.op("Mul", up, g.op("Relu", g.linear(x, WIDTH, NEURONS, g.bias))), NEURONS, WIDTH, 0.3)


def gated_squared(g: Graph, x: str) -> str:
    active = g.op("Relu", g.linear(x, WIDTH, NEURONS, g.bias))
    both = g.op("Mul", g.op("Mul", active, active), g.linear(x, WIDTH, NEURONS))
    return g.linear(both, NEURONS, WIDTH)


FORMS = {f.__name__: f for f in (plain, squared, power, gated, gated_second, gated_squared)}


def convolutions() -> bytes:
    """A layer of convolutions over single frames, as speech models have it."""
    g = Graph()
    first = g.const(g.weight(NEURONS, WIDTH)[:, :, None])
    row = g.const(np.full(NEURONS, g.bias, np.float32))
    active = g.op("Relu", g.op("Conv", "x", first, row, kernel_shape=[1]))
    y = g.op("Conv", active, g.const(g.weight(WIDTH, NEURONS)[:, :, None]), kernel_shape=[1])
    return g.model(g.op("Add", y, "x"), channels_first=True)


def network(*forms: str, bias: float | np.ndarray = -1.2) -> bytes:
    """Layers one after the other, each added to what it reads."""
    g = Graph(bias)
    x = "x"
    for form in forms:
        x = g.op("Add", x, FORMS[form](g, x))
    return g.model(x)


def beside(layers: int, bias: float | np.ndarray) -> bytes:
    """Layers with a gate that all read the input."""
    g = Graph(bias)
    total = "x"
    for _ in range(layers):
        total = g.op("Add", total, gated(g, "x"))
    return g.model(total)


def others() -> dict[str, bytes]:
    """Models whose layers need all of their weights, by why."""
    found = {}
    g = Graph()
    found["another activation"] = g.model(g.linear(g.op("Sigmoid", g.linear("x", WIDTH, NEURONS)), NEURONS, WIDTH))
    g = Graph()
    active = g.op("Relu", g.linear("x", WIDTH, NEURONS))
    second = g.op("Add", g.linear(active, NEURONS, WIDTH), g.linear(g.op("Neg", active), NEURONS, WIDTH))
    found["neurons that something else reads"] = g.model(second)
    g = Graph()
    gate = g.op("Relu", g.linear("x", WIDTH, NEURONS))
    found["a gate of something else"] = g.model(
        g.linear(g.op("Mul", gate, g.linear(g.op("Tanh", "x"), WIDTH, NEURONS)), NEURONS, WIDTH)
    )
    g = Graph()
    found["a product of several rows"] = g.model(
        g.op("Reshape", g.linear(
            g.op("Relu", g.linear(g.op("Reshape", "x", g.const(np.array([0, 0, 2, WIDTH // 2]))), WIDTH // 2, NEURONS)),
            NEURONS, WIDTH // 2,
        ), g.const(np.array([0, 0, WIDTH])))
    )  # fmt: skip
    return found


def coded_network(bits: int, zeros: bool, dequantised: bool = False) -> bytes:
    """A layer with a gate whose three matrices are codes in blocks of 16 inputs."""
    g = Graph()

    def product(x: str, inputs: int, outputs: int, bias: float | None) -> str:
        blocks, block, middle = -(-inputs // 16), 16, 1 << (bits - 1)
        codes = g.rng.integers(0, 1 << bits, (outputs, blocks * block)).astype(np.uint8)
        codes[:, inputs:] = middle
        scales = (g.rng.uniform(0.5, 1.5, (outputs, blocks)) / middle / inputs**0.5).astype(np.float32)
        row = None if bias is None else np.full(outputs, bias, np.float32)
        if dequantised:
            assert bits == 4
            names = [f"codes{len(g.constants)}", g.const(scales.T.copy())]
            about = (codes[:, :inputs].T.astype(np.int8) - middle).astype(np.int8)
            kind = TensorProto.INT4
            g.constants.append(helper.make_tensor(names[0], kind, about.shape, about.reshape(-1).tolist()))
            weight = g.op("DequantizeLinear", *names, axis=0, block_size=block)
            y = g.op("MatMul", x, weight)
            return y if row is None else g.op("Add", y, g.const(row))
        packed = sum(codes.reshape(outputs, blocks, -1, 8 // bits)[..., i] << (bits * i) for i in range(8 // bits))
        operands = [x, g.const(packed.astype(np.uint8)), g.const(scales.reshape(-1)), "", "", ""]
        if zeros:
            count = -(-blocks * bits // 8)
            operands[3] = g.const(g.rng.integers(0, 256, outputs * count).astype(np.uint8))
        if row is not None:
            operands[5] = g.const(row)
        while not operands[-1]:
            operands.pop()
        attrs = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "domain": "com.microsoft"}
        return g.op("MatMulNBits", *operands, **attrs)

    gate = g.op("Relu", product("x", WIDTH, NEURONS, -1.2))
    y = product(g.op("Mul", gate, product("x", WIDTH, NEURONS, 0.1)), NEURONS, WIDTH, 0.2)
    return g.model(g.op("Add", y, "x"))
