"""Reads TensorFlow Lite files (the flatbuffer schema "TFL3") and turns hidden state into inputs and outputs.

A file keeps state in resource variables, which READ_VARIABLE and ASSIGN_VARIABLE use and a subgraph of CALL_ONCE sets
at the start. In the rewritten file each variable is an input with its value before a run and an output with the one
after it, so that a stream can be saved, restored and cloned. Tensors marked as variable (of SVDF and the like) are
changed in place by their ops and stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runnel.errors import BundleError, InputError

Array = NDArray[Any]
IDENTIFIER = b"TFL3"
MOST_BYTES = 1 << 31  # of a flatbuffer
TYPES = {
    0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8", 10: "float64",
}  # fmt: skip
NO_TENSOR = -1  # of an optional input


@dataclass(frozen=True)
class Tensor:
    """A tensor of the main subgraph. quantisation: scale and zero point of its codes, None where it has none."""

    index: int
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    quantisation: tuple[float, int] | None


@dataclass(frozen=True)
class Variable:
    """State that a run reads in one tensor and leaves in another, and its value at the start."""

    before: Tensor
    after: int
    initial: Array


@dataclass(frozen=True)
class TfliteFile:
    """content: the rewritten file. in_place: tensors that ops change in place."""

    content: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    variables: tuple[Variable, ...]
    in_place: tuple[Tensor, ...]


def read(data: bytes, name: str) -> TfliteFile:
    """What a file holds. Raises BundleError for one that is damaged, or whose state is not understood, and InputError
    where LiteRT is missing."""
    try:
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        raise InputError("the tflite backend needs LiteRT; pip install 'runnel[tflite]'.") from None
    if len(data) < 8 or len(data) > MOST_BYTES or data[4:8] != IDENTIFIER:
        raise BundleError(f"'{name}' is no TensorFlow Lite file; name one in .tflite.")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        reader = _Reader(model, schema, name)
        found = reader.rewrite()
        builder = flatbuffers.Builder(len(data) + 4096)
        builder.Finish(model.Pack(builder), IDENTIFIER)
    except (BundleError, InputError):
        raise
    except Exception as error:  # the readers of flatbuffers raise many types for damaged bytes
        raise BundleError(f"'{name}' is damaged ({type(error).__name__}); copy it again.") from None
    return TfliteFile(bytes(builder.Output()), *found)


class _Reader:
    def __init__(self, model: Any, schema: Any, name: str) -> None:
        self.model, self.name = model, name
        names = {number: word for word, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
        codes = model.operatorCodes or []
        self.ops = [names.get(max(c.builtinCode, c.deprecatedBuiltinCode), "?") for c in codes]
        if not model.subgraphs:
            self._damaged("it has no graph")
        for graph in model.subgraphs:
            self._check(graph)
        self.main = model.subgraphs[0]

    def _damaged(self, why: str) -> None:
        raise BundleError(f"'{self.name}' is damaged: {why}; copy it again.")

    def _check(self, graph: Any) -> None:
        """That every number points at something: LiteRT follows them without a look."""
        tensors, buffers = graph.tensors or [], self.model.buffers or []
        for tensor in tensors:
            if not 0 <= tensor.buffer < len(buffers):
                self._damaged("a tensor has no buffer")
            shape = _numbers(tensor.shape)
            if min(shape, default=1) < 0:
                self._damaged("a tensor has a negative size")
            data = buffers[tensor.buffer].data
            if data is not None and len(data) and tensor.type in TYPES:
                wanted = int(np.prod(shape, dtype=object)) * np.dtype(TYPES[tensor.type]).itemsize
                if tensor.sparsity is None and wanted != len(data):
                    self._damaged("the values of a tensor do not fill its shape")
        for numbers, least in ((graph.inputs, 0), (graph.outputs, 0)):
            self._in_range(_numbers(numbers), least, len(tensors))
        for op in graph.operators or []:
            if not 0 <= op.opcodeIndex < len(self.ops):
                self._damaged("an operator has no kind")
            self._in_range(_numbers(op.inputs), NO_TENSOR, len(tensors))
            self._in_range(_numbers(op.outputs), 0, len(tensors))

    def _in_range(self, numbers: Iterable[int], least: int, count: int) -> None:
        if any(not least <= n < count for n in numbers):
            self._damaged("it names a tensor that is not there")

    def tensor(self, index: int) -> Tensor:
        t = self.main.tensors[index]
        name = t.name.decode("utf-8", "replace") if isinstance(t.name, bytes) else t.name or f"tensor {index}"
        if t.type not in TYPES:
            raise BundleError(f"'{self.name}': tensor '{name}' has a type that is not known; update runnel.")
        q = t.quantization
        scales = [] if q is None else _numbers(q.scale, float)
        zeros = [] if q is None else _numbers(q.zeroPoint)
        codes = (float(scales[0]), zeros[0] if zeros else 0) if len(scales) == 1 else None
        return Tensor(index, name, np.dtype(TYPES[t.type]), tuple(_numbers(t.shape)), codes)

    def rewrite(
        self,
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Variable, ...], tuple[Tensor, ...]]:
        inputs, outputs = _numbers(self.main.inputs), _numbers(self.main.outputs)
        if not inputs or not outputs:
            raise BundleError(f"'{self.name}' has no inputs or no outputs, so nothing streams through it.")
        for graph in self.model.subgraphs[1:]:
            self._no_state_inside(graph)
        variables = self._variables()
        found = tuple(map(self.tensor, inputs)), tuple(map(self.tensor, _numbers(self.main.outputs)))
        in_place = tuple(self.tensor(i) for i, t in enumerate(self.main.tensors) if t.isVariable)
        if variables:
            self.main.inputs = np.array([*inputs, *(v.before.index for v in variables)], np.int32)
            after = dict.fromkeys([*_numbers(self.main.outputs), *(v.after for v in variables)])
            self.main.outputs = np.array(list(after), np.int32)
            self.model.signatureDefs = []
        return *found, variables, in_place

    def _no_state_inside(self, graph: Any) -> None:
        reads = [self.ops[op.opcodeIndex] for op in graph.operators or []]
        if "READ_VARIABLE" in reads or any(t.isVariable for t in graph.tensors or []):
            raise BundleError(f"'{self.name}' keeps state inside a branch or loop, which is not understood.")

    def _variables(self) -> tuple[Variable, ...]:
        """Takes the ops of resource variables out of the main subgraph."""
        starts: dict[str, Array] = {}
        handles: dict[int, str] = {}
        first: dict[str, int] = {}  # the tensor that is the value before a run
        now: dict[str, int] = {}
        same: dict[int, int] = {}
        kept = []
        for op in self.main.operators or []:
            kind, read, made = self.ops[op.opcodeIndex], _numbers(op.inputs), _numbers(op.outputs)
            if kind == "CALL_ONCE":
                starts |= self._starts(op.builtinOptions.initSubgraphIndex)
            elif kind == "VAR_HANDLE":
                handles[made[0]] = _handle(op)
            elif kind == "READ_VARIABLE":
                variable = handles[read[0]]
                first.setdefault(variable, made[0])
                same[made[0]] = now.setdefault(variable, made[0])
            elif kind == "ASSIGN_VARIABLE":
                now[handles[read[0]]] = same.get(read[1], read[1])
            else:
                if any(i in handles for i in read):
                    raise BundleError(f"'{self.name}' gives a variable to {kind}, which is not understood.")
                op.inputs = np.array([same.get(i, i) for i in read], np.int32)
                kept.append(op)
        self.main.operators = kept
        self.main.outputs = np.array([same.get(i, i) for i in _numbers(self.main.outputs)], np.int32)
        found = []
        for variable, index in first.items():
            before = self.tensor(index)
            if variable not in starts or starts[variable].size != int(np.prod(before.shape)):
                raise BundleError(f"'{self.name}' does not say what the variable '{variable}' is at the start.")
            initial = starts[variable].astype(before.dtype, copy=False).reshape(before.shape)
            found.append(Variable(before, now[variable], initial))
        return tuple(found)

    def _starts(self, number: int) -> dict[str, Array]:
        """The constants that a subgraph of CALL_ONCE assigns."""
        if not 0 < number < len(self.model.subgraphs):
            self._damaged("it sets its state in a graph that is not there")
        graph = self.model.subgraphs[number]
        handles: dict[int, str] = {}
        starts: dict[str, Array] = {}
        for op in graph.operators or []:
            kind, read = self.ops[op.opcodeIndex], _numbers(op.inputs)
            if kind == "VAR_HANDLE":
                handles[_numbers(op.outputs)[0]] = _handle(op)
            elif kind == "ASSIGN_VARIABLE" and read[0] in handles:
                tensor = graph.tensors[read[1]]
                data = self.model.buffers[tensor.buffer].data
                if data is None or tensor.type not in TYPES:
                    raise BundleError(f"'{self.name}' computes what its state is at the start; only constants are.")
                starts[handles[read[0]]] = np.frombuffer(bytes(bytearray(data)), TYPES[tensor.type])
            else:
                raise BundleError(f"'{self.name}' sets its state by {kind}, which is not understood.")
        return starts


def _handle(op: Any) -> str:
    name = op.builtinOptions.sharedName
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)


def _numbers(array: Any, kind: type = int) -> list[Any]:
    return [] if array is None else [kind(n) for n in array]
