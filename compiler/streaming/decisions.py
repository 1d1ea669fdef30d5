"""What was decided about each node of a model: exact, in a named mode, refused, or behind a refused one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.count import Count, CountTooLong, Ended
from runnel.compiler.streaming.registry import Refusal
from runnel.errors import Reason


def counted(ops: Mapping[str, int]) -> str:
    """Ops and how many nodes each has: "Conv 3, Relu 2"."""
    return ", ".join(f"{op} {n}" for op, n in sorted(ops.items()))


def by_decision(decided: Sequence[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """{what was decided: {op: nodes}} of (op, what was decided) for each node."""
    table: dict[str, dict[str, int]] = {}
    for op, what in decided:
        ops = table.setdefault(what, {})
        ops[op] = ops.get(op, 0) + 1
    return table


def why(node: Node, error: Refusal | CountTooLong) -> Reason:
    """The reason for the user that a node is refused."""
    if isinstance(error, Refusal):
        cause = error.node or node
        return Reason(cause.name, cause.op, error.reason, error.remedy, error.modes)
    return Reason(node.name, node.op, str(error), "use rates with a small common multiple")


def check_length(final: Count, length: Count) -> None:
    """Refuse what does not go on as long as the input does, or loses frames when the input gets longer."""
    if isinstance(final, Ended) or (final.is_const and final == 1):  # known at the end alone, or from the start
        return
    if length.gain <= 0:
        raise Refusal(
            f"keeps {length.largest()} frames however long the input is",
            "cut the recording before it is streamed, or use window mode (--window W)",
        )
    if final.rate != length.rate:
        raise Refusal(
            f"has {length} frames for T input frames, but only {final.rate} a frame while they come in: the rest "
            "depends on the length",
            "make the number of frames a fixed amount more or less than the input's",
        )
    if not length.is_monotone:
        raise Refusal(
            f"has {length} frames for T input frames, fewer for some longer inputs",
            "make the number of frames never fall when the input gets longer",
        )
