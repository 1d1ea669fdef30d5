"""Models that bring their own state: which output of one step is which input of the next."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from runnel.compiler.graph.time_axis import BATCH_NAMES

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Graph, Port

_WORDS = re.compile(r"out(put)?|new|next|updated|present|past|prev(ious)?|in(put)?|last", re.IGNORECASE)
_KIND = re.compile(r"state|cache|hidden|buffer|memory|past|^[hc](n|\d*)$|^[hc](x|\d*)_|_[hc](n|\d*)$", re.IGNORECASE)


def find_states(graph: Graph) -> dict[str, str]:
    """{output: input} of states, by name and shape: ``h_out``/``h``, ``cache_out``/``cache``, ``hn``/``h0``,
    ``stateN``/``state``.

    Conservative: dtypes and ranks agree, fixed dimensions are equal, and every pair is the only candidate on both
    sides. A state has a fixed size: of its axes only the batch may be symbolic.
    """
    pairs: dict[str, str] = {}
    for out in graph.outputs:
        matches = [p for p in graph.inputs if _same_state(p, out)]
        if len(matches) == 1:
            pairs[out.name] = matches[0].name
    inputs = list(pairs.values())
    return {out: inp for out, inp in pairs.items() if inputs.count(inp) == 1} if len(pairs) < len(graph.inputs) else {}


def _same_state(inp: Port, out: Port) -> bool:
    if inp.dtype != out.dtype or len(inp.shape) != len(out.shape) or not inp.shape:
        return False
    if any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(inp.shape, out.shape, strict=True)):
        return False
    if any(not isinstance(d, int) and str(d).lower() not in BATCH_NAMES for d in inp.shape):
        return False
    if not (_KIND.search(inp.name) and _KIND.search(out.name)):
        return False
    return bool(_stems(inp.name) & _stems(out.name))


def _stems(name: str) -> set[str]:
    """What is left of a name without the words of direction, with and without the number of ``h0`` and ``hn``."""
    return {
        re.sub(r"[^a-z0-9]", "", _WORDS.sub("", stem.lower()))
        for stem in (name, re.sub(r"(?<=[a-z])N$|(?<=^[hc])[n0]$|(?<=_[hc])[n0]$", "", name))
    } - {""}
