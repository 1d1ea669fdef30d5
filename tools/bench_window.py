"""``python -m runnel.tools.bench_window``: window mode against running the window again, on the StreamiNNC networks.

For each network and hop, in turn: onnxruntime on every window, our kernels on every window, mode exact and mode reuse;
one thread each, medians over hops, and how many multiply-adds less. Raw rows go to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime as ort

import runnel
from runnel.models.streaminnc.networks import NETWORKS, RATE, signal
from runnel.tools import terminal

HOPS = {"acc": (480, 160, 96, 48), "eeg": (512, 256, 128, 64), "ppg": (64, 16)}
PAPER = {Fraction(1, 2): 1.80, Fraction(1, 3): 2.69, Fraction(1, 6): 5.38, Fraction(1, 12): 10.5, Fraction(1, 20): 17.0}
"""Times of a hop that the paper's authors give beside a whole window (plot_speedup_times.py, 960 frames)."""
ROUNDS = 60
WARM = 5


def streaming(path: Path, x: np.ndarray, width: int, hop: int) -> Callable[[], Any]:
    """Pushes the next hop of the recording at each call."""
    stream = runnel.load(path, backend="native").stream()
    stream.push(np.ascontiguousarray(x[:, :, :width]))
    parts = [np.ascontiguousarray(x[:, :, i : i + hop]) for i in range(width, x.shape[2] - hop + 1, hop)]
    turn = iter(range(1 << 30))
    return lambda: stream.push(parts[next(turn) % len(parts)])


def again(model: bytes, x: np.ndarray, width: int) -> Callable[[], Any]:
    """Runs onnxruntime on a whole window at each call, in its fastest form for one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    window = np.ascontiguousarray(x[:, :, :width])
    out = session.run(None, {"x": window})[0]
    binding.bind_input("x", "cpu", 0, np.float32, window.shape, window.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    return lambda: (session.run_with_iobinding(binding), window, out)


def measure(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Microseconds of each call, taken in turns."""
    rows: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(WARM + rounds):
        for name, run in runs.items():
            begin = time.perf_counter_ns()
            run()
            if turn >= WARM:
                rows[name].append((time.perf_counter_ns() - begin) / 1000)
    return rows


def bench(name: str, hop: int, rounds: int, folder: Path) -> dict[str, Any]:
    """One line of the table, with its raw rows."""
    model = NETWORKS[name](0)
    _, channels, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    recording = signal(channels, width + 200 * hop, RATE[name], 5)[None]
    options: dict[str, Any] = {"window": width, "backend": "native", "calibration": recording, "reuse_threshold": 1e9}
    runs = {"onnxruntime": again(model.SerializeToString(), recording, width)}
    whole = runnel.compile(model, folder / f"{name}-{hop}-whole.rnl", hop=width, **options)
    windows = signal(channels, 20 * width, RATE[name], 5)[None]
    runs["whole"] = streaming(whole.path, windows, width, width)
    infos = {}
    for mode in ("exact", "reuse"):
        infos[mode] = runnel.compile(model, folder / f"{name}-{hop}-{mode}.rnl", hop=hop, mode=mode, **options)
        runs[mode] = streaming(infos[mode].path, recording, width, hop)
    macs = infos["exact"].manifest["macs"]
    return {
        "network": name, "window": width, "hop": hop, "nrmse": infos["reuse"].manifest["window"]["nrmse"],
        "macs": {how: macs.get(f"per_hop_{how}") for how in ("naive", "exact", "reuse")},
        "microseconds": measure(runs, rounds),
    }  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    times = {how: median(values) for how, values in row["microseconds"].items()}
    macs, share = row["macs"], Fraction(row["hop"], row["window"])
    paper = PAPER.get(share)
    return [
        row["network"], f"{row['hop']} ({share})", f"{times['onnxruntime']:.0f}", f"{times['whole']:.0f}",
        f"{times['exact']:.0f}", f"{times['reuse']:.0f}", f"{times['onnxruntime'] / times['exact']:.1f}",
        f"{times['whole'] / times['exact']:.1f}", f"{times['whole'] / times['reuse']:.1f}",
        f"{macs['naive'] / macs['exact']:.2f}", f"{macs['naive'] / macs['reuse']:.2f}",
        f"{100 * row['nrmse']:.2f} %", "" if paper is None else f"{paper:.1f}",
    ]  # fmt: skip


HEAD = [
    "network", "hop", "ort µs", "whole µs", "exact µs", "reuse µs", "ort/exact", "whole/exact", "whole/reuse",
    "MACs exact", "MACs reuse", "NRMSE", "paper",
]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.bench_window", description=__doc__)
    parser.add_argument("--rows", type=Path, default=Path("build/bench/window.json"), help="where the raw rows go")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="hops measured of each")
    parser.add_argument("--network", choices=HOPS, action="append", help="only this one; may be repeated")
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory(prefix="runnel-bench-") as folder:
        for name in args.network or HOPS:
            for hop in HOPS[name]:
                rows.append(bench(name, hop, args.rounds, Path(folder)))
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    machine = {"machine": platform.machine(), "onnxruntime": ort.__version__, "threads": 1, "rounds": args.rounds}
    args.rows.write_text(json.dumps({"machine": machine, "rows": rows}))
    print(terminal.table(HEAD, [line(row) for row in rows]))
    print(
        "\nTimes are medians of one hop, taken in turns. whole: our kernels on every window. paper: what its authors'"
    )
    print("exact streaming saves of a window of 960 frames, on their machine, in plain C++.")


if __name__ == "__main__":
    main()
