"""Which function makes steps of which kind of stream node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from runnel.compiler.lowering.signals import View
from runnel.compiler.registry import registering
from runnel.compiler.streaming.ir import StreamNode

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

Lowerer = Callable[["Lowering", Any], View]
LOWERERS: dict[type[StreamNode], Lowerer] = {}


def lowers(*kinds: type[StreamNode]) -> Callable[[Lowerer], Lowerer]:
    """Register the function that adds the steps of these kinds of nodes and returns the view of their output."""
    return registering(LOWERERS, kinds, "lowerings of")
