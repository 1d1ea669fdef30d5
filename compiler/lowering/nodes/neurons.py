"""A feed-forward layer of which each frame looks at a few neurons, as steps: the gates, the list of those that are
active, where their weights are, what each gives, and their sum."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from runnel.compiler.graph.blocks import Blocks
from runnel.compiler.lowering.frame import LANES, FrameNode, FrameValue, round_up
from runnel.compiler.lowering.neurons import FeedForward
from runnel.compiler.lowering.registry import lowers
from runnel.compiler.lowering.rows import Matrix, fits, halved, units
from runnel.compiler.lowering.signals import Read, Table, View
from runnel.compiler.lowering.weights import HALF, coded

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

PARTS = 4
"""In which a list of neurons is gone through, so that memory need not have room for all of a layer's at once."""
LEAST_PART = 256
UNKNOWN = (0,) * 9
"""What a window misses, where nobody looked."""


@lowers(FeedForward)
def feed_forward(low: Lowering, node: FeedForward) -> View:
    neurons = len(node.down)
    x = low.view(node.streams[0])
    x = x.reshaped((int(np.prod(x.shape, dtype=np.int64)),))
    if node.predicted:
        score = low.view(node.streams[1]).reshaped((neurons,))
        products = [m for m in (node.gate, node.up) if m is not None]
    else:
        first, bias = (node.up, node.up_bias) if node.gate is None else (node.gate, node.gate_bias)
        made = replace(node.output, name=f"{node.output.name}/gates")
        gates, codes = replace(node, output=made), getattr(first, "taps", ())
        if codes and codes[0].block % LANES == 0:
            score = low.block_product(gates, x, [codes[0].merged()], bias, (neurons,))
        else:
            score = low.linear(gates, x, first, bias, (neurons,))
        products = [] if node.gate is None else [node.up]
    down = _matrix(low, node.down)
    table, rows = units([_matrix(low, m) for m in products], down)
    unit = int(table.shape[1])
    form = {"squared": node.squared, "gated": node.gate is not None}
    found = _step(low, node, "active", "active", [score], (1 + neurons,), "int32", {})
    outer, low.loop = low.loop, low.loop or low.new_loop()
    attrs = {"form": form, "rows": tuple(rows[:-1]), "unit": unit}
    gate_bias, up_bias = (node.gate_bias, node.up_bias) if node.gate is not None else (node.up_bias, None)
    biases = [gate_bias if node.predicted else None, up_bias]
    most = min(neurons, max(LEAST_PART, round_up(-(-neurons // PARTS), LANES)))
    units_ = Table(node.name, neurons, most, table, low.graph.misses.get(node.name, UNKNOWN))
    reals = _reals(down)
    total: View | np.ndarray | None = node.down_bias
    for begin in range(0, neurons, most):
        part, name = found, f"/{begin}"
        if most < neurons:
            part = _step(low, node, "active_part", f"active{name}", [found], (1 + most,), "int32", {"first": begin})
        slots = low.choose(node, units_, part)
        given = [x if products else None, None if node.predicted else score, part, slots if products else None]
        values = _step(low, node, "neuron_values", f"values{name}", [*given, *biases], (most,), "float32", attrs)
        total = _step(
            low, node, "neuron_sum", name[1:] if begin + most < neurons else "", [values, part, slots, total, *reals],
            (node.down.shape[1],), "float32", {"row": rows[-1], "unit": unit},
        )  # fmt: skip
    assert isinstance(total, View)
    low.loop = outer
    return total.reshaped(node.output.frame_shape)


def _matrix(low: Lowering, weight: np.ndarray) -> Matrix:
    """The codes of a constant matrix, where it has some."""
    found = getattr(weight, "taps", ()) or coded(low.graph.modes, [np.ascontiguousarray(weight, np.float32)])
    return found[0] if found and fits(found[0]) else np.ascontiguousarray(weight, np.float32)


def _reals(matrix: Matrix) -> list[np.ndarray | None]:
    """Scales and zeros of codes, as float16 where that loses nothing; None for none."""
    if not isinstance(matrix, Blocks) or matrix.bits == HALF:
        return [None, None]
    kind = np.float16 if halved(matrix) else np.float32
    return [None if v is None else v.astype(kind) for v in (matrix.scales, matrix.zeros)]


def _step(
    low: Lowering, node: FeedForward, op: str, name: str, operands: list[View | np.ndarray | None],
    shape: tuple[int, ...], dtype: str, attrs: dict[str, object],
) -> View:  # fmt: skip
    """A step whose operands keep their places."""
    reads: list[Read] = []
    inputs: list[FrameValue | np.ndarray | None] = []
    for x in operands:
        if isinstance(x, View):
            reads.append(low.read(x))
            inputs.append(reads[-1].value)
        else:
            inputs.append(x)
    full = f"{node.output.name}/{name}" if name else node.output.name
    fact = node.output.fact
    signal = low.signal(full, shape, dtype, fact.made, fact.length)
    return low.add(FrameNode(op, tuple(inputs), FrameValue(full, shape, dtype), attrs), reads, signal)
