"""A decoder with a past as a model of the whole sequence: no past, positions from 0, a mask that hides what comes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from runnel.compiler.graph.decoder.check import check_past
from runnel.compiler.graph.decoder.places import only_filled
from runnel.compiler.graph.decoder.roles import Role, Roles
from runnel.compiler.graph.fold import fold, to_proto
from runnel.compiler.graph.model import Graph, Node, Port
from runnel.errors import InputError

KEEPS = {"GroupQueryAttention": (3, 4), "MultiHeadAttention": (6, 7, 8), "Attention": (4, 5), "SparseAttention": (3, 4)}
"""Where ops take a past; what they give of it are their outputs from the second on."""
PRESENT = re.compile(r"present|new_(key|value|cache)", re.IGNORECASE)
"""Outputs of a first call that would be the past of a second one."""
WRITES = ("TensorScatter", "ScatterND", "ScatterElements")


def whole_sequence(graph: Graph, roles: Roles) -> None:
    """Bind every input but the tokens (and static inputs) to what it is when a sequence begins, in place.

    ``graph.proto`` becomes that model. Raises InputError where a past has a size that is not known, or where the model
    with its past gives something else.
    """
    ports = list(graph.inputs)
    maker = _Maker(graph, roles)
    pasts = set(roles.of("past"))
    capacities = {
        d
        for p in graph.inputs
        if (role := roles.by_name[p.name]).kind == "past" and isinstance(d := p.shape[role.axis], int)
    }
    for port in list(graph.inputs):
        role = roles.by_name[port.name]
        if role.kind == "past":
            graph.constants[port.name] = np.zeros(_without_past(port, role), port.dtype)
        elif role.kind == "begin":
            shape = [d if isinstance(d, int) else 1 for d in port.shape]
            graph.constants[port.name] = np.zeros(shape, port.dtype)
        elif role.kind == "all":
            graph.constants[port.name] = np.ones(_sized(port), port.dtype)
        elif role.kind in ("tokens", "static", "given"):
            continue
        else:
            maker.bind(port, role)
        graph.inputs.remove(port)
    graph.nodes = maker.nodes + [_without(n, pasts) for n in graph.nodes]
    presents = {p.name for p in graph.outputs if PRESENT.match(p.name) and len(p.shape) >= 4} | roles.presents
    graph.outputs = [p for p in graph.outputs if p.name not in presents]
    _open_time(graph, roles)
    fold(graph)
    graph.nodes = [joined for n in graph.nodes if (joined := _joined(graph, n)) is not None]
    fold(graph)
    if capacities:
        only_filled(graph, maker.tokens, maker.axis, capacities)
    for name in roles.of("past"):
        graph.constants.pop(name, None)
    read = {i for n in graph.nodes for i in n.inputs} | {p.name for p in graph.outputs}
    graph.inputs = [p for p in graph.inputs if p.name in read or roles.by_name[p.name].kind != "static"]
    before, graph.proto = graph.proto, to_proto(graph)
    if roles.presents:
        check_past(before, ports, roles, graph.proto)


def _sized(port: Port) -> list[int]:
    """The shape of an input that is no sequence; a batch is 1."""
    if any(not isinstance(d, int) and i for i, d in enumerate(port.shape)):
        raise InputError(
            f"input '{port.name}' has a size that is not known: {list(port.shape)}; give its shape with --shape "
            f"{port.name}:SIZE,SIZE,..."
        )
    return [d if isinstance(d, int) else 1 for d in port.shape]


def _without_past(port: Port, role: Role) -> list[int]:
    return [0 if a == role.axis else d if isinstance(d, int) else 1 for a, d in enumerate(port.shape)]


def _without(node: Node, pasts: set[str]) -> Node:
    """An op that keeps its past, without one; what writes into a cache gives what it writes."""
    if node.op in WRITES and node.inputs[0] in pasts:
        update = {"TensorScatter": 1, "ScatterND": 2, "ScatterElements": 2}[node.op]
        return Node("Identity", node.name, [node.inputs[update]], node.outputs)
    if node.op in KEEPS:
        inputs = ["" if i in KEEPS[node.op] else name for i, name in enumerate(node.inputs)]
        return replace(node, inputs=inputs)
    return node


def _joined(graph: Graph, node: Node) -> Node | None:
    """A Concat without operands that hold nothing; a write into a turned cache as what it writes."""
    if node.op == "ScatterND" and (empty := graph.constants.get(node.inputs[0])) is not None and empty.size == 0:
        return Node("Identity", node.name, [node.inputs[2]], node.outputs)
    if node.op != "Concat":
        return node
    kept = [i for i in node.inputs if i not in graph.constants or graph.constants[i].size]
    if len(kept) == len(node.inputs) or not kept:
        return node
    if len(kept) == 1:
        return Node("Identity", node.name, kept, node.outputs)
    return replace(node, inputs=kept)


def _open_time(graph: Graph, roles: Roles) -> None:
    """The tokens' axis may have any length; that of a batch is 1."""
    for i, port in enumerate(graph.inputs):
        role = roles.by_name[port.name]
        if role.kind in ("tokens", "given"):
            shape = tuple("T" if a == role.axis else d if isinstance(d, int) else 1 for a, d in enumerate(port.shape))
            graph.inputs[i] = replace(port, shape=shape)
    for i, port in enumerate(graph.outputs):
        graph.outputs[i] = replace(port, shape=tuple(None for _ in port.shape))


class _Maker:
    """Nodes that make inputs from the number of tokens."""

    def __init__(self, graph: Graph, roles: Roles) -> None:
        self.graph, self.nodes = graph, []  # type: ignore[var-annotated]
        self.tokens = roles.of("tokens")[0]
        self.axis = roles.by_name[self.tokens].axis
        shape = self.add("Shape", self.tokens)
        self.length = self.add("Gather", shape, self.const([self.axis]), axis=0)
        self.scalar = self.add("Squeeze", self.length, self.const([0]))

    def const(self, value: Any, dtype: str = "int64") -> str:
        name = f"runnel.sequence/const{len(self.graph.constants)}"
        self.graph.constants[name] = np.asarray(value, dtype)
        return name

    def add(self, op: str, *inputs: str, output: str = "", **attrs: Any) -> str:
        name = output or f"runnel.sequence/{op}{len(self.nodes)}"
        self.nodes.append(Node(op, name, list(inputs), [name], attrs))
        return name

    def bind(self, port: Port, role: Role) -> None:
        dims = [d if isinstance(d, int) else 1 for d in port.shape]
        getattr(self, f"_{role.kind}")(port, role, dims)

    def _cast(self, value: str, port: Port) -> None:
        self.add("Cast", value, output=port.name, to=_element(port.dtype))

    def _range(self) -> str:
        return self.add("Range", self.const(0), self.scalar, self.const(1))

    def _shape(self, dims: list[int], axis: int) -> str:
        parts = [self.const(dims[:axis])] if axis else []
        return self.add("Concat", *parts, self.length, axis=0) if parts else self.length

    def _positions(self, port: Port, role: Role, dims: list[int]) -> None:
        self._cast(self.add("Expand", self._range(), self._shape(dims, role.axis)), port)

    def _ones(self, port: Port, role: Role, dims: list[int]) -> None:
        self._cast(self.add("Expand", self.const([1]), self._shape(dims, role.axis)), port)

    def _causal(self, port: Port, role: Role, dims: list[int]) -> None:
        i = self._range()
        seen = self.add(
            "GreaterOrEqual", self.add("Unsqueeze", i, self.const([1])), self.add("Unsqueeze", i, self.const([0]))
        )
        if port.dtype != "bool":
            seen = self.add("Where", seen, self.const(0, port.dtype), self.const(-np.inf, port.dtype))
        lead = self.const(dims[: role.axis - 1])
        shape = self.add("Concat", *([lead] if role.axis > 1 else []), self.length, self.length, axis=0)
        self.add("Expand", seen, shape, output=port.name)

    def _length(self, port: Port, role: Role, dims: list[int]) -> None:
        self._cast(self.length if dims else self.scalar, port)

    def _last(self, port: Port, role: Role, dims: list[int]) -> None:
        self._cast(self.add("Sub", self.length if dims else self.scalar, self.const(1)), port)

    def _zero(self, port: Port, role: Role, dims: list[int]) -> None:
        self.graph.constants[port.name] = np.zeros(_sized(port), port.dtype)


def _element(dtype: str) -> int:
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
