"""The named mode ``experts``: experts of a mixture rounded to as many bits as they are worth.

A mean number of bits a weight is given. All experts begin with the fewest bits for both of their matrices, and the
next bits go where they take away most of the layers' squared error for a bit, as long as the mean allows. Experts that
gain nothing keep the fewest. An error counts relative to the sum that a layer's output goes into, as the next layers
see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runnel.compiler.graph.blocks import Blocks
from runnel.compiler.graph.experts import Stacked, activated, stacked
from runnel.compiler.graph.rounded import USUAL_BLOCK, codes_of
from runnel.compiler.streaming.ir import Pointwise, Stream, StreamGraph
from runnel.errors import InputError

MODE = "experts"
SHAPES = ("Reshape", "Squeeze", "Unsqueeze", "Identity")
WIDTHS = (4, 8, 16)
FEWEST = 2
"""Bits that an expert may have besides, where the mean is below the least of ``WIDTHS``."""


def parse(value: str) -> tuple[float, int]:
    """(mean bits, block) of "4.5", "4.5:64"."""
    mean, _, block = value.partition(":")
    return float(mean), int(block or USUAL_BLOCK)


def widths_for(mean: float) -> tuple[int, ...]:
    """The widths that experts may have, fewest bits first."""
    return WIDTHS if mean >= WIDTHS[0] else (FEWEST, *WIDTHS)


def mixtures(graph: StreamGraph) -> list[Pointwise]:
    """Those whose experts are float32, not codes already, and do not depend on time."""
    found = [n for n in graph.nodes if isinstance(n, Pointwise) and n.op == "MoE" and len(n.streams) == 2]
    return [n for n in found if all(isinstance(w, np.ndarray) and not isinstance(w, Stacked) for w in _matrices(n))]


def _matrices(node: Pointwise) -> tuple[object, object]:
    return node.inputs[2], node.inputs[4]


@dataclass(frozen=True)
class Worth:
    """What rounding costs the experts of a mixture on a recording.

    chosen: (frames, k), by each frame. errors: (experts, widths), squared, weighed by the squares of their shares,
    relative to the squares of what the layer's output makes with what it is added to. weights: of one expert.
    """

    node: Pointwise
    chosen: np.ndarray
    errors: np.ndarray
    weights: int


def added(graph: StreamGraph, node: Pointwise) -> Stream:
    """The sum that a mixture's output is a part of; where it is in none the output itself."""
    stream = node.output
    for after in graph.nodes:
        if isinstance(after, Pointwise) and stream in after.streams:
            if after.op in SHAPES:
                stream = after.output
            elif after.op == "Add" and len(after.streams) == 2:
                return after.output
    return node.output


def worth(
    node: Pointwise, x: np.ndarray, scores: np.ndarray, total: np.ndarray, widths: Sequence[int], block: int
) -> Worth:
    """Of rows of x (frames, inputs) by their scores (frames, experts). total: ``added``, (frames, elements). Raises
    InputError for weights beyond float16."""
    chosen, shares = _routes(node, scores)
    first, first_bias, second, second_bias = (_array(node, i) for i in range(2, 6))
    assert first is not None and second is not None
    errors = np.zeros((len(first), len(widths)))

    def made(rows: np.ndarray, e: int, weights: Sequence[np.ndarray]) -> np.ndarray:
        held = rows @ weights[0].T + (0 if first_bias is None else first_bias[e])
        after = activated(held, node.attrs) @ weights[1].T
        return np.asarray(after + (0 if second_bias is None else second_bias[e]))

    for e in range(len(first)):
        frames, places = np.nonzero(chosen == e)
        share = shares[frames, places, None]
        exact = made(x[frames], e, (first[e], second[e]))
        for at, bits in enumerate(widths):
            rounded = made(x[frames], e, [_codes(node, w[e], bits, block).real().T for w in (first, second)])
            errors[e, at] = np.square((share * (rounded - exact)).astype(np.float64)).sum()
    scale = np.square(total.astype(np.float64)).sum() or 1.0
    return Worth(node, chosen, errors / scale, first[0].size + second[0].size)


def _codes(node: Pointwise, weights: np.ndarray, bits: int, block: int) -> Blocks:
    """Of an expert's matrix (outputs, inputs)."""
    found = codes_of(np.ascontiguousarray(weights.T, np.float32), bits, block)
    if found is None:
        raise InputError(f"experts of '{node.name}' have weights beyond float16; compile without --expert-bits.")
    return found


def _routes(node: Pointwise, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The experts of each frame and their shares, (frames, k)."""
    k = int(node.attrs.get("k", 1))
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    chosen = np.argsort(-scores, 1, kind="stable")[:, :k]
    shares = np.take_along_axis(shares, chosen, 1)
    if node.attrs.get("normalize_routing_weights", 0):
        shares = shares / shares.sum(1, keepdims=True)
    return chosen, shares


def _array(node: Pointwise, i: int) -> np.ndarray | None:
    value = node.inputs[i] if i < len(node.inputs) else None
    return value if isinstance(value, np.ndarray) else None


def chosen_bits(found: Sequence[Worth], mean: float, widths: Sequence[int]) -> list[list[int]]:
    """The bits of each expert of each mixture: ``mean`` a weight at most, over all of them."""
    left = (mean - widths[0]) * sum(w.weights * len(w.errors) for w in found)
    steps: list[tuple[float, int, int, int, int, int]] = []
    for layer, each in enumerate(found):
        for e, errors in enumerate(each.errors):
            steps += [(-gain, layer, e, low, high, each.weights) for gain, low, high in _hull(errors, widths)]
    bits = [[widths[0]] * len(each.errors) for each in found]
    for _, layer, e, low, high, weights in sorted(steps):
        cost = (high - low) * weights
        if bits[layer][e] == low and cost <= left * (1 + 1e-12):
            bits[layer][e] = high
            left -= cost
    return bits


def _hull(errors: np.ndarray, widths: Sequence[int]) -> list[tuple[float, int, int]]:
    """Steps to more bits, each with less gain a bit than the one before: (gain, from, to)."""
    found: list[tuple[float, int, int]] = []
    at = 0
    while at + 1 < len(widths):
        gains = [(errors[at] - errors[to]) / (widths[to] - widths[at]) for to in range(at + 1, len(widths))]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        found.append((float(gains[best]), widths[at], widths[at + 1 + best]))
        at += 1 + best
    return found


def round_experts(graph: StreamGraph, value: str, found: Sequence[Worth]) -> list[list[int]]:
    """Round the experts of the mixtures, in place, note what each of them has, and return it."""
    mean, block = parse(value)
    every = chosen_bits(found, mean, widths_for(mean))
    for each, bits in zip(found, every, strict=True):
        size = 0
        for i in (2, 4):
            weights = _array(each.node, i)
            assert weights is not None
            made = [_codes(each.node, w, b, block) for w, b in zip(weights, bits, strict=True)]
            size += sum(c.codes.size * c.bits // 8 + (2 * c.scales.size if c.bits < 16 else 0) for c in made)
            each.node.inputs[i] = stacked(made)
        counts = {str(width): bits.count(width) for width in sorted(set(bits))}
        words = ", ".join(f"{count} of {width} bits" for width, count in counts.items())
        words = f"{words} (mean {np.mean(bits):.2f}), {size / 1e6:.2f} MB"
        noted = {"node": each.node.name, "experts": counts, "widths": bits, "bytes": size}
        graph.experts.append(noted | {"summary": words})
    names = [f"{w.node.op} '{w.node.name}'" for w in found]
    graph.modes = graph.modes | {MODE: value}
    graph.mode_nodes = graph.mode_nodes | {MODE: names}
    for _ in names:
        if ("MoE", "exact") in graph.decided:
            graph.decided[graph.decided.index(("MoE", "exact"))] = ("MoE", f"{MODE}={value}")
    return every
