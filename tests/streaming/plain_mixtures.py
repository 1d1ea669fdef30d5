"""Mixtures of experts as exporters write them in plain ops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nets import Net
from onnx import TensorProto, helper

EXPERTS, SIZE, INNER, K = 5, 16, 24, 2


@dataclass
class Weights:
    """up, gate: (experts, SIZE, INNER). down: (experts, INNER, SIZE)."""

    up: np.ndarray
    gate: np.ndarray
    down: np.ndarray

    @staticmethod
    def of(net: Net) -> Weights:
        shapes = [(EXPERTS, SIZE, INNER), (EXPERTS, SIZE, INNER), (EXPERTS, INNER, SIZE)]
        return Weights(*((0.4 * net.rng.standard_normal(s)).astype(np.float32) for s in shapes))


def chosen(net: Net, rows: str, normalised: bool, softmax_last: bool = False) -> tuple[str, str]:
    """Shares and numbers of the chosen experts, each (T, K)."""
    scores = net.op("MatMul", rows, net.weight(SIZE, EXPERTS, scale=1.0))
    k = net.const(np.array([K]))
    if softmax_last:
        values, numbers = net.op("TopK", scores, k, outputs=2, axis=-1)
        return net.op("Softmax", values, axis=-1), numbers
    values, numbers = net.op("TopK", net.op("Softmax", scores, axis=-1), k, outputs=2, axis=-1)
    if normalised:
        values = net.op("Div", values, net.op("ReduceSum", values, net.const(np.array([-1])), keepdims=1))
    return values, numbers


def flat(net: Net, x: str) -> str:
    return str(net.op("Reshape", x, net.const(np.array([-1, SIZE]))))


def back(net: Net, rows: str) -> str:
    return str(net.op("Reshape", rows, net.const(np.array([1, -1, SIZE]))))


def gathered(net: Net, x: str, w: Weights) -> str:
    """The weights of the chosen experts, taken for every token."""
    rows = flat(net, x)
    shares, numbers = chosen(net, rows, normalised=True)
    column = net.op("Unsqueeze", net.op("Unsqueeze", rows, net.const(np.array([1]))), net.const(np.array([1])))
    up, down = (net.op("Gather", net.const(v), numbers, axis=0) for v in (w.up, w.down))
    made = net.op("MatMul", net.op("Relu", net.op("MatMul", column, up)), down)
    made = net.op("Squeeze", made, net.const(np.array([2])))
    weighed = net.op("Mul", made, net.op("Unsqueeze", shares, net.const(np.array([-1]))))
    return back(net, net.op("ReduceSum", weighed, net.const(np.array([1])), keepdims=0))


def masked(net: Net, x: str, w: Weights) -> str:
    """All experts in one product, under a mask of shares."""
    shares, numbers = chosen(net, x, normalised=False)
    one_hot = net.op("OneHot", numbers, net.const(np.array(EXPERTS)), net.const(np.array([0, 1], np.float32)), axis=-1)
    mask = net.op("Mul", one_hot, net.op("Unsqueeze", shares, net.const(np.array([-1]))))
    mask = net.op("ReduceSum", mask, net.const(np.array([2])), keepdims=0)  # (1, T, experts)
    all_rows = net.op("Unsqueeze", x, net.const(np.array([1])))
    gate = net.op("MatMul", all_rows, net.const(w.gate))
    held = net.op("Mul", net.op("Mul", gate, net.op("Sigmoid", gate)), net.op("MatMul", all_rows, net.const(w.up)))
    made = net.op("MatMul", held, net.const(w.down))  # (1, experts, T, SIZE)
    mask = net.op("Unsqueeze", net.op("Transpose", mask, perm=[0, 2, 1]), net.const(np.array([-1])))
    return str(net.op("ReduceSum", net.op("Mul", made, mask), net.const(np.array([1])), keepdims=0))


def one_by_one(net: Net, x: str, w: Weights) -> str:
    """A layer for each expert, weighed by what it is chosen with."""
    rows = flat(net, x)
    shares, numbers = chosen(net, rows, normalised=True, softmax_last=True)
    total = ""
    for e in range(EXPERTS):
        here = net.op("Cast", net.op("Equal", numbers, net.const(np.array(e))), to=TensorProto.FLOAT)
        share = net.op("ReduceSum", net.op("Mul", here, shares), net.const(np.array([-1])), keepdims=1)
        made = _single(net, rows, w, e)
        made = net.op("Mul", made, share)
        total = net.op("Add", total, made) if total else made
    return back(net, total)


def _single(net: Net, rows: str, w: Weights, e: int) -> str:
    gate = net.op("MatMul", rows, net.const(w.gate[e]))
    held = net.op("Mul", net.op("Mul", gate, net.op("Sigmoid", gate)), net.op("MatMul", rows, net.const(w.up[e])))
    return str(net.op("MatMul", held, net.const(w.down[e])))


def scattered(net: Net, x: str, w: Weights) -> str:
    """For each expert the rows that chose it, added to where they belong."""
    rows = flat(net, x)
    shares, numbers = chosen(net, rows, normalised=True)
    total = net.op("Mul", rows, net.const(np.float32(0)))
    for e in range(EXPERTS):
        where = net.op("Transpose", net.op("NonZero", net.op("Equal", numbers, net.const(np.array(e)))), perm=[1, 0])
        row = net.op("Slice", where, *(net.const(np.array([v])) for v in (0, 1, 1)))
        picked = net.op("GatherND", rows, row)
        share = net.op("Unsqueeze", net.op("GatherND", shares, where), net.const(np.array([-1])))
        made = net.op("Mul", _single(net, picked, w, e), share)
        total = net.op("ScatterND", total, row, made, reduction="add")
    return back(net, total)


def branched(net: Net, x: str, w: Weights) -> str:
    """An If for each expert: nothing is computed where no token chose it."""
    rows = flat(net, x)
    shares, numbers = chosen(net, rows, normalised=True)
    total = ""
    for e in range(EXPERTS):
        here = net.op("Cast", net.op("Equal", numbers, net.const(np.array(e))), to=TensorProto.FLOAT)
        share = net.op("ReduceSum", net.op("Mul", here, shares), net.const(np.array([-1])), keepdims=1)
        some = net.op("Cast", net.op("ReduceMax", here, keepdims=0), to=TensorProto.BOOL)
        up, down, zero = net.const(w.up[e]), net.const(w.down[e]), net.const(np.float32(0))
        then = [
            helper.make_node("MatMul", [rows, up], [f"held{e}"]), helper.make_node("Relu", [f"held{e}"], [f"kept{e}"]),
            helper.make_node("MatMul", [f"kept{e}", down], [f"then{e}"]),
        ]  # fmt: skip
        other = [helper.make_node("Mul", [rows, zero], [f"else{e}"])]
        made = net.op("If", some, then_branch=_body(then, f"then{e}"), else_branch=_body(other, f"else{e}"))
        made = net.op("Mul", made, share)
        total = net.op("Add", total, made) if total else made
    return back(net, total)


def _body(nodes: list[Any], output: str, inputs: list[Any] | None = None, more: list[Any] | None = None) -> Any:
    out = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, output, inputs or [], [*(more or []), out])


def looped(net: Net, x: str, w: Weights) -> str:
    """A Loop over the experts, which takes one's weights from stacks by its number."""
    rows = flat(net, x)
    shares, numbers = chosen(net, rows, normalised=True)
    up, down, last = net.const(w.up), net.const(w.down), net.const(np.array([-1]))
    nodes = [
        helper.make_node("Gather", [up, "number"], ["own_up"], axis=0),
        helper.make_node("Gather", [down, "number"], ["own_down"], axis=0),
        helper.make_node("Equal", [numbers, "number"], ["here"]),
        helper.make_node("Cast", ["here"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["weights", shares], ["weighed"]),
        helper.make_node("ReduceSum", ["weighed", last], ["share"], keepdims=1),
        helper.make_node("MatMul", [rows, "own_up"], ["held"]),
        helper.make_node("Relu", ["held"], ["kept"]),
        helper.make_node("MatMul", ["kept", "own_down"], ["made"]),
        helper.make_node("Mul", ["made", "share"], ["part"]),
        helper.make_node("Add", ["so_far", "part"], ["total"]),
        helper.make_node("Identity", ["again"], ["go_on"]),
    ]
    ports = [
        helper.make_tensor_value_info("number", TensorProto.INT64, []),
        helper.make_tensor_value_info("again", TensorProto.BOOL, []),
        helper.make_tensor_value_info("so_far", TensorProto.FLOAT, None),
    ]
    go_on = helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])
    body = _body(nodes, "total", ports, [go_on])
    zero = net.op("Mul", rows, net.const(np.float32(0)))
    count, yes = net.const(np.array(EXPERTS)), net.const(np.array(True))
    return back(net, net.op("Loop", count, yes, zero, body=body))
