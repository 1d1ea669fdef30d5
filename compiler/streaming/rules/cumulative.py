"""Cumulative sums, along time or inside a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runnel.compiler.streaming.kinds.once import Accumulate
from runnel.compiler.streaming.registry import Refusal, rule
from runnel.compiler.streaming.rules.positions import counted

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value


@rule("CumSum")
def cumulative_sum(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    given = a.constant(node, 1, "axis")
    assert given is not None
    if int(given.reshape(-1)[0]) % len(x.shape) != x.axis:
        return [a.pointwise(node, [x, given], x.axis)]
    exclusive = bool(node.attrs.get("exclusive", 0))
    if not node.attrs.get("reverse") and (made := counted(a, node, x, exclusive)) is not None:
        return made
    if node.attrs.get("reverse"):
        raise Refusal(
            "accumulates from the end of time, so every value needs the whole future",
            "accumulate from the start (reverse=0)",
        )
    return [a.emit(node, Accumulate, [x], x.axis, x.fact.final, x.fact.length, how="sequential", exclusive=exclusive)]
