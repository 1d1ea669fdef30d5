"""Attention that comes as one op, taken apart into the products, masks and softmax that it stands for.

ONNX's Attention, and MultiHeadAttention, GroupQueryAttention and Attention of com.microsoft, without a past of their
own; and the rotary positions of queries and keys (rotary.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runnel.compiler.graph.fold import fold
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.attention.pattern import tainted_names
from runnel.compiler.streaming.attention.rotary import microsoft, standard

MICROSOFT = "com.microsoft"
Shapes = Mapping[str, tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Heads:
    """Heads of queries and of keys, features of a query's (and key's) head and of a value's."""

    queries: int
    keys: int
    size: int
    wide: int

    @property
    def group(self) -> int:
        return self.queries // self.keys


class Parts:
    """Adds nodes in the place of one op; shapes of its inputs are known."""

    def __init__(self, graph: Graph, node: Node, shapes: Shapes, tainted: set[str], caches: bool) -> None:
        self.graph, self.node, self.shapes, self.tainted, self.caches = graph, node, shapes, tainted, caches
        self.nodes: list[Node] = []

    def shape(self, name: str) -> tuple[int, ...]:
        return self.graph.constants[name].shape if name in self.graph.constants else self.shapes[name][0]

    def input(self, i: int) -> str:
        """The name of an input, empty where it is absent."""
        return self.node.inputs[i] if i < len(self.node.inputs) else ""

    def attr(self, name: str, default: Any) -> Any:
        return self.node.attrs.get(name, default)

    def lengths_only(self, name: str) -> bool:
        """Whether a value depends on lengths alone."""
        return name not in self.tainted

    def const(self, value: Any, dtype: str = "int64") -> str:
        name = f"{self.node.name}/const{len(self.graph.constants)}"
        self.graph.constants[name] = np.asarray(value, dtype)
        return name

    def add(self, op: str, *inputs: str, output: str = "", **attrs: Any) -> str:
        name = output or f"{self.node.name}/{op}{len(self.nodes)}"
        self.nodes.append(Node(op, name, list(inputs), [name], attrs))
        return name

    def heads(self, x: str, heads: int) -> str:
        """(B, T, heads·size) as (B, heads, T, size)."""
        return self.add("Transpose", self.add("Reshape", x, self.const([0, 0, heads, -1])), perm=[0, 2, 1, 3])

    def cut(self, x: str, start: int, stop: int, axis: int, step: int = 1) -> str:
        return self.add("Slice", x, *(self.const([v]) for v in (start, stop, axis, step)))

    def positions(self, x: str, axis: int) -> str:
        """0 … length - 1 of an axis."""
        length = self.add("Gather", self.add("Shape", x), self.const(axis), axis=0)
        return self.add("Range", self.const(0), length, self.const(1))

    def causal(self, x: str, axis: int, left: int | None = None) -> str:
        """A mask (T, T) to be added: 0 for keys from ``left`` before the query up to it, else -inf."""
        i = self.positions(x, axis)
        rows, columns = (self.add("Unsqueeze", i, self.const([a])) for a in (1, 0))
        distance = self.add("Sub", rows, columns)
        seen = self.add("GreaterOrEqual", distance, self.const(0))
        if left is not None:
            seen = self.add("And", seen, self.add("LessOrEqual", distance, self.const(left)))
        return self.open(seen)

    def rotated(self, x: str, size: int, half: int, cos: str, sin: str, interleaved: bool) -> str:
        """(B, heads, T, size) turned by its position: the first 2·half features, by cosines and sines (…, T, half)."""
        if interleaved:
            a, b = (self.cut(x, n, 2 * half, 3, 2) for n in (0, 1))
        else:
            a, b = self.cut(x, 0, half, 3), self.cut(x, half, 2 * half, 3)
        first = self.add("Sub", self.add("Mul", a, cos), self.add("Mul", b, sin))
        second = self.add("Add", self.add("Mul", b, cos), self.add("Mul", a, sin))
        if interleaved:
            pairs = (self.add("Unsqueeze", y, self.const([4])) for y in (first, second))
            turned = [self.add("Reshape", self.add("Concat", *pairs, axis=4), self.const([0, 0, 0, 2 * half]))]
        else:
            turned = [first, second]
        rest = [self.cut(x, 2 * half, size, 3)] if 2 * half < size else []
        return self.add("Concat", *turned, *rest, axis=3) if len(turned + rest) > 1 else turned[0]

    def open(self, seen: str) -> str:
        """A bool mask as one to be added."""
        return self.add("Where", seen, self.const(0.0, "float32"), self.const(-np.inf, "float32"))

    def there(self, name: str, keys: str, axis: int, rank: int = 4) -> str:
        """A mask to be added to scores of this rank for which keys are there: bool or whole (B, T), or how many,
        (B)."""
        if len(self.shape(name)) == 2:
            seen = self.add("Cast", name, to=9)
        else:
            count = self.add("Unsqueeze", self.add("Cast", name, to=7), self.const([1]))
            seen = self.add("Less", self.add("Unsqueeze", self.positions(keys, axis), self.const([0])), count)
        return self.open(self.add("Unsqueeze", seen, self.const([*range(1, rank - 1)])))

    def attention(
        self, q: str, k: str, v: str, h: Heads, masks: list[str], blind: bool = False, sinks: str = ""
    ) -> str:
        """softmax(cap(scale·q·kᵀ) + masks)·v for q, k, v of (B, heads, T, size); heads that share keys do not repeat
        them. blind: a query that sees no key gives zeros. sinks: (heads), logits of keys without values."""
        shared = h.queries != h.keys
        if shared:
            q = self.add("Reshape", q, self.const([0, h.keys, h.group, -1, h.size]))
            k, v = (self.add("Unsqueeze", x, self.const([2])) for x in (k, v))
        rank = 5 if shared else 4
        turned = self.add("Transpose", k, perm=[*range(rank - 2), rank - 1, rank - 2])
        factor = float(self.attr("scale", 0.0)) or h.size**-0.5
        scores = self.add("Mul", self.add("MatMul", q, turned), self.const(factor, "float32"))
        if softcap := float(self.attr("softcap", 0.0)):
            cap = self.const(softcap, "float32")
            scores = self.add("Mul", self.add("Tanh", self.add("Div", scores, cap)), cap)
        for mask in masks:
            scores = self.add("Add", scores, mask)
        if sinks:
            lead = [1, h.keys, h.group, 1, 1] if shared else [1, h.queries, 1, 1]
            column = self.cut(self.add("Shape", scores), 0, rank - 1, 0)
            column = self.add("Concat", column, self.const([1]), axis=0)
            wide = self.add("Expand", self.add("Reshape", sinks, self.const(lead)), column)
            scores = self.add("Concat", scores, wide, axis=-1)
        weights = self.add("Softmax", scores, axis=-1)
        if sinks:
            weights = self.cut(weights, 0, -1, rank - 1)
        if blind:
            zero = self.const(0.0, "float32")
            weights = self.add("Where", self.add("IsNaN", weights), zero, weights)
        y = self.add("MatMul", weights, v)
        return self.add("Reshape", y, self.const([0, h.queries, -1, h.wide])) if shared else y

    def mask(self, name: str, h: Heads) -> str:
        """A mask of the model, (…, T, T) with its heads before, as one to be added to the scores."""
        shape, dtype = self.shapes[name] if name in self.shapes else (self.shape(name), "")
        dtype = dtype or self.graph.constants[name].dtype.name
        if h.queries != h.keys and len(shape) >= 3:
            if shape[-3] == 1:
                name = self.add("Unsqueeze", name, self.const([len(shape) - 2]))
            else:
                sides = self.cut(self.add("Shape", name), -2, 1 << 40, 0)
                lead = self.const([*shape[:-3], h.keys, h.group])
                name = self.add("Reshape", name, self.add("Concat", lead, sides, axis=0))
        return self.open(name) if dtype == "bool" else name

    def give(self, y: str, heads_apart: bool, h: Heads) -> None:
        """The op's output: (B, heads, T, size), or with the heads side by side."""
        out = self.node.outputs[0]
        if heads_apart:
            self.add("Identity", y, output=out)
        else:
            y = self.add("Transpose", y, perm=[0, 2, 1, 3])
            self.add("Reshape", y, self.const([0, 0, h.queries * h.wide]), output=out)


def _standard(p: Parts) -> bool:
    q, k, v, mask = (p.input(i) for i in range(4))
    if p.input(4) or p.input(5) or not p.lengths_only(p.input(6)):
        return False
    flat = len(p.shape(q)) == 3
    if flat:
        heads, keys = int(p.attr("q_num_heads", 0)), int(p.attr("kv_num_heads", 0))
        h = Heads(heads, keys, p.shape(q)[2] // heads, p.shape(v)[2] // keys)
        q, k, v = p.heads(q, heads), p.heads(k, keys), p.heads(v, keys)
    else:
        h = Heads(p.shape(q)[1], p.shape(k)[1], p.shape(q)[3], p.shape(v)[3])
    masks = [p.causal(p.input(0), 1 if flat else 2)] if p.attr("is_causal", 0) else []
    masks += [p.mask(mask, h)] if mask else []
    masks += [p.there(p.input(6), p.input(1), 1 if flat else 2, 5 if h.group > 1 else 4)] if p.input(6) else []
    p.give(p.attention(q, k, v, h, masks, bool(mask)), not flat, h)
    return True


def _multi_head(p: Parts) -> bool:
    q, k, v, bias, padding, relative = (p.input(i) for i in range(6))
    if (
        not p.lengths_only(padding)
        or any(p.input(i) for i in range(6, 10))
        or not (k and v)
        or any(len(p.shape(x)) != 3 for x in (q, k, v))
    ):
        return False
    heads = int(p.attr("num_heads", 1))
    h = Heads(heads, heads, p.shape(q)[2] // heads, p.shape(v)[2] // heads)
    parts = [q, k, v]
    if bias:
        at = np.cumsum([0, *(p.shape(x)[2] for x in parts)])
        parts = [p.add("Add", x, p.cut(bias, int(at[i]), int(at[i + 1]), 0)) for i, x in enumerate(parts)]
    q, k, v = (p.heads(x, heads) for x in parts)
    masks = [p.causal(p.input(0), 1)] if p.attr("unidirectional", 0) else []
    masks += [p.mask(relative, h)] if relative else []
    masks += [p.there(padding, p.input(1), 1)] if padding else []
    p.give(p.attention(q, k, v, h, masks), False, h)
    return True


def _packed(p: Parts) -> bool:
    x, weight, bias, padding, past, relative = (p.input(i) for i in range(6))
    if padding or past or p.input(6) or p.attr("do_rotary", 0) or weight not in p.graph.constants:
        return False
    heads, total = int(p.attr("num_heads", 1)), p.shape(weight)[1]
    sizes = [int(n) for n in p.attr("qkv_hidden_sizes", [total // 3] * 3)]
    y = p.add("MatMul", x, weight)
    y = p.add("Add", y, bias) if bias else y
    at = np.cumsum([0, *sizes])
    q, k, v = (p.heads(p.cut(y, int(at[i]), int(at[i + 1]), 2), heads) for i in range(3))
    h = Heads(heads, heads, sizes[0] // heads, sizes[2] // heads)
    masks = [p.causal(x, 1)] if p.attr("unidirectional", 0) else []
    masks += [p.mask(relative, h)] if relative else []
    p.give(p.attention(q, k, v, h, masks), False, h)
    return True


def _grouped(p: Parts) -> bool:
    q, k, v = (p.input(i) for i in range(3))
    heads, keys = int(p.attr("num_heads", 1)), int(p.attr("kv_num_heads", 1))
    unknown = ("k_quant_type", "v_quant_type", "qk_output")
    if any(p.input(i) for i in (3, 4, 12, 13)) or any(p.attr(n, 0) not in (0, -1, "NONE") for n in unknown):
        return False
    smooth = p.attr("smooth_softmax", 0) > 0
    if not all(p.lengths_only(p.input(i)) for i in (5, 9)) or ((p.input(11) or smooth) and not p.caches):
        return False
    if not k:
        size = p.shape(q)[2] // (heads + 2 * keys)
        at = np.cumsum([0, heads * size, keys * size, keys * size])
        q, k, v = (p.cut(q, int(at[i]), int(at[i + 1]), 2) for i in range(3))
    else:
        size = p.shape(q)[2] // heads
    h = Heads(heads, keys, size, size)
    q, k, v = p.heads(q, heads), p.heads(k, keys), p.heads(v, keys)
    if p.attr("do_rotary", 0):
        length = p.cut(p.add("Shape", p.input(0)), 1, 2, 0)
        if p.input(9):
            places = p.add("Reshape", p.input(9), p.const([-1]))
            cos, sin = (p.add("Gather", p.input(n), places, axis=0) for n in (7, 8))
        else:
            cos, sin = (p.add("Slice", p.input(n), p.const([0]), length, p.const([0])) for n in (7, 8))
        half, pairs = p.shape(p.input(7))[1], bool(p.attr("rotary_interleaved", 0))
        q, k = (p.rotated(x, size, half, cos, sin, pairs) for x in (q, k))
    window = int(p.attr("local_window_size", -1))
    masks = [p.causal(p.input(0), 1, window - 1 if window > 0 else None)]
    masks += [p.mask(p.input(10), h)] if p.input(10) else []
    sinks = p.input(11) or (p.const(np.zeros(heads), "float32") if smooth else "")
    p.give(p.attention(q, k, v, h, masks, sinks=sinks), False, h)
    return True


FUSED: dict[tuple[str, str], Callable[[Parts], bool]] = {
    ("", "Attention"): _standard,
    (MICROSOFT, "MultiHeadAttention"): _multi_head,
    (MICROSOFT, "Attention"): _packed,
    (MICROSOFT, "GroupQueryAttention"): _grouped,
    ("", "RotaryEmbedding"): standard,
    (MICROSOFT, "RotaryEmbedding"): microsoft,
}


def take_apart(graph: Graph, shapes: Callable[[], Shapes], caches: bool = False) -> None:
    """Put products, masks and softmax in the place of every attention that is one op, and products in that of rotary
    positions, in place.

    shapes: gives the shapes of all tensors at one length; asked only where there is such an op. An op that keeps a past
    of its own, or gives more than its result, stays. caches: whether attentions get caches, which take logits of keys
    without values too.
    """
    if not any(_kind(n) in FUSED for n in graph.nodes):
        return
    known = shapes()
    read = {i for n in graph.nodes for i in n.inputs} | {p.name for p in graph.outputs}
    tainted = tainted_names(graph)
    nodes: list[Node] = []
    for node in graph.nodes:
        make = FUSED.get(_kind(node))
        parts = Parts(graph, node, known, tainted, caches)
        alone = not any(o in read for o in node.outputs[1:])
        nodes += parts.nodes if make is not None and alone and make(parts) else [node]
    graph.nodes = nodes
    fold(graph)


def _kind(node: Node) -> tuple[str, str]:
    return ("" if node.domain == "ai.onnx" else node.domain, node.op)
