"""Float islands: what is computed in float32 between codes and may differ in its last bits between backends."""

from __future__ import annotations

from runnel.compiler.streaming.ir import Pointwise, Shift, Source, Stream, StreamGraph, StreamNode, Unfold, Window

EXACT = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "DequantizeLinear", "Div", "Dropout", "Equal", "Expand", "Flatten",
    "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "LeakyRelu", "Less", "LessOrEqual", "Max", "MaxPool",
    "Min", "Mul", "Neg", "Not", "PRelu", "Pad", "QuantizeLinear", "Relu", "Reshape", "Round", "Sign", "Slice", "Split",
    "Sqrt", "Squeeze", "Sub", "ThresholdedRelu", "Transpose", "Unsqueeze", "Where", "ConvInteger", "MatMulInteger",
})  # fmt: skip
AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
WHOLE = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Sub", "Shift", "Unfold"})


def float_islands(graph: StreamGraph) -> list[str]:
    """The names of the nodes, in order, whose float32 results are rounded to codes further on."""
    before: set[StreamNode] = set()
    for node in graph.nodes:
        if node.op == "QuantizeLinear":
            pending = [s.node for s in node.streams]
            while pending:
                current = pending.pop()
                if current is not None and current not in before:
                    before.add(current)
                    pending += [s.node for s in current.streams]
    return [n.name for n in graph.nodes if n in before and not _exact(n)]


def _exact(node: StreamNode) -> bool:
    """Whether every backend gives the same bits, element by element."""
    if node.output.dtype not in ("float32", "float64") or isinstance(node, Source | Shift | Unfold):
        return True
    if not isinstance(node, Pointwise | Window):
        return False
    return node.op in EXACT or (node.op in AVERAGES and _whole(node.streams[0]))


def _whole(x: Stream) -> bool:
    """Whether the elements are whole numbers: codes less their zero point."""
    node = x.node
    while node is not None and node.op in WHOLE and len(node.streams) == 1:
        node = node.streams[0].node
    return node is not None and node.op == "Cast" and node.streams[0].dtype in ("int8", "uint8")
