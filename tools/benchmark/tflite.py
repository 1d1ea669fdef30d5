"""Writes a step as a TensorFlow Lite file, so that LiteRT can take part where nobody published one.

Convolutions get their channels last without transposes in between: every value knows in which order its axes lie in
memory, and moves only where an op needs another order. Inputs and outputs of convolutional nets are channels-last too.
Of models with codes (QuantizeLinear and DequantizeLinear) convolutions, products, sums and joins become integer
operators, moves keep codes, and the rest is float32 between conversions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array

Order = tuple[int, ...]  # per axis in memory: the axis of the ONNX value, -1 for an axis of size 1 that it lacks
CHANNELS_LAST = {3: (0, -1, 2, 1), 4: (0, 2, 3, 1)}
FLOAT, INT32, INT8 = 0, 2, 9
INTEGERS = (2, 3)  # uint8 and int8 of ONNX
KEEPS = ("Concat", "Slice", "Add", "Mul", "Identity", "Elu", "Relu", "Unsqueeze", "Squeeze", "QuantizeLinear",
         "DequantizeLinear")  # fmt: skip
MOVES = ("Concat", "Slice", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze")
Codes = tuple[float, int]  # scale and zero point of int8
PLAIN = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "Relu": "RELU", "Elu": "ELU", "HardSwish": "HARD_SWISH", "Exp": "EXP",
         "Sqrt": "SQRT", "Neg": "NEG", "Abs": "ABS"}  # fmt: skip
PAIRS = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Pow": "POW"}


class Unsupported(Exception):
    """The writer lacks an op or a form of it."""


@dataclass
class Value:
    """A tensor of the file, and what it is in the model: shape in ONNX's order; codes: what int8 stands for."""

    index: int
    shape: tuple[int, ...]
    order: Order
    codes: Codes | None = None


def natural(rank: int) -> Order:
    return tuple(range(rank))


class Writer:
    """Collects tensors and operators of one subgraph."""

    def __init__(self, path: Path) -> None:
        import onnx
        from onnx import numpy_helper, shape_inference

        self.schema: Any = import_module("ai_edge_litert.schema_py_generated")
        self.model = shape_inference.infer_shapes(onnx.load(path))
        self.graph = self.model.graph
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [self.schema.BufferT()]
        self.operators: list[Any] = []
        self.codes: dict[str, int] = {}
        self.values: dict[str, Value] = {}
        self.readers: dict[str, list[Any]] = {}
        self.coded: dict[str, tuple[Array, Array, int]] = {}  # constants as codes: their scales, along which axis
        self.done: set[str] = set()  # what another node's operator makes as well
        for node in self.graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def tensor(
        self, shape: Sequence[int], data: Array | None = None, name: str = "", scales: Array | None = None,
        zero: int = 0, along: int = 0,
    ) -> int:  # fmt: skip
        """A new tensor; of constants with data. scales: it is int8 (data: or int32), of one scale or several."""
        made = self.schema.TensorT()
        made.shape, made.name = [int(n) for n in shape], name or f"t{len(self.tensors)}"
        made.type, made.buffer = (FLOAT if scales is None else INT8), 0
        if data is not None:
            kinds = {"f": (FLOAT, np.float32), "i": (INT32, np.int32)}
            made.type, kind = (INT8, np.int8) if data.dtype == np.int8 else kinds[data.dtype.kind]
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data, kind).tobytes(), np.uint8)
            self.buffers.append(buffer)
            made.buffer = len(self.buffers) - 1
        if scales is not None:
            quantised = self.schema.QuantizationParametersT()
            quantised.scale = np.asarray(scales, np.float32).reshape(-1)
            quantised.zeroPoint = np.full(quantised.scale.shape, zero, np.int64)
            quantised.quantizedDimension = along
            made.quantization = quantised
        self.tensors.append(made)
        return len(self.tensors) - 1

    def ints(self, *values: int) -> int:
        return self.tensor([len(values)], np.array(values, np.int32))

    def emit(
        self, code: str, inputs: list[int], shape: Sequence[int], options: str = "", codes: Codes | None = None,
        **facts: Any,
    ) -> int:  # fmt: skip
        """An operator with one output, whose tensor is returned. options: the schema's name of its table."""
        scales, zero = (None, 0) if codes is None else (np.array([codes[0]]), codes[1])
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault(code, len(self.codes))
        operator.inputs, operator.outputs = inputs, [self.tensor(shape, scales=scales, zero=zero)]
        if options:
            table = getattr(self.schema, f"{options}T")()
            for name, value in facts.items():
                if not hasattr(table, name):
                    raise Unsupported(f"{options} has no {name}")
                setattr(table, name, value)
            operator.builtinOptions = table
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, options)
        self.operators.append(operator)
        return int(operator.outputs[0])

    def stored(self, shape: Sequence[int], order: Order) -> list[int]:
        """The shape in memory."""
        return [1 if axis < 0 else int(shape[axis]) for axis in order]

    def put(self, value: Value, order: Order) -> Value:
        """The same value in another order."""
        if value.order == order:
            return value
        index, now, codes = value.index, [a for a in value.order if a >= 0], value.codes
        wanted = [a for a in order if a >= 0]
        if len(now) != len(value.order):
            index = self.reshape(index, [value.shape[a] for a in now], codes)
        if now != wanted:
            shape = [value.shape[a] for a in wanted]
            places = self.ints(*(now.index(a) for a in wanted))
            index = self.emit("TRANSPOSE", [index, places], shape, "TransposeOptions", codes)
        if len(wanted) != len(order):
            index = self.reshape(index, self.stored(value.shape, order), codes)
        return Value(index, value.shape, order, codes)

    def without(self, value: Value, axes: Sequence[int]) -> Value:
        """The value without axes of size 1: nothing moves."""
        left = [i for i in range(len(value.shape)) if i not in axes]
        order = tuple(left.index(a) if a in left else -1 for a in value.order)
        return Value(value.index, tuple(value.shape[i] for i in left), order, value.codes)

    def of_rank(self, value: Value, rank: int) -> Value:
        """The value with axes of size 1 in front."""
        if len(value.shape) == rank:
            return value
        shape = (1,) * (rank - len(value.shape)) + value.shape
        return Value(self.reshape(self.put(value, natural(len(value.shape))).index, shape), shape, natural(rank))

    def reshape(self, index: int, shape: Sequence[int], codes: Codes | None = None) -> int:
        return self.emit("RESHAPE", [index, self.ints(*shape)], shape, "ReshapeOptions", codes, newShape=list(shape))

    def real(self, value: Value) -> Value:
        """The value in float32."""
        if value.codes is None:
            return value
        y = self.emit("DEQUANTIZE", [value.index], self.stored(value.shape, value.order))
        return Value(y, value.shape, value.order)

    def as_codes(self, value: Value, codes: Codes) -> Value:
        """The value in codes of this scale and zero point."""
        if value.codes == codes:
            return value
        y = self.emit("QUANTIZE", [value.index], self.stored(value.shape, value.order), codes=codes)
        return Value(y, value.shape, value.order, codes)

    def asked(self, name: str) -> tuple[Codes, str, int] | None:
        """The codes that a value alone becomes, what they are called, and 1 where a Relu is between."""
        relu, behind = self.activation(name)
        readers = self.readers.get(behind, [])
        outputs = {o.name for o in self.graph.output}
        if len(readers) != 1 or readers[0].op_type != "QuantizeLinear" or behind in outputs:
            return None
        return self.scale_of(readers[0]), readers[0].output[0], relu

    def scale_of(self, node: Any) -> Codes:
        """Of a QuantizeLinear or DequantizeLinear of values; uint8 is shifted to int8."""
        scale = float(self.constants[node.input[1]].reshape(-1)[0])
        zero = self.constants[node.input[2]].reshape(-1)[0] if len(node.input) > 2 else np.int8(0)
        return scale, int(zero) - (128 if zero.dtype == np.uint8 else 0)

    def claim(self, node: Any, asked: tuple[Codes, str, int], value: Value) -> None:
        """The value stands for everything up to the QuantizeLinear that it was asked by."""
        self.done.add(node.output[0])
        self.done.add(self.activation(node.output[0])[1])
        self.values[asked[1]] = value

    def constant(self, name: str, like: Value) -> int:
        """A constant operand in the order of another value, with as many axes."""
        array = self.constants[name]
        rank = len(like.shape)
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        sides = [array.shape[a] if a >= 0 else 1 for a in like.order]
        axes = [a for a in like.order if a >= 0]
        return self.tensor(sides, array.transpose(axes).reshape(sides).astype(np.float32))

    def of(self, name: str, coded: bool = False) -> Value:
        """A value as an operand, in float32 unless its codes will do; constants become tensors."""
        if name in self.constants and name not in self.values:
            array = self.constants[name]
            self.values[name] = Value(self.tensor(array.shape, array), array.shape, natural(array.ndim))
        return self.values[name] if coded else self.real(self.values[name])

    def activation(self, name: str) -> tuple[int, str]:
        """Where a Relu alone reads a value: its code and the name of what it makes."""
        readers = self.readers.get(name, [])
        if len(readers) == 1 and readers[0].op_type == "Relu" and name not in {o.name for o in self.graph.output}:
            return 1, readers[0].output[0]
        return 0, name

    def starts_channels_last(self, name: str, seen: int = 0) -> bool:
        """Whether an input of a convolutional net is read by a convolution, maybe behind what keeps its axes."""
        for node in self.readers.get(name, []):
            if node.op_type in ("Conv", "AveragePool", "MaxPool", "GlobalAveragePool") and node.input[0] == name:
                return True
            if seen < 6 and node.op_type in KEEPS and self.starts_channels_last(node.output[0], seen + 1):
                return True
        return False

    def codes_of(self, name: str) -> Codes | None:
        """What the integers of an input stand for, as who reads them says, maybe behind what moves them."""
        for node in self.readers.get(name, []):
            if node.op_type == "DequantizeLinear":
                return self.scale_of(node)
            if node.op_type in MOVES and (codes := self.codes_of(node.output[0])):
                return codes
        return None

    def convert(self, states: dict[str, str] | None = None) -> tuple[bytes, dict[str, Order]]:
        """The file, and the order of each input and output in memory. states: outputs that have the order of inputs."""
        orders: dict[str, Order] = {}
        fixed = set(self.constants)
        inputs = [v for v in self.graph.input if v.name not in fixed]
        for value in inputs:
            shape = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            last = self.starts_channels_last(value.name) and len(shape) in CHANNELS_LAST
            order = CHANNELS_LAST[len(shape)] if last else natural(len(shape))
            coded = value.type.tensor_type.elem_type in INTEGERS
            codes = self.codes_of(value.name) if coded else None
            if coded and codes is None:
                raise Unsupported(f"integers '{value.name}' without a scale")
            scales, zero = (None, 0) if codes is None else (np.array([codes[0]]), codes[1])
            index = self.tensor(self.stored(shape, order), None, value.name, scales, zero)
            self.values[value.name] = Value(index, shape, order, codes)
            orders[value.name] = order
        for node in self.graph.node:
            if node.output[0] in {*self.values, *self.constants, *self.done}:
                continue
            rule = RULES.get(node.op_type)
            if rule is None:
                raise Unsupported(f"no rule for {node.op_type}")
            rule(self, node, {a.name: _attribute(a) for a in node.attribute})
        outputs = []
        for port in self.graph.output:
            value = self.of(port.name, coded=port.type.tensor_type.elem_type in INTEGERS)
            if port.name in (states or {}):
                value = self.put(value, orders[(states or {})[port.name]])
            self.values[port.name] = value
            orders[port.name] = value.order
            index = value.index
            if not any(index in operator.outputs for operator in self.operators):  # an input as it is
                index = self.reshape(index, self.stored(value.shape, value.order), value.codes)
            outputs.append(index)
        return self.pack([self.values[v.name].index for v in inputs], outputs), orders

    def pack(self, inputs: list[int], outputs: list[int]) -> bytes:
        import flatbuffers

        schema = self.schema
        graph, model = schema.SubGraphT(), schema.ModelT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, inputs, outputs
        graph.name = "main"
        model.version, model.subgraphs, model.buffers, model.description = 3, [graph], self.buffers, "runnel bench"
        model.operatorCodes = []
        for name in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, name)
            code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())


def _attribute(attribute: Any) -> Any:
    from onnx import helper

    return helper.get_attribute_value(attribute)


Rule = Callable[[Writer, Any, "dict[str, Any]"], None]
RULES: dict[str, Rule] = {}


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Registers what writes an op."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return register
