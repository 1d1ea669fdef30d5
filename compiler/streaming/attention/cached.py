"""Attentions of a decoder to its own past, found among all attentions and traced to what a cache keeps."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.streaming.attention.cuts import Above, Function, Shape
from runnel.compiler.streaming.attention.pattern import ATTEND, Pattern, alive
from runnel.compiler.streaming.attention.turned import Layout, Turned, look
from runnel.compiler.streaming.kinds.cache import Rotary
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.unruled import reads

FRAMES = (64, 5)


@dataclass(frozen=True, eq=False)
class Cut:
    """q, k and v: what each head of queries reads of the tensors before rotation. batch: the axes of the model's scores
    before (queries, keys). shape: (tensor, frames) → its shape. ranks, told: the names of what ranks tokens and of what
    tells their positions, if anything."""

    q: Turned
    k: Turned
    v: Turned
    batch: tuple[int, ...]
    shape: Shape
    sinks: np.ndarray | None = None
    ranks: str = ""
    told: str = ""

    @property
    def queries(self) -> int:
        """Heads of queries."""
        return len(self.q.columns)

    @property
    def rotary(self) -> Rotary | None:
        """How queries and keys are turned."""
        return self.q.rotary

    @property
    def shared(self) -> bool:
        """Whether values are the first features of keys, which nothing turns (absorbed latent attention)."""
        wide = self.v.columns.shape[1]
        if self.k.gain != 1 or wide > self.k.columns.shape[1] or (self.rotary is not None and self.rotary.start < wide):
            return False
        keys, values = ([t.source(c) for c in t.columns[:, :wide].reshape(-1)] for t in (self.k, self.v))
        return keys == values

    @property
    def groups(self) -> np.ndarray:
        """Which head of keys and values each head of queries reads, numbered in the order of first use."""
        both = np.concatenate([self.k.columns, self.v.columns], axis=1)
        _, first, group = np.unique(both, axis=0, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first))
        return np.asarray(rank[group.reshape(-1)])

    def heads(self, of: Turned) -> np.ndarray:
        """(heads, features): the columns of each head, queries in the order of the heads they read, keys once."""
        order = np.argsort(self.groups, kind="stable")
        if of is self.q:
            return of.columns[order]
        return of.columns[[int(np.flatnonzero(self.groups == g)[0]) for g in range(self.groups.max() + 1)]]

    @property
    def back_in_order(self) -> np.ndarray | None:
        """Which head of the cache's attention each of the model's is; None where they are in order."""
        order = np.argsort(self.groups, kind="stable")
        back = np.argsort(order)
        return None if (back == np.arange(len(back))).all() else back.astype(np.int64)

    def in_order(self, values: np.ndarray) -> np.ndarray:
        """(heads, …) in the order of the cache's attention."""
        return np.asarray(values[np.argsort(self.groups, kind="stable")])


def with_caches(
    graph: Graph, whole: Graph, shape: Shape, sinks: Mapping[str, str], retain: str = "", given: tuple[str, ...] = ()
) -> Graph:
    """The graph, in which every attention is one node (of ``whole``, in which it is not), with those to their own past
    reading what comes before rotary positions and repeated heads. sinks: {softmax's output: logits beside its scores}.
    retain: the output, or outputs numbered by layer, that ranks tokens for the caches. given: inputs that tell
    positions.
    """
    above = Above(whole, shape, given)
    ranks = _ranks(graph, retain)
    nodes, layer = [], 0
    for node in graph.nodes:
        pattern = node.attrs.get("pattern")
        if node.op != ATTEND or not isinstance(pattern, Pattern) or not _over_time(pattern, shape):
            nodes.append(node)
            continue
        try:
            cut = _cut(above, pattern, sinks.get(pattern.softmax.outputs[0]))
            cut = replace(cut, ranks=ranks(layer))
            names = [name for turned in (cut.q, cut.k, cut.v) for name in turned.names] + [cut.ranks] * bool(cut.ranks)
            names += given if cut.rotary is not None else ()
            cut = replace(cut, told=given[0] if given and cut.rotary is not None else "")
            nodes.append(replace(node, inputs=names, attrs=node.attrs | {"cut": cut}))
        except Refusal as refusal:
            nodes.append(replace(node, inputs=_sources(above, pattern), attrs=node.attrs | {"cut": refusal}))
        layer += 1
    kept = alive(sorted_nodes(nodes) if retain else nodes, {p.name for p in graph.outputs})
    return replace(graph, nodes=kept)


def ranking(graph: Graph, retain: str) -> list[str]:
    """The outputs that rank tokens: NAME, or NAME.0, NAME.1, …, also with another sign than a dot, or none."""
    return [p.name for p in graph.outputs if retain and re.fullmatch(rf"{re.escape(retain)}\W?_?\d*", p.name)]


def _ranks(graph: Graph, retain: str) -> Callable[[int], str]:
    names = ranking(graph, retain)

    def of_layer(layer: int) -> str:
        if not retain:
            return ""
        own = [n for n in names if re.fullmatch(rf"\W?_?{layer}", n[len(retain) :])]
        if len(own) != 1 and names != [retain]:
            listed = ", ".join(f"'{p.name}'" for p in graph.outputs)
            raise Refusal(
                f"has no output '{retain}.{layer}' that ranks its tokens; the model's outputs are {listed}",
                "export the retaining heads as outputs, one a layer",
            )
        return own[0] if own else retain

    return of_layer


def sorted_nodes(nodes: Sequence[Node]) -> list[Node]:
    """The nodes, each behind those it reads from; those that wait for themselves as they were, at the end."""
    maker = {o: id(n) for n in nodes for o in n.outputs if o}
    waiting, done, placed = list(nodes), list[Node](), set[int]()
    while waiting:
        left = []
        for node in waiting:
            if all(maker.get(i) in placed or i not in maker for i in reads(node)):
                done.append(node)
                placed.add(id(node))
            else:
                left.append(node)
        if len(left) == len(waiting):
            return done + left
        waiting = left
    return done


def _sources(above: Above, pattern: Pattern) -> list[str]:
    """What the operands of a refused attention come from, so that nothing in between is refused too."""
    operands = (*pattern.scores.node.inputs, pattern.weighted.node.inputs[1])
    names: list[str] = []
    for operand in operands:
        try:
            names += above.cut(operand, FRAMES[0]).names
        except Refusal:
            names.append(operand)
    return names


def _over_time(pattern: Pattern, shape: Shape) -> bool:
    """Whether queries and keys are the frames of one sequence."""
    sizes = [shape(pattern.logits, n) for n in FRAMES]
    return all(s is not None and s[-2:] == (n, n) for s, n in zip(sizes, FRAMES, strict=True))


def _cut(above: Above, pattern: Pattern, sink: str | None) -> Cut:
    scores, weighted = pattern.scores.node, pattern.weighted.node
    logits = above.shape(pattern.logits, FRAMES[0])
    assert logits is not None
    batch = logits[:-2]
    found = []
    for operand, layout, what in zip(
        (*scores.inputs, weighted.inputs[1]), _layouts(pattern, batch), ("queries", "keys", "values"), strict=True
    ):
        function = Function(above, operand, above.cut(operand, FRAMES[0]))
        key = (what, batch, _likewise(pattern), function.key())
        turned = above.known.get(key) or look(function, layout, what)
        above.known[key] = turned
        found.append(replace(turned, names=function.place.names))
    q, k, v = found
    if v.rotary is not None or abs(v.gain - 1) > 1e-6:
        raise Refusal("turns or scales its values", "turn queries and keys alone")
    if not _same(q.rotary, k.rotary):
        raise Refusal("turns its keys otherwise than its queries", "turn both by the same positions")
    if q.rotary is not None and k.rotary is not None and q.rotary.factor != k.rotary.factor:
        raise Refusal("scales what it turns in keys otherwise than in queries", "turn both by the same tables")
    cut = Cut(q, k, v, batch, above.shape)
    return cut if sink is None else replace(cut, sinks=cut.in_order(_sinks(above, sink, batch)))


def _likewise(pattern: Pattern) -> tuple[object, ...]:
    """How the products lay their operands out."""
    labels = [p.labels for p in (pattern.scores, pattern.weighted)]
    return tuple((x.left, x.right, x.out) if x else None for x in labels)


def _sinks(above: Above, name: str, batch: tuple[int, ...]) -> np.ndarray:
    """(heads) float32: the logits beside the scores."""
    found = np.broadcast_to(above.value(name, FRAMES[1]), (*batch, FRAMES[1], 1)).reshape(-1, FRAMES[1])
    if (found != found[:, :1]).any():
        raise Refusal("has sinks that change with the position", "use one logit for each head")
    return np.ascontiguousarray(found[:, 0], np.float32)


def _same(one: Rotary | None, other: Rotary | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.interleaved, one.start, one.sections) == (other.interleaved, other.start, other.sections) and (
        np.array_equal(one.frequencies, other.frequencies)
    )


def _layouts(pattern: Pattern, batch: tuple[int, ...]) -> tuple[Layout, Layout, Layout]:
    """What brings each operand to (heads, frames, features)."""
    first, second = pattern.scores.labels, pattern.weighted.labels
    if first is None:
        q, k = _plain(batch, False), _plain(batch, True)
    else:
        lead, i, j = first.out[:-2], first.out[-2], first.out[-1]
        inner = [c for c in first.left if c in first.right and c not in first.out]
        if len(inner) != 1:
            raise Refusal("multiplies queries and keys over several axes", "use softmax(scale·Q·Kᵀ + mask)·V")
        q, k = _labelled(first.left, lead, i, inner[0], batch), _labelled(first.right, lead, j, inner[0], batch)
    if second is None:
        return q, k, _plain(batch, False)
    features = [c for c in second.right if c not in second.left]
    if len(features) != 1:
        raise Refusal("multiplies weights and values over several axes", "use softmax(scale·Q·Kᵀ + mask)·V")
    return q, k, _labelled(second.right, second.left[:-2], second.left[-1], features[0], batch)


def _plain(batch: tuple[int, ...], turned: bool) -> Callable[[np.ndarray], np.ndarray]:
    def layout(x: np.ndarray) -> np.ndarray:
        x = np.swapaxes(x, -1, -2) if turned else x
        return np.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])

    return layout


def _labelled(
    labels: str, lead: str, time: str, inner: str, batch: tuple[int, ...]
) -> Callable[[np.ndarray], np.ndarray]:
    if set(labels) - {*lead, time, inner}:
        raise Refusal("sums over an axis that is neither time nor features", "use softmax(scale·Q·Kᵀ + mask)·V")

    def layout(x: np.ndarray) -> np.ndarray:
        x = x.transpose([labels.index(c) for c in (*lead, time, inner) if c in labels])
        for at, c in enumerate(lead):
            x = x if c in labels else np.expand_dims(x, at)
        return np.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(-1, *x.shape[-2:])

    return layout
