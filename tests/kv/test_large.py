"""Decoders with more layers and wider windows than a look at every score could bear."""

from __future__ import annotations

from decoders import Sizes

from models import primitive
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.attention import looking
from runnel.compiler.streaming.kinds.cache import CachedAttend


def test_masks_that_layers_share_are_looked_at_once(monkeypatch: object) -> None:
    looks = []
    original = looking.look
    from runnel.compiler.streaming.rules import cache

    def counted(*args: object) -> object:
        looks.append(args)
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(cache, "look", counted)  # type: ignore[attr-defined]
    graph = analyse(load(primitive(Sizes(layers=6, heads=16, kv_heads=2), window=2048).model), kv="window=4096")
    windows = [n.window for n in graph.nodes if isinstance(n, CachedAttend)]
    assert windows == [2048] * 6 and len(looks) == 1
