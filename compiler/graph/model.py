"""A normalised ONNX graph: plain nodes, folded constants, a known time axis, concrete shapes at one probing length."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from runnel.compiler.graph.contrib import in_standard_ops
from runnel.compiler.graph.decoder.roles import inner_ports
from runnel.compiler.graph.half import in_half, widen
from runnel.compiler.graph.order import sort_nodes
from runnel.compiler.graph.upgrade import convert, upgrade_to_13
from runnel.errors import InputError

OLDEST_OPSET, NEWEST_OPSET = 7, 26
RULES_OPSET = 13


@dataclass(eq=False)
class Node:
    """One ONNX node. An absent optional input is an empty name."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)
    domain: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or next((o for o in self.outputs if o), self.op)


@dataclass(frozen=True)
class Port:
    """An input or output of the model. shape: int, symbolic name (str) or None for each axis."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(eq=False)
class Graph:
    """nodes in topological order; constants by name; opset of the standard domain.

    proto: the offline model. exported: as it was before its quantised sums were taken in int32, where that was done.
    half: as it was before its float16 tensors were written as float32, where it has any.
    """

    name: str
    nodes: list[Node]
    constants: dict[str, np.ndarray]
    inputs: list[Port]
    outputs: list[Port]
    opset: int
    proto: onnx.ModelProto
    exported: onnx.ModelProto | None = None
    half: onnx.ModelProto | None = None


def load(source: str | Path | bytes | onnx.ModelProto) -> Graph:
    """Read an ONNX model from a path, bytes or a proto. Raises InputError with one sentence when it is not usable."""
    model, name = _read(source)
    _check_names(model, name)
    opset = _check_opsets(model, name)
    sort_nodes(model.graph)
    given = onnx.ModelProto.FromString(model.SerializeToString()) if in_half(model) else None
    in_standard_ops(model, opset)
    try:
        onnx.checker.check_model(model, full_check=False)
    except (onnx.checker.ValidationError, UnicodeError) as error:
        raise InputError(f"{name} is not a valid ONNX model: {_first_line(error)}; export it again.") from None
    if given is not None:
        model = onnx.inliner.inline_local_functions(model) if model.functions else model
        widen(model, inner_ports(_from_proto(model, name, opset)))
    if opset in (11, 12):
        upgrade_to_13(model)
        opset = RULES_OPSET
    elif opset < RULES_OPSET:
        try:
            model = convert(model, RULES_OPSET)
        except InputError:
            raise
        except Exception as error:  # the converter raises bare RuntimeErrors of many kinds
            raise InputError(
                f"{name} uses opset {opset} and could not be brought to opset {RULES_OPSET} "
                f"({_first_line(error)}); export it with opset {RULES_OPSET} or newer."
            ) from None
        opset = RULES_OPSET
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = _from_proto(model, name, opset)
    graph.half = given
    return graph


def _read(source: str | Path | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    if isinstance(source, onnx.ModelProto):
        return onnx.ModelProto.FromString(source.SerializeToString()), source.graph.name or "the model"
    if isinstance(source, bytes):
        name, data = "the model", source
        folder = None
    else:
        path = Path(source)
        name, folder = path.name, path.parent
        try:
            data = path.read_bytes()
        except IsADirectoryError:
            raise InputError(f"{path} is a folder; give the path of an .onnx file.") from None
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; check the path.") from None
    if not data:
        raise InputError(f"{name} is empty; it should be an ONNX model.")
    try:
        model = onnx.load_model_from_string(data)
    except Exception:  # protobuf's DecodeError lives in a private module that differs between versions
        raise InputError(f"{name} is not an ONNX file, or it is truncated; export or copy it again.") from None
    if not model.graph.node and not model.graph.output:
        raise InputError(f"{name} is not an ONNX file, or holds no graph; export or copy it again.")
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        if folder is None:
            raise InputError(f"{name} keeps its weights in other files; give its path, not its bytes.")
        try:
            onnx.load_external_data_for_model(model, str(folder))
        except Exception as error:
            raise InputError(f"the external weights of {name} cannot be read: {_first_line(error)}.") from None
    return model, name


def _check_names(model: onnx.ModelProto, name: str) -> None:
    """Protobuf reads names that are no text."""
    graph = model.graph
    try:
        names = [v.name for values in (graph.input, graph.output, graph.initializer, graph.value_info) for v in values]
        for node in graph.node:
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
            names += [a.name for a in node.attribute]
        for text in names:
            if not isinstance(text, str):
                raise UnicodeError
            text.encode()
        onnx.ModelProto.FromString(model.SerializeToString())
    except (UnicodeError, ValueError):
        raise InputError(f"{name} is damaged: a name in it is no text; export or copy it again.") from None


def _check_opsets(model: onnx.ModelProto, name: str) -> int:
    versions = {o.domain or "ai.onnx": o.version for o in model.opset_import}
    opset = versions.get("ai.onnx")
    if opset is None:
        raise InputError(f"{name} does not say which opset it uses; it may be truncated. Export it again.")
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise InputError(
            f"{name} uses opset {opset}; runnel reads {OLDEST_OPSET} to {NEWEST_OPSET}. Export it with opset 17, say."
        )
    return int(opset)


def _from_proto(model: onnx.ModelProto, name: str, opset: int) -> Graph:
    graph = model.graph
    nodes, constants = body_nodes(graph)
    inputs = [_port(v) for v in graph.input if v.name not in constants]
    outputs = [_port(v) for v in graph.output]
    if not inputs:
        raise InputError(f"{name} has no inputs, so there is nothing to stream.")
    if same := sorted({p.name for p in inputs} & {p.name for p in outputs}):
        raise InputError(f"'{same[0]}' of {name} is an input and an output; put an Identity between them.")
    return Graph(name, nodes, constants, inputs, outputs, opset, model)


def body_nodes(body: onnx.GraphProto) -> tuple[list[Node], dict[str, np.ndarray]]:
    """The nodes and the constants of a subgraph."""
    constants = {t.name: _array(t) for t in body.initializer}
    nodes = []
    for proto in body.node:
        attrs = {a.name: _attribute(a) for a in proto.attribute}
        if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
            constants[proto.output[0]] = _constant(attrs)
            continue
        nodes.append(Node(proto.op_type, proto.name, list(proto.input), list(proto.output), attrs, proto.domain))
    return nodes, constants


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"the tensor '{tensor.name[:80]}' is damaged ({_first_line(error)}); export or copy the model again."
        ) from None


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return _array(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)) or type(value).__name__ == "RepeatedScalarContainer":
        return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]
    return value


def _constant(attrs: dict[str, Any]) -> np.ndarray:
    if "value" in attrs:
        return np.asarray(attrs["value"])
    for key, dtype in (("value_float", np.float32), ("value_int", np.int64), ("value_floats", np.float32),
                       ("value_ints", np.int64)):  # fmt: skip
        if key in attrs:
            return np.array(attrs[key], dtype)
    return np.array(next(iter(attrs.values())))


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise InputError(f"'{value.name}' is a {kind}, not a tensor; runnel streams tensors.")
    tensor = value.type.tensor_type
    dims: list[int | str | None] = []
    for d in tensor.shape.dim:
        which = d.WhichOneof("value")
        fixed = which == "dim_value" and d.dim_value >= 0  # some exporters write -1 for a size that is open
        dims.append(d.dim_value if fixed else d.dim_param or None)
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)).name
    except (KeyError, TypeError):
        raise InputError(f"'{value.name}' has an element type that runnel does not know.") from None
    return Port(value.name, dtype, tuple(dims))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__
