"""GRU, LSTM and RNN: along time, or along another axis with time as the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.streaming.ir import Recurrent, Stream
from runnel.compiler.streaming.kinds.once import last_frames
from runnel.compiler.streaming.registry import Refusal, rule

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


@rule("GRU", "LSTM", "RNN")
def recurrent(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    layout = int(node.attrs.get("layout", 0))
    time, batch = (1, 0) if layout else (0, 1)
    weights = [a.constant(node, i, "weight") for i in (1, 2, 3)]
    lengths = node.inputs[4] if len(node.inputs) > 4 else ""
    if lengths:
        raise Refusal("takes the lengths of its sequences as an input", "export the model without sequence_lens")
    initial = [a.constant(node, i, "initial state") for i in (5, 6)]
    if len(node.inputs) > 7 and node.inputs[7]:
        raise Refusal("has peephole weights", "use an LSTM without peepholes")
    if x.axis == batch:
        if any(v is not None for v in initial):
            raise Refusal("has an initial state for every frame", "export it without an initial state")
        if any(node.outputs[1:]):
            raise Refusal("gives its last state for every frame", "use the sequence output")
        return [a.pointwise(node, [x, *weights], 2 if not layout else 0)]
    if x.axis != time:
        raise Refusal("has time on its feature axis", "move time to the sequence axis")
    direction = node.attrs.get("direction", "forward")
    if direction != "forward":
        raise Refusal(
            f"is {direction}: a recurrence that runs backwards needs the whole future",
            "train or export the model with forward recurrence only",
        )
    if not node.outputs[0]:
        raise Refusal("gives only its last state, which is known at the end", "use the sequence output")
    y = a.emit(
        node,
        Recurrent,
        [x, *weights, *initial],
        1 if layout else 0,
        x.fact.final,
        x.fact.length,
        attrs=dict(node.attrs),
    )
    results: list[Value] = [y]
    for i, name in enumerate(node.outputs[1:], 1):
        results.append(_last(a, node, y, i) if name else y)
    return results


def _last(a: Analysis, node: Node, y: Stream, output: int) -> Stream:
    if node.op == "LSTM" and output == 2:
        raise Refusal("gives its last cell state", "use the sequence output")
    if node.attrs.get("layout"):
        raise Refusal("gives its last state in batch-first layout", "use the sequence output")
    return last_frames(a, node, y, 1, shape=y.frame_shape, suffix="/last")
