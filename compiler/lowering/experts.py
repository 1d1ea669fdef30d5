"""Mixtures of experts inside a frame: a choice, the chosen experts one after the other, and their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.graph.blocks import Blocks
from runnel.compiler.graph.experts import Stacked, some_of, table_name
from runnel.compiler.lowering.frame import FrameNode, FrameValue
from runnel.compiler.lowering.pointwise import handler
from runnel.compiler.lowering.signals import Chosen, NoKernel, Step, Table, View
from runnel.compiler.lowering.weights import block_operands, coded
from runnel.compiler.streaming.ir import Pointwise, Stream

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering


@handler("MoE")
def mixture(low: Lowering, node: Pointwise) -> View:
    x, scores = (low.view(s) for s in node.streams[:2])
    parts = [v for v in [*node.inputs[2:], None, None][:4] if not isinstance(v, Stream)]
    first, first_bias, second, second_bias = parts
    if len(node.streams) > 2 or first is None or second is None or x.signal.dtype != "float32":
        raise NoKernel("has experts that depend on time, or activations other than float32")
    count, k = len(first), int(node.attrs.get("k", 1))
    if int(np.prod(scores.shape)) != count or int(np.prod(x.shape)) != first.shape[2]:
        raise NoKernel("has several rows in a frame")
    if not 0 < k <= count:
        raise NoKernel(f"chooses {k} of {count} experts")
    x, scores = x.reshaped((first.shape[2],)), scores.reshaped((count,))
    shares = low.step(node, "softmax", [scores], (count,), {"axis": 0})
    chosen = low.step(node, "choose", [scores], (1 + k,), {"k": k}, "int32")
    normalised = bool(node.attrs.get("normalize_routing_weights", 0))
    shares = low.step(node, "shares", [shares, chosen], (k,), {"normalised": normalised})
    likely = _foreseen(low, node)
    kinds = _kinds(low, node)
    lists = [_among(low, node, kind, chosen) for kind in kinds]
    guesses = [] if likely is None else [(n, _among(low, node, n, likely[1])) for n in _kinds(low, likely[0])]
    outer = low.loop
    low.loop = outer or low.new_loop()
    slots = [low.choose(node, kind.table, units) for kind, units in zip(kinds, lists, strict=True)]
    for kind, units in guesses:
        low.choose(node, kind.table, units, guess=True)
    inner, outputs = (
        [_part(low, kind, slot, *both) for kind, slot in zip(kinds, slots, strict=True)]
        for both in (("first", first, first_bias), ("second", second, second_bias))
    )
    total: View | None = None
    for place in range(k):
        held = _activated(low, node, _product(low, node, x, inner, place))
        made = _product(low, node, held, outputs, place)
        share = low.step(node, "slice", [shares], (1,), {"starts": [place], "ends": [place + 1], "steps": [1]})
        made = low.elementwise(node, "mul", [made, share], {})
        total = made if total is None else low.elementwise(node, "add", [total, made], {})
    low.loop = outer
    assert total is not None
    return total


@dataclass(frozen=True)
class _Kind:
    """Experts of one width. members: their numbers. rows: for each expert of the layer its number among these, or -1;
    None where they are all."""

    members: np.ndarray
    rows: np.ndarray | None
    table: Table


def _kinds(low: Lowering, node: Pointwise) -> list[_Kind]:
    """Experts by their width, few bits first; of weights that are no codes all are of one kind."""
    weights = [w for w in (node.inputs[2], node.inputs[4]) if isinstance(w, np.ndarray)]
    stacks = [w for w in weights if isinstance(w, Stacked)]
    widths = [tuple(w.blocks[e].bits for w in stacks) for e in range(len(weights[0]))]
    made: list[_Kind] = low.shared.setdefault(("experts", node), [])
    for width in sorted(set(widths)) if not made else ():
        members = np.array([e for e, own in enumerate(widths) if own == width])
        rows, name = None, node.name
        if len(members) < len(widths):
            rows, name = np.full(len(widths), -1, np.int32), table_name(node.name, width[0])
            rows[members] = np.arange(len(members))
        misses = low.graph.misses.get(name, ())
        made.append(_Kind(members, rows, Table(name, len(members), int(node.attrs.get("k", 1)), misses=misses)))
    return made


def _among(low: Lowering, node: Pointwise, kind: _Kind, chosen: View) -> View:
    """The chosen experts as units of the kind's table."""
    return chosen if kind.rows is None else low.step(node, "among", [chosen, kind.rows], chosen.shape, {}, "int32")


def _foreseen(low: Lowering, node: Pointwise) -> tuple[Pointwise, View] | None:
    """The mixture of the next layer, and what it would choose of what this one chooses by."""
    nodes = low.graph.nodes
    after = nodes[nodes.index(node) + 1 :]
    following = next((n for n in after if isinstance(n, Pointwise) and n.op == "MoE"), None)
    own, other = (None if n is None else _router(n.streams[1]) for n in (node, following))
    if following is None or own is None or other is None or own.x not in low.views:
        return None
    x = low.view(own.x)
    if x.signal.dtype != "float32" or int(np.prod(x.shape)) != other.weight.shape[0]:
        return None
    x = x.reshaped((other.weight.shape[0],))
    scores = low.linear(node, x, other.weight, other.bias, (other.weight.shape[1],))
    k = int(following.attrs.get("k", 1))
    return following, low.step(node, "choose", [scores], (1 + k,), {"k": k}, "int32")


@dataclass
class _Router:
    x: Stream
    weight: np.ndarray
    bias: np.ndarray | None


def _router(scores: Stream) -> _Router | None:
    """The product that gives scores; None where they are made otherwise."""
    bias: np.ndarray | None = None
    node = scores.node
    while isinstance(node, Pointwise):
        constants = [x for x in node.inputs if isinstance(x, np.ndarray)]
        if node.op in ("Reshape", "Squeeze", "Unsqueeze", "Identity"):
            node = node.streams[0].node
        elif node.op == "Add" and len(constants) == 1 and bias is None:
            bias = constants[0].astype(np.float32).reshape(-1)
            node = node.streams[0].node
        elif node.op in ("MatMul", "Gemm") and isinstance(weight := node.inputs[1], np.ndarray) and weight.ndim == 2:
            plain = all(float(node.attrs.get(a, 1)) == 1 for a in ("alpha", "beta"))
            if not plain or not isinstance(node.inputs[0], Stream) or (len(constants) > 1 and bias is not None):
                return None
            weight = weight.T if node.attrs.get("transB") else weight
            if len(constants) > 1:
                bias = constants[1].astype(np.float32).reshape(-1)
            if bias is not None and bias.size != weight.shape[1]:
                return None
            return _Router(node.inputs[0], np.ascontiguousarray(weight, np.float32), bias)
        else:
            return None
    return None


@dataclass(frozen=True)
class _Part:
    """One of an expert's two products, for experts of one kind. inputs: the constants of each of them."""

    name: str
    kind: _Kind
    slots: View
    op: str
    attrs: dict[str, Any]
    inputs: list[tuple[np.ndarray | None, ...]]
    outputs: int


def _part(low: Lowering, kind: _Kind, slots: View, name: str, weights: np.ndarray, bias: np.ndarray | None) -> _Part:
    own = weights if kind.rows is None else some_of(weights, kind.members)
    op, attrs, constants = _constants(low, own)
    biases = [None if bias is None else np.ascontiguousarray(bias[e], np.float32) for e in kind.members]
    inputs = [(None, *arrays, b) for arrays, b in zip(constants, biases, strict=True)]
    return _Part(name, kind, slots, op, attrs, inputs, weights.shape[1])


def _product(low: Lowering, node: Pointwise, x: View, parts: list[_Part], place: int) -> View:
    """x by the matrix (outputs, inputs) of the expert in a place of the list, plus its bias. Of several kinds only the
    step of that expert's is made."""
    name, size, fact = parts[0].name, parts[0].outputs, node.output.fact
    signal = low.signal(f"{node.output.name}/{name}{place}", (size,), "float32", fact.made, fact.length)
    for part in parts:
        read, output = low.read(x), FrameValue(f"{node.name}/{name}", (size,), "float32")
        made = low.add(FrameNode(part.op, (read.value, *part.inputs[0][1:]), output, part.attrs), [read], signal)
        step = low.steps[-1]
        assert isinstance(step, Step)
        step.chosen = Chosen(part.kind.table, part.slots.signal, place, name, part.inputs)
        step.place = 0 if len(parts) > 1 else None
    return made


def _constants(low: Lowering, weights: np.ndarray) -> tuple[str, dict[str, Any], list[tuple[np.ndarray | None, ...]]]:
    """The op, its attributes, and its constants but for the bias, expert by expert."""
    blocks: list[list[Blocks]] | None = None
    if isinstance(weights, Stacked):
        blocks = [[b.merged()] for b in weights.blocks]
        if len({(b.bits, b.block, b.zeros is None) for (b,) in blocks}) > 1:
            blocks = [[b] for b in weights.blocks]
    else:
        found = [coded(low.graph.modes, [np.ascontiguousarray(w.T, np.float32)]) for w in weights]
        if all(f is not None for f in found):
            blocks = [f for f in found if f is not None]
    if blocks is None:
        return "matmul", {}, [(np.ascontiguousarray(w.T, np.float32),) for w in weights]
    made = [block_operands(b) for b in blocks]
    if any(attrs != made[0][1] for _, attrs in made):
        raise NoKernel("has experts of several bit widths")
    scales = [operands[1] for operands, _ in made]
    halves = all(s is None or np.array_equal(s.astype(np.float16).astype(np.float32), s) for s in scales)
    zeros = any(operands[2] is not None for operands, _ in made)
    full: list[tuple[np.ndarray | None, ...]] = [
        (codes, scale, zero if zero is not None or not zeros else np.zeros_like(scale))
        for (codes, scale, zero), _ in made
    ]
    return "matmul_blocks", made[0][1] | {"halves": halves}, full


def _activated(low: Lowering, node: Pointwise, x: View) -> View:
    kind = node.attrs.get("activation_type", "relu")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    attrs = node.attrs
    if kind == "identity":
        return x
    if kind == "relu":
        return low.elementwise(node, "relu", [x], {})
    if kind == "gelu":
        return low.elementwise(node, "gelu", [x], {"approximate": "tanh"})
    if kind == "silu":
        return low.elementwise(node, "mul", [x, low.elementwise(node, "sigmoid", [x], {})], {})
    half = x.shape[0] // 2
    gate, value = (
        low.step(node, "slice", [x], (half,), {"starts": [i], "ends": [2 * half], "steps": [2]}) for i in range(2)
    )
    limit = float(attrs.get("swiglu_limit", np.inf))
    if np.isfinite(limit):
        gate = low.elementwise(node, "clip", [gate], {"min": None, "max": limit})
        value = low.elementwise(node, "clip", [value], {"min": -limit, "max": limit})
    alpha, beta = (float(attrs.get(f"activation_{n}", d)) for n, d in (("alpha", 1.0), ("beta", 0.0)))
    inner = gate if alpha == 1 else low.elementwise(node, "mul", [gate, np.array(alpha, np.float32)], {})
    gate = low.elementwise(node, "mul", [gate, low.elementwise(node, "sigmoid", [inner], {})], {})
    if beta:
        value = low.elementwise(node, "add", [value, np.array(beta, np.float32)], {})
    return low.elementwise(node, "mul", [gate, value], {})
