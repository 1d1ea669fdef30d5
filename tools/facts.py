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
    if (window := manifest.get("window")) and window["nrmse"] is not None:
        rows["reuse"] = f"NRMSE {100 * window['nrmse']:.2f} % from windows run whole"
    if work := saved_work(manifest):
        rows["work"] = work
    rows.update(mode_facts(manifest))
    if kv := manifest.get("kv"):
        rows["caches"] = f"{kv['policy']}, in {len(kv['layers'])} layers"
        for output, deviation in (kv["deviation"] or {}).items():
            rows[f"  '{output}'"] = f"{deviation_words(deviation)}, as its caches store codes"
    if proof := manifest.get("proof"):
        rows.update(proof_facts(proof))
    return rows


def mode_facts(manifest: Mapping[str, Any]) -> dict[str, str]:
    """That a program is in a named mode, and what that costs; nothing for an exact one."""
    modes = manifest.get("modes")
    if not modes:
        return {}
    rows = {"not exact": "; ".join(f"{k}={v['value']} in {', '.join(v['nodes'])}" for k, v in modes["used"].items())}
    recording = modes["calibration"]
    for output, deviation in modes["deviation"].items():
        rows[f"  '{output}'"] = f"{deviation_words(deviation)}, on {recording['name']} of {recording['frames']} frames"
    for layer in modes["used"].get("experts", {}).get("layers", []):
        rows[f"  '{layer['node']}'"] = layer["summary"]
    for name, mode in modes["used"].items() if len(modes["used"]) > 1 else ():
        for output, deviation in (mode["deviation"] or {}).items():
            rows[f"  '{output}', {name} alone"] = deviation_words(deviation)
    return rows


def deviation_words(deviation: Mapping[str, Any]) -> str:
    """How far one output is from the offline model's."""
    if deviation["compared"] == "nothing":
        return "cannot be compared with the offline model's"
    at = " at the end" if deviation["compared"] == "the last frame" else ""
    if "differ" in deviation:
        return f"differs from the offline model in {100 * deviation['differ']:.2g} % of its values{at}"
    if deviation["rms"] is None:
        return f"is not finite where the offline model's is{at}"
    ratio = "no error" if deviation["snr_db"] is None else f"{deviation['snr_db']:.1f} dB"
    return (
        f"deviates from the offline model by {100 * deviation['rms']:.3g} % (RMS), "
        f"{100 * deviation['max']:.3g} % of its range at most, {ratio}{at}"
    )


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


def codes_facts(codes: Mapping[str, Any]) -> dict[str, str]:
    """What is said of a quantised model."""
    differ = ", ".join(f"{100 * share:.2g} % ({backend})" for backend, share in codes["differ"].items())
    islands = f"one apart at most behind {len(codes['islands'])} float nodes; " if codes["islands"] else ""
    rows = {"codes": f"{islands}values that differ from the model in integers: {differ}"}
    if run := codes.get("optimised"):
        rows["onnxruntime"] = f"run as it is differs in {100 * run['differ']:.2g} %, by {run['most']:g} codes at most"
    return rows


def proof_facts(proof: Mapping[str, Any]) -> dict[str, str]:
    """What was proved, and what was not."""
    errors = ", ".join(f"{backend} {error:.1e}" for backend, error in proof["error"].items())
    lengths = ", ".join(map(str, proof["frames"]))
    against = proof.get("against", "the offline model")
    rows = {
        "exact"
        if against == "the offline model"
        else f"as {against}": f"largest error of the output's range: {errors} (allowed {proof['limit']:.0e})",
        "proved": f"on {proof['where']}; recordings of {lengths} frames; cut {', '.join(proof['chunkings'])}",
        "not proved": str(proof["not_covered"]),
    }
    return rows | codes_facts(proof["codes"]) if proof.get("codes") else rows
