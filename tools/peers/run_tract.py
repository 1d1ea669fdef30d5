"""Streams one model through tract, in a process of its own: ``python -m runnel.tools.peers.run_tract FACTS``."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

PULSE = 4
LIMIT = 1e-4
AFTER = 64  # frames of zeros after the end


def stream(runnable: Any, x: np.ndarray, axis: int) -> np.ndarray:
    """The outputs of all pulses, joined along the output axis that the pulses follow."""
    state = runnable.spawn_state()
    after = [(0, 0)] * x.ndim
    after[axis] = (0, AFTER + -x.shape[axis] % PULSE)
    padded = np.pad(x, after)
    parts = []
    for start in range(0, padded.shape[axis], PULSE):
        chunk = np.ascontiguousarray(np.take(padded, range(start, start + PULSE), axis))
        parts.append(state.run([chunk])[0].to_numpy().copy())
    return np.stack(parts)


def verdict(got: np.ndarray, wanted: np.ndarray, axis: int, delay: int) -> str:
    """exact, or wrong by how much and where. got: (pulses, *output of a pulse)."""
    joined = np.moveaxis(np.concatenate(list(got), axis), axis, 0)[delay:]
    right = np.moveaxis(wanted, axis, 0)
    if joined.shape[1:] != right.shape[1:] or len(joined) < len(right):
        return f"**wrong** shape {list(joined.shape)}, not {list(right.shape)}"
    error = np.abs(joined[: len(right)] - right).reshape(len(right), -1).max(1) / max(float(np.abs(right).max()), 1e-6)
    if error.max() <= LIMIT:
        return "exact"
    bad = error > LIMIT
    last = len(right) - int(np.argmax(bad))
    where = f"the last {last} frames" if bad[-last:].all() and last < len(right) // 2 else f"{int(bad.sum())} frames"
    return f"**wrong** by {error.max():.2g} in {where} of {len(right)}"


def main() -> None:
    tract = import_module("tract")  # no package of ours: whoever wants the column installs it

    facts = json.loads(sys.argv[1])
    folder = Path(facts["folder"])
    with np.load(folder / "case.npz") as case:
        x, wanted = case["x"], case["y"]
    try:
        model = tract.onnx().load(str(folder / "model.onnx"))
        model.set_input_fact(0, ",".join(map(str, facts["shape"])) + ",f32")
        model = model.into_model()
        model.transform(tract.Pulse(PULSE, symbol="T"))
        delay = int(model.property("pulse.delay").to_numpy()[0])
        axes = [i for i, n in enumerate(wanted.shape) if n != 1 and i == facts["axis"]] or [facts["axis"]]
        print(verdict(stream(model.into_runnable(), x, facts["axis"]), wanted, axes[0], delay))
    except tract.TractError as error:
        lines = [line.strip() for line in str(error).split("Stack backtrace")[0].splitlines() if line.strip()]
        print("refused: " + lines[-1][:160].replace("|", "/"))


if __name__ == "__main__":
    main()
