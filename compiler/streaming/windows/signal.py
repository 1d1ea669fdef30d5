"""Signal padding (StreamiNNC, arXiv 2408.03223): where a layer pads time, it reads the signal's own neighbours.

Every layer is then one stream that all windows share. The result is that of the same network without padding over time
on the window and its context: the frames before and behind it that padding reaches. Zeros stand for frames before the
stream's first one and behind its last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor

from runnel.compiler.graph.model import Graph, Node, Port
from runnel.compiler.streaming.ir import Reach, Shift, Stream, StreamNode
from runnel.compiler.streaming.registry import Refusal
from runnel.compiler.streaming.windows.columns import Columns
from runnel.compiler.streaming.windows.padding import PADDED, pad_amounts
from runnel.compiler.streaming.windows.walk import Value, Walk

REMEDY = "export the model without this padding, with a longer window, or use mode=exact"


class Signal(Walk):
    """The walk with signal padding.

    context: frames before and behind the window that padding reaches; None to find them out (context_of).
    ``changed``: the nodes that padded.
    """

    neighbours = True

    def __init__(
        self, graph: Graph, window: tuple[int, int], shapes: Mapping[str, tuple[tuple[int, ...], str]],
        context: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(graph, window, shapes)
        self.context = context or (0, 0)
        self.bounded = context is not None
        self.changed: list[str] = []

    def source(self, port: Port, axis: int) -> None:
        super().source(port, axis)
        x, (before, behind) = self.values[port.name], self.context
        assert isinstance(x, Columns)
        if not before and not behind:
            return
        fact = x.stream.fact
        stream = self.add(
            Shift, f"{port.name}/padded", "Shift", [x.stream], x.stream.shape, x.stream.dtype,
            fact.final.affine(1, before), fact.length.affine(1, before + behind), offset=-before, left=before,
            right=behind,
        )  # fmt: skip
        self.values[port.name] = Columns(stream, x.frames, before, x.hop, x.spacing)

    @staticmethod
    def worth_sharing(new: int, edges: int, columns: int) -> bool:
        """Always: a window alone does not hold the neighbours."""
        return True

    def pads(self, node: Node, x: Columns) -> None:
        """Note that the node pads x; Refusal where x does not go on beyond its window."""
        if x.left is not None or x.right is not None:
            raise Refusal("pads time, and what it pads does not go on beyond the window", REMEDY)
        self.changed.append(node.name)

    def whole(self, node: Node) -> list[Value]:
        value = self.values[node.inputs[0]] if node.inputs and node.inputs[0] else None
        if isinstance(value, (Columns, Stream)) and self._pads_time(node, value):
            raise Refusal("pads what is computed for each window as a whole, and so has no neighbours", REMEDY)
        return super().whole(node)

    def _pads_time(self, node: Node, x: Columns | Stream) -> bool:
        """Whether the node pads time, or an axis that may hold some of it."""
        shape, axis = (x.stream.shape, x.axis) if isinstance(x, Columns) else (x.shape, None)
        if node.op == "Pad":
            given = [self.values[i] if i else None for i in node.inputs]
            if any(isinstance(v, (Columns, Stream)) for v in given[1:]):
                return True
            amounts, _ = pad_amounts(node, given, len(shape))
        elif node.op in PADDED:
            spatial = [int(p) for p in self.explicit(node).get("pads", [])]
            half = len(spatial) // 2
            amounts = [0, 0, *spatial[:half], 0, 0, *spatial[half:]]
        else:
            return False
        return any(p > 0 and axis in (None, a % len(shape)) for a, p in enumerate(amounts))


def context_of(nodes: list[StreamNode], outputs: Mapping[str, Stream | None], frames: int) -> tuple[int, int]:
    """How many input frames before and behind a window of ``frames`` the outputs read."""
    found: dict[Stream, Reach] = {}
    for node in nodes:
        found[node.output] = node.reach(Reach.around([found[s] for s in node.streams]))
    parts = [found[s] for s in outputs.values() if s is not None]
    first, last = min((p.first for p in parts), default=0), max((p.last for p in parts), default=0)
    return max(0, -floor(first)), max(0, ceil(last) - frames + 1)
