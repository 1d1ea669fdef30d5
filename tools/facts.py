"""What a bundle's manifest says, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runnel.tools import terminal


def bundle_facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The rows that a person reads after compiling."""
    rate = (manifest.get("clock") or {}).get("rate")
    rows = {
        "target": f"{manifest['target']['name']} ({manifest['target']['arch']})",
        "backends": ", ".join(manifest["backends"]),
    }
    if manifest.get("native_refusal"):
        rows["no native form"] = str(manifest["native_refusal"])
    rows["hop"] = terminal.frames(manifest["hop"], rate)
    rows["look-ahead"] = terminal.frames(manifest["latency_frames"], rate)
    if work := saved_work(manifest):
        rows["work"] = work
    if proof := manifest.get("proof"):
        rows.update(proof_facts(proof))
    return rows


def saved_work(manifest: Mapping[str, Any]) -> str | None:
    """Multiply-adds of the stream beside those of windows that are run again every hop."""
    macs = manifest.get("macs") or {}
    streamed, windowed = macs.get("per_second_streamed"), macs.get("per_second_windowed")
    if not streamed or not windowed:
        return None
    return (
        f"{streamed / 1e6:.1f} million multiply-adds a second; windows run again every hop take "
        f"{windowed / 1e6:.1f} million ({windowed / streamed:.0f} times as many)"
    )


def proof_facts(proof: Mapping[str, Any]) -> dict[str, str]:
    """What was proved, and what was not."""
    errors = ", ".join(f"{backend} {error:.1e}" for backend, error in proof["error"].items())
    lengths = ", ".join(map(str, proof["frames"]))
    return {
        "exact": f"largest error of the output's range: {errors} (allowed {proof['limit']:.0e})",
        "proved": f"on {proof['where']}; recordings of {lengths} frames; cut {', '.join(proof['chunkings'])}",
        "not proved": str(proof["not_covered"]),
    }
