"""What a bundle says of its caches of keys and values, and for how long they keep everything."""

from __future__ import annotations

import re
from typing import Any

from runnel.compiler.streaming.ir import StreamGraph
from runnel.compiler.streaming.kinds.cache import CachedAttend, Rotary, keeps_all
from runnel.errors import Reason, Refused


def attentions(graph: StreamGraph) -> list[CachedAttend]:
    """The attentions that have a cache, by layer."""
    return [n for n in graph.nodes if isinstance(n, CachedAttend)]


def kept_at_least(kv: str) -> int:
    """How many tokens a stream may have before a policy drops or merges one: the least budget that it names."""
    named = {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", kv)}
    budgets = [named[k] for k in ("window", "budget", "snap", "merge") if named.get(k)]
    return min(budgets, default=1)


def kv_record(graph: StreamGraph) -> dict[str, Any] | None:
    """The manifest's ``kv``: the policy, and what the model asks of each layer's cache; None where there is none."""
    if graph.kv is None:
        return None
    return {"policy": graph.kv, "layers": [_layer(n) for n in attentions(graph)]}


def _layer(node: CachedAttend) -> dict[str, Any]:
    return {
        "layer": node.layer, "node": node.name, "heads": node.heads, "kv_heads": node.kv_heads,
        "key_dim": node.key_dim, "value_dim": node.value_dim, "window": node.window, "rotary": _rotary(node.rotary),
        "bias": "slopes" if node.slopes is not None else "distances" if node.bias is not None else None,
        "sinks": node.sinks is not None,
    }  # fmt: skip


def _rotary(rotary: Rotary | None) -> dict[str, Any] | None:
    if rotary is None:
        return None
    return {"dims": rotary.dims, "pairs": "neighbours" if rotary.interleaved else "halves", "from": rotary.source}


def check_kernels(graph: StreamGraph, refusal: str | None) -> None:
    """Raise Refused where a policy needs kernels and there are none."""
    if not keeps_all(graph.kv):
        raise Refused(
            [
                Reason(
                    graph.name, "native", f"a cache that drops tokens needs kernels, and there are none ({refusal})",
                    "compile with --kv full and --max-frames N to run it on onnxruntime",
                )
            ]
        )  # fmt: skip
