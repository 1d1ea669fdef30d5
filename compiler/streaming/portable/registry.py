"""Which function writes which kind of stream node in the portable form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runnel.compiler.registry import registering
from runnel.compiler.streaming.emit import Builder, Chunk
from runnel.compiler.streaming.ir import Stream, StreamNode

Chunks = dict[Stream, Chunk]
Writer = Callable[[Builder, Any, Chunks], Chunk]
WRITERS: dict[type[StreamNode], Writer] = {}


def writes(*kinds: type[StreamNode]) -> Callable[[Writer], Writer]:
    """Register the function that writes these kinds of nodes and returns what a call carries of their output."""
    return registering(WRITERS, kinds, "writers for")


def read(node: StreamNode, chunks: Chunks) -> tuple[Stream, Chunk]:
    """The node's first stream and what a call carries of it."""
    x = node.streams[0]
    return x, chunks[x]
