"""The rule registry: one rule an op, no default rule. A rule turns a node into stream nodes or refuses with a
reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runnel.compiler.registry import registering

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

Rule = Callable[["Analysis", "Node"], "list[Value]"]
RULES: dict[str, Rule] = {}
Maker = Callable[["Analysis", "Node"], "list[Value] | None"]
FROM_LENGTH: dict[str, Maker] = {}
"""Op → what makes its outputs from constants and lengths; None where it is plain arithmetic on lengths."""


class Refusal(Exception):
    """Why a node cannot stream exactly, what to do about it, and the named modes that would run it.

    node: the one that is the cause, where it is not the one at which this came to light.
    """

    def __init__(self, reason: str, remedy: str, modes: Sequence[str] = (), node: Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.remedy, self.modes, self.node = reason, remedy, tuple(modes), node


class MixesTime(Refusal):
    """The node mixes frames in a way that only a fixed window defines."""


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register the function as the rule of these ops of the standard domain."""
    return registering(RULES, ops, "rules for")


def from_length(*ops: str) -> Callable[[Maker], Maker]:
    """Register how ops with no stream among their inputs make data that is as long as the stream."""

    def register(function: Maker) -> Maker:
        FROM_LENGTH.update(dict.fromkeys(ops, function))
        return function

    return register


WITHOUT_RULE = {
    "ReverseSequence": ("reverses time, as a bidirectional recurrence does, and so needs the whole future", "train "
    "or export the model with forward recurrence only"),
    "DynamicQuantizeLinear": ("takes its scale from the least and the largest value of the whole recording",
    "quantise the model with static scales from a calibration recording, or use window mode (--window W)"),
    "DynamicQuantizeMatMul": ("takes its scale from the least and the largest value of the whole recording",
    "quantise the model with static scales from a calibration recording, or use window mode (--window W)"),
    "DynamicQuantizeLSTM": ("takes its scales from the least and the largest value of all it has seen",
    "quantise the weights alone, or export a float LSTM"),
    "If": ("takes a branch that depends on the data or on the length", "export the model with one branch"),
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention"), ("keeps a past of its own, masks by data, or gives "
    "more than its result", "export the model without a cache and without padding: the stream keeps the past")),
    "RotaryEmbedding": ("turns by a scale of its own, or the positions of a packed batch", "export one recording with "
    "positions from a Range"),
    "TopK": ("orders values over time", "use window mode (--window W)"),
}  # fmt: skip


DOMAINS = ("", "ai.onnx", "runnel")
"""Domains whose ops have rules by their name: the standard's, and our own nodes."""

CONTRIBUTED = frozenset(("com.microsoft", op) for op in ("MatMulNBits", "MoE", "QMoE"))
"""Ops of other domains that have rules."""


def has_rule(node: Node) -> bool:
    """Whether a rule is registered for the node."""
    return node.op in RULES and (node.domain in DOMAINS or (node.domain, node.op) in CONTRIBUTED)


def missing_rule(op: str) -> Refusal:
    """The refusal of an op that has no rule."""
    reason, remedy = WITHOUT_RULE.get(
        op, ("has no streaming rule, and no rule means no guess", "express it with supported ops (docs/coverage.md)")
    )
    return Refusal(reason, remedy)
