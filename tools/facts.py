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
    rows.update(proof_facts(manifest.get("proof") or {}))
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


def proof_facts(proof: Mapping[str, Any], name: str = "proof") -> dict[str, str]:
    """One row for each figure of a proof; parts of it are named after the whole."""
    rows: dict[str, str] = {}
    for key, value in proof.items():
        label = f"{name}: {key.replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows.update(proof_facts(value, label))
        elif isinstance(value, float):
            rows[label] = f"{value:.3g}"
        elif isinstance(value, list):
            rows[label] = ", ".join(map(str, value))
        else:
            rows[label] = str(value)
    return rows
