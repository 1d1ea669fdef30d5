"""What a bundle says of its caches of keys and values, and for how long they keep everything."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runnel.compiler.streaming.ir import StreamGraph
from runnel.compiler.streaming.kinds.cache import CachedAttend, Rotary, keeps_all, kept_at_least
from runnel.compiler.streaming.kinds.positions import Positions, Table
from runnel.errors import Reason, Refused
from runnel.tools.calibrate import distance, streamed
from runnel.tools.cases import noise
from runnel.tools.prove import Case

if TYPE_CHECKING:
    from runnel.tools.rewritten import Rewritten

FEWEST_BEYOND = 24
MOST_MACS = 2e9
"""Multiply-adds of a text beyond what caches hold: some seconds for all the ways to cut it."""


def attentions(graph: StreamGraph) -> list[CachedAttend]:
    """The attentions that have a cache, by layer."""
    return [n for n in graph.nodes if isinstance(n, CachedAttend)]


def kv_record(graph: StreamGraph) -> dict[str, Any] | None:
    """The manifest's ``kv``: the policy, what the model asks of each layer's cache, what else counts tokens from 0, and
    how far codes are from what they stand for; None where there are no caches."""
    if graph.kv is None:
        return None
    numbered = [n.name for n in graph.nodes if isinstance(n, (Positions, Table))]
    layers = [_layer(n) for n in attentions(graph)]
    return {"policy": graph.kv, "layers": layers, "numbered": numbered, "deviation": None}


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
                    graph.name, "native", f"a cache that drops or rounds needs kernels, and there are none ({refusal})",
                    "compile with --kv full and --max-frames N to run it on onnxruntime",
                )
            ]
        )  # fmt: skip


def rounded(path: Path, cases: list[Case], axes: dict[str, int]) -> tuple[list[Case], dict[str, Any]]:
    """The cases with the answers of the bundle's own stream, and how far those are from the offline model's."""
    own = streamed(path, cases, "native")
    longest = max(range(len(cases)), key=lambda i: cases[i].frames)
    got, wanted = own[longest].outputs, cases[longest].outputs
    return own, {name: distance(got[name], wanted[name], axes[name]) for name in got}


def beyond(path: Path, rewritten: Rewritten, macs: float) -> list[Case]:
    """A text longer than caches hold, with the answers of the bundle's own stream: what is proved of it is that they do
    not depend on how it is cut. None where that would take long. macs: of a token."""
    graph = rewritten.graph
    kept = kept_at_least(graph.kv or "full")
    frames = min(kept + max(FEWEST_BEYOND, kept // 2), graph.max_frames or 1 << 44)
    if keeps_all(graph.kv) or frames <= kept or frames * macs > MOST_MACS:
        return []
    rng = np.random.default_rng(13)
    inputs = {s.name: noise(s, frames, rng, graph) for s in [*graph.inputs, *graph.statics]}
    return streamed(path, [Case(inputs, {}, frames)], "native")
