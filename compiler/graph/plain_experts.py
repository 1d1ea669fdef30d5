"""Mixtures of experts in plain ops as MoE of com.microsoft: stacked weights that are gathered, all experts under a
mask, experts one by one, branches and loops over them.

Exporters write a mixture in more ways than could be told apart by their ops. So its place is found by what any of them
has, a TopK (or ArgMax) of scores that are a product by a constant, and constants of one shape for each expert; then the
part of the graph from the scores' input to where all paths meet again is run on random rows, and is a mixture if one by
definition gives the same rows, with every expert among those that were chosen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from runnel.compiler.graph.blocks import DOMAIN
from runnel.compiler.graph.fold import node_proto
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.graph.quantised import Rewriter

ROWS, MOST_EXITS, CLOSE = 8, 6, 2e-4
ACTIVATIONS = {"Relu": "relu", "Sigmoid": "silu", "Tanh": "gelu", "Gelu": "gelu", "Silu": "silu", "Swish": "silu"}
_PASSES = ("Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity", "Flatten")


@dataclass(frozen=True)
class Mixture:
    """One by definition. first: (experts, inner, size), or twice as many rows, gates and values interleaved, where
    ``kind`` is swiglu. second: (experts, size, inner). Biases or None."""

    k: int
    kind: str
    normalised: bool
    first: np.ndarray
    first_bias: np.ndarray | None
    second: np.ndarray
    second_bias: np.ndarray | None

    def of(self, x: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Rows of x."""
        shares = np.exp(scores - scores.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        chosen = np.argsort(-scores, 1, kind="stable")[:, : self.k]
        if self.normalised:
            shares = shares / np.take_along_axis(shares, chosen, 1).sum(1, keepdims=True)
        out = np.zeros((len(x), self.second.shape[1]))
        for e in range(len(self.first)):
            rows = np.flatnonzero((chosen == e).any(1))
            held = x[rows] @ self.first[e].T + (0 if self.first_bias is None else self.first_bias[e])
            made = _activated(held, self.kind) @ self.second[e].T
            out[rows] += shares[rows, e, None] * (made + (0 if self.second_bias is None else self.second_bias[e]))
        return out


def _activated(x: np.ndarray, kind: str) -> np.ndarray:
    if kind == "swiglu":
        return x[:, 0::2] / (1 + np.exp(-x[:, 0::2])) * x[:, 1::2]
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x


def plain_mixtures(graph: Graph) -> bool:
    """Write every mixture in plain ops as MoE, in place; whether there was one."""
    found = False
    for node in list(graph.nodes):
        if node.op in ("TopK", "ArgMax") and node in graph.nodes:
            found |= _Place(graph, node).rewrite()
    if found and DOMAIN not in {o.domain for o in graph.proto.opset_import}:
        graph.proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return found


class _Place:
    """Where a mixture may be: around a choice."""

    def __init__(self, graph: Graph, choice: Node) -> None:
        self.graph, self.choice = graph, choice
        self.producers = {o: n for n in graph.nodes for o in n.outputs if o}
        self.k = self._chosen()
        self.scores, self.router = self._router(choice.inputs[0])

    def _chosen(self) -> int:
        if self.choice.op == "ArgMax":
            return 1 if self.choice.attrs.get("axis", 0) in (-1, 1, 2) else 0
        k = self.graph.constants.get(self.choice.inputs[1]) if len(self.choice.inputs) > 1 else None
        plain = self.choice.attrs.get("axis", -1) in (-1, 1, 2) and self.choice.attrs.get("largest", 1)
        return int(k.reshape(-1)[0]) if k is not None and k.size == 1 and plain else 0

    def _router(self, name: str) -> tuple[str, Node | None]:
        """The scores, and the product by a constant that they are; None where they are made otherwise."""
        scores = ""
        while (node := self.producers.get(name)) is not None:
            constants = [self.graph.constants[i] for i in node.inputs if i in self.graph.constants]
            if node.op in ("MatMul", "Gemm") and len(node.inputs) > 1:
                weight = self.graph.constants.get(node.inputs[1])
                return scores or name, node if weight is not None and weight.ndim == 2 else None
            if node.op == "Softmax" and not scores:
                name = node.inputs[0]
            elif node.op in _PASSES or (node.op == "Add" and len(constants) == 1):
                if node.op == "Add":
                    scores = scores or name
                name = next(i for i in node.inputs if i and i not in self.graph.constants)
            else:
                break
        return "", None

    def rewrite(self) -> bool:
        """Put a MoE in the place; whether there is one."""
        if self.router is None or not self.k:
            return False
        weight = self.graph.constants[self.router.inputs[1]]
        self.size, self.experts = weight.shape[::-1] if self.router.attrs.get("transB") else weight.shape
        if not self.k <= self.experts or self.experts < 2:
            return False
        x = self.router.inputs[0]
        while (node := self.producers.get(x)) is not None and node.op in ("Reshape", "Flatten", "Identity"):
            x = node.inputs[0]  # rows of it
        for exit_ in self._exits(x):
            region = self._between(x, exit_)
            mixture = self._recognised(x, exit_, region) if region else None
            if mixture is not None:
                self._replace(x, exit_, mixture)
                return True
        return False

    # The part of the graph --------------------------------------------------------------------------------------------

    def _exits(self, x: str) -> list[str]:
        """Values through which all that depends on the choice and on x alone goes on, the nearest first."""
        last_read = {p.name: len(self.graph.nodes) for p in self.graph.outputs}
        for i, node in enumerate(self.graph.nodes):
            last_read |= {name: max(i, last_read.get(name, 0)) for name in _reads(node)}
        known, cone, found = {x, *self.graph.constants}, set(self.choice.outputs), list[str]()
        for i, node in enumerate(self.graph.nodes):
            inputs = set(_reads(node))
            if node is self.choice or not inputs or not inputs <= known | cone:
                continue
            (cone if cone & inputs else known).update(o for o in node.outputs if o)
            still = {name for name in cone if last_read.get(name, -1) > i}
            if cone & inputs and len(still) == 1 and still <= set(node.outputs):
                found += still
                if len(found) == MOST_EXITS:
                    break
        return found

    def _between(self, x: str, exit_: str) -> list[Node]:
        wanted, found = {exit_}, []
        for node in reversed(self.graph.nodes):
            if wanted & set(node.outputs):
                found.append(node)
                wanted |= set(_reads(node)) - {x}
        return found[::-1]

    # What it computes -------------------------------------------------------------------------------------------------

    def _recognised(self, x: str, exit_: str, region: list[Node]) -> Mixture | None:
        rng = np.random.default_rng(0)
        rows = rng.standard_normal((ROWS * self.experts, self.size)).astype(np.float32)
        made = self._run(x, exit_, region, rows)
        if made is None:
            return None
        scores, result = made
        chosen = np.argsort(-scores, 1, kind="stable")[:, : self.k]
        if result.shape != rows.shape or len(np.unique(chosen)) < self.experts:
            return None
        wide = rows.astype(np.float64)
        for mixture in self._candidates(region):
            expected = mixture.of(wide, scores)
            if np.abs(expected - result).max() <= CLOSE * np.abs(result).max():
                return mixture
        return None

    def _run(self, x: str, exit_: str, region: list[Node], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Scores and results of rows, in float32."""
        used = {i for n in region for i in _reads(n)}
        tensors = [
            numpy_helper.from_array(np.asarray(v, order="C"), n) for n, v in self.graph.constants.items() if n in used
        ]
        ports = [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)]
        outs = [helper.make_empty_tensor_value_info(n) for n in dict.fromkeys((self.scores, exit_))]
        proto = helper.make_graph([node_proto(n) for n in region], "mixture", ports, outs, tensors)
        model = helper.make_model(
            proto, opset_imports=self.graph.proto.opset_import, ir_version=max(8, min(self.graph.proto.ir_version, 10))
        )
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        for shape in ((1, *rows.shape), rows.shape):
            try:
                session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
                scores, result = session.run([self.scores, exit_], {x: rows.reshape(shape)})
            except Exception:  # of another rank, or not by itself
                continue
            if scores.size == len(rows) * self.experts and result.size == rows.size:
                self.rank, self.result_rank = len(shape), result.ndim
                return scores.reshape(len(rows), -1).astype(np.float64), result.reshape(rows.shape)
        return None

    def _candidates(self, region: list[Node]) -> Iterator[Mixture]:
        """What the constants and ops of the region may mean, likelier ones first."""
        ops = {n.op_type if isinstance(n, onnx.NodeProto) else n.op for n in _nodes(region)}
        kinds = [k for op, k in ACTIVATIONS.items() if op in ops] or ["identity"]
        for matrices, vectors in self._stacks(region):
            for inner in sorted({d for m in matrices for d in m.shape[1:]}):
                yield from self._with_inner(matrices, vectors, inner, kinds)

    def _with_inner(self, matrices: list[np.ndarray], vectors: list[np.ndarray], inner: int, kinds: list[str]
                    ) -> Iterator[Mixture]:  # fmt: skip
        size = self.size
        for order in permutations(matrices):
            if len(order) == 2:
                firsts, second = (
                    _turned(order[0], inner, size)
                    + [w for f in _turned(order[0], 2 * inner, size) for w in _interleaved(f, inner)],
                    order[1],
                )
            else:
                gates, values = (_turned(m, inner, size) for m in order[:2])
                firsts = [np.stack([g, v], 2).reshape(self.experts, -1, size) for g, v in product(gates, values)]
                second = order[2]
            for first, down, normalised in product(firsts, _turned(second, size, inner), (True, False)):
                gated = first.shape[1] == 2 * inner
                for kind in ["swiglu"] if gated and "silu" in kinds else [] if gated else kinds:
                    for b1, b2 in self._biases(vectors, first.shape[1], len(order) == 3):
                        yield Mixture(self.k, kind, normalised, first, b1, down, b2)

    def _biases(
        self, vectors: list[np.ndarray], wide: int, gated: bool
    ) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
        if not vectors:
            return [(None, None)]
        firsts: list[np.ndarray | None] = [v for v in vectors if v.shape[1] == wide]
        if gated:
            halves = [v for v in vectors if 2 * v.shape[1] == wide]
            firsts = [np.stack(pair, 2).reshape(self.experts, -1) for pair in permutations(halves, 2)]
        seconds: list[np.ndarray | None] = [v for v in vectors if v.shape[1] == self.size]
        both = [(a, b) for a, b in product(firsts or [None], seconds or [None]) if a is not b]
        return both + [(a, None) for a in firsts] + [(None, b) for b in seconds]

    def _stacks(self, region: list[Node]) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        """Matrices (experts, …, …) and vectors (experts, …): constants that are stacked, or one for each expert."""
        arrays = [v for v in _constants(self.graph, region, self.router) if v.dtype in (np.float32, np.float16)]
        arrays = [v.astype(np.float32) for v in arrays]
        n = self.experts
        matrices = [v for v in arrays if v.ndim == 3 and len(v) == n]
        vectors = [v.reshape(n, -1) for v in arrays if v.ndim in (2, 3) and len(v) == n and v.size // n in v.shape[1:]]
        vectors = [v for v in vectors if all(v.size != m.size for m in matrices)]
        if 2 <= len(matrices) <= 3:
            yield matrices, vectors
        single = [v for v in arrays if v.ndim == 2 and min(v.shape) > 1]
        for parts in (2, 3):
            if len(single) == parts * n and all(single[i].shape == single[i % parts].shape for i in range(len(single))):
                flat = [v.reshape(-1) for v in arrays if v.size == max(v.shape, default=0) > 1]
                many = len(flat) // n
                even = many * n == len(flat) and all(flat[i].shape == flat[i % many].shape for i in range(len(flat)))
                lists = [np.stack(flat[i::many]) for i in range(many)] if even and many else []
                yield [np.stack(single[i::parts]) for i in range(parts)], lists
            blocks = [single[i : i + n] for i in range(0, len(single), n)]
            if len(single) == parts * n and all(len({v.shape for v in b}) == 1 for b in blocks):
                yield [np.stack(b) for b in blocks], []

    # What it becomes --------------------------------------------------------------------------------------------------

    def _replace(self, x: str, exit_: str, mixture: Mixture) -> None:
        graph, name = self.graph, f"{exit_}/experts"
        rewriter = Rewriter(graph)
        swiglu = {"swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0}
        attrs: dict[str, Any] = {"k": mixture.k, "activation_type": mixture.kind}
        attrs |= {"normalize_routing_weights": int(mixture.normalised)} | (swiglu if mixture.kind == "swiglu" else {})
        parts = [mixture.first, mixture.first_bias, mixture.second, mixture.second_bias]
        names = ["" if p is None else rewriter.const(np.ascontiguousarray(p, np.float32)) for p in parts]
        while not names[-1]:
            names.pop()
        rows = rewriter.const(np.array([-1, self.experts], np.int64))
        shaped = self.rank == self.result_rank
        made = exit_ if shaped else f"{name}/rows"
        nodes = [
            Node("Reshape", f"{name}/scores", [self.scores, rows], [f"{name}/scores"]),
            Node("MoE", name, [x, f"{name}/scores", *names], [made], attrs, DOMAIN),
        ]
        if not shaped:
            shape = [-1, self.size] if self.result_rank == 2 else [1, -1, self.size]
            nodes.append(Node("Reshape", f"{name}/shape", [made, rewriter.const(np.array(shape, np.int64))], [exit_]))
        at = next(i for i, n in enumerate(graph.nodes) if exit_ in n.outputs)
        graph.nodes[at : at + 1] = nodes
        _drop_unused(graph)


def _turned(matrix: np.ndarray, outputs: int, inputs: int) -> list[np.ndarray]:
    """A stack as (experts, outputs, inputs), in the ways that its shape allows."""
    found = [matrix] if matrix.shape[1:] == (outputs, inputs) else []
    return found + ([matrix.transpose(0, 2, 1)] if matrix.shape[1:] == (inputs, outputs) else [])


def _interleaved(first: np.ndarray, inner: int) -> list[np.ndarray]:
    """Gates and values in one matrix as they may lie there, interleaved."""
    halves = first.reshape(len(first), 2, inner, -1).transpose(0, 2, 1, 3)
    pairs = first.reshape(len(first), inner, 2, -1)
    return [v.reshape(first.shape) for v in (halves, halves[:, :, ::-1], pairs, pairs[:, :, ::-1])]


def _reads(node: Node) -> list[str]:
    """What a node reads, and what its branches and loops do, in order."""
    found, made = list(node.inputs), set[str]()
    for value in node.attrs.values():
        if isinstance(value, onnx.GraphProto):
            made |= _own(value)
            found += [name for inner in _inside(value) for name in inner.input] + [o.name for o in value.output]
    return [name for name in found if name and name not in made]


def _own(graph: onnx.GraphProto) -> set[str]:
    """Names that a branch or loop gives values itself."""
    nodes = list(_inside(graph))
    ports = {p.name for p in graph.input} | {t.name for t in graph.initializer}
    inner = [a.g for n in nodes for a in n.attribute if a.HasField("g")]
    return ports | {o for n in nodes for o in n.output} | {p.name for g in inner for p in (*g.input, *g.initializer)}


def _nodes(region: list[Node]) -> Iterator[Node | onnx.NodeProto]:
    """All of a region, those inside branches and loops too."""
    for node in region:
        yield node
        for value in node.attrs.values():
            if isinstance(value, onnx.GraphProto):
                yield from _inside(value)


def _inside(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _inside(attribute.g)


def _constants(graph: Graph, region: list[Node], router: Node | None) -> list[np.ndarray]:
    """In order of use, without the router's."""
    found: dict[str, np.ndarray] = {}
    for node in region:
        for name in [] if node is router else _reads(node):
            if name in graph.constants:
                found.setdefault(name, graph.constants[name])
        for value in node.attrs.values():
            if isinstance(value, onnx.GraphProto):
                found |= {f"{node.name}/{k}": v for k, v in _held(value).items()}
    return list(found.values())


def _held(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """Constants inside of a branch or loop."""
    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                found[node.output[0]] = numpy_helper.to_array(attribute.t)
            if attribute.HasField("g"):
                found |= {f"{node.name}/{k}": v for k, v in _held(attribute.g).items()}
    return found


def _drop_unused(graph: Graph) -> None:
    """Nodes whose results nobody reads any more."""
    wanted, kept = {p.name for p in graph.outputs}, []
    for node in reversed(graph.nodes):
        if wanted & set(node.outputs):
            kept.append(node)
            wanted |= set(_reads(node))
    graph.nodes = kept[::-1]
    graph.constants = {k: v for k, v in graph.constants.items() if k in wanted}
