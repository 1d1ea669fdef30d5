"""Loops whose number of turns is known before the model runs, written out turn by turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from runnel.compiler.graph.model import Graph, Node, body_nodes

MOST_NODES = 20_000

Rename = Callable[[onnx.GraphProto, Mapping[str, str]], None]


def unrolled(graph: Graph, node: Node, rename_captured: Rename) -> list[Node] | None:
    """The nodes that stand for a Loop; its constants go to the graph. None where its turns are not known, are none or
    make too many nodes."""
    body = node.attrs.get("body")
    if node.op != "Loop" or not isinstance(body, onnx.GraphProto) or not node.inputs[0]:
        return None
    trips, going = graph.constants.get(node.inputs[0]), graph.constants.get(node.inputs[1])
    if trips is None or (node.inputs[1] and (going is None or not bool(going.reshape(-1)[0]))):
        return None
    turns = int(trips.reshape(-1)[0])
    inner, constants = body_nodes(body)
    number, condition, *names = (i.name for i in body.input)
    going_on = _origin(body.output[0].name, inner)
    if going_on != condition and not np.all(constants.get(going_on, np.array(False))):
        return None
    if not turns > 0 or turns * len(inner) > MOST_NODES:
        return None
    carried = list(node.inputs[2:])
    given: list[list[str]] = [[] for _ in body.output[1 + len(names) :]]
    nodes: list[Node] = []
    for turn in range(turns):
        prefix = f"{node.name}/{turn}/"
        own = {o for n in inner for o in n.outputs if o} | constants.keys() | {number, condition}
        rename = {name: prefix + name for name in own} | dict(zip(names, carried))
        graph.constants |= {rename[name]: value for name, value in constants.items()}
        graph.constants[rename[number]] = np.array(turn, np.int64)
        graph.constants[rename[condition]] = np.array(True)
        for each in inner:
            nodes.append(_copy(each, prefix, rename, rename_captured))
        results = [rename.get(o.name, o.name) for o in body.output[1:]]
        carried = results[: len(names)]
        for name, many in zip(results[len(names) :], given):
            many.append(f"{prefix}{name}/row")
            graph.constants[f"{prefix}{name}/axis"] = np.array([0], np.int64)
            nodes.append(Node("Unsqueeze", many[-1], [name, f"{prefix}{name}/axis"], [many[-1]]))
    for name, made in zip(node.outputs, carried):
        if name:
            nodes.append(Node("Identity", name, [made], [name]))
    for name, many in zip(node.outputs[len(names) :], given):
        if name:
            nodes.append(Node("Concat", name, many, [name], {"axis": 0}))
    return nodes


def _origin(name: str, nodes: list[Node]) -> str:
    """What a value is, behind Identity and Cast."""
    makers = {o: n for n in nodes for o in n.outputs}
    while name in makers and makers[name].op in ("Identity", "Cast"):
        name = makers[name].inputs[0]
    return name


def _copy(node: Node, prefix: str, rename: Mapping[str, str], rename_captured: Rename) -> Node:
    attrs = dict(node.attrs)
    for key, value in attrs.items():
        if isinstance(value, onnx.GraphProto):
            attrs[key] = onnx.GraphProto()  # the model itself stays as it was
            attrs[key].CopyFrom(value)
            rename_captured(attrs[key], rename)
    inputs = [rename.get(i, i) for i in node.inputs]
    outputs = [rename[o] if o else "" for o in node.outputs]
    return Node(node.op, prefix + node.name, inputs, outputs, attrs, node.domain)
