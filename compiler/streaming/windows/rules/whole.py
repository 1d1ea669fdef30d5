"""Ops that mix a window's columns in a way that no two windows share."""

from __future__ import annotations

from runnel.compiler.graph.model import Node
from runnel.compiler.streaming.windows.walk import Value, Walk, window_rule


@window_rule("Attention")
def whole(walk: Walk, node: Node) -> list[Value] | None:
    return None
