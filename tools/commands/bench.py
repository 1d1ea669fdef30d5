"""Measure a bundle on one thread: real-time factor, time per step, memory, state."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import runnel
from runnel.errors import InputError
from runnel.files import replacing
from runnel.tools import emulate, runtime_options, terminal
from runnel.tools.bench import Row, measure, ratios
from runnel.tools.deadline import forecast
from runnel.tools.deploy import remote
from runnel.tools.units import frame_count, positive

BOUND, STEADY = "onnxruntime-bound", "onnxruntime-steady"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="the bundle, m.rnl")
    parser.add_argument(
        "--backend", default="native", metavar="NAME,...",
        help="native (default), onnxruntime, onnxruntime-bound (its buffers bound in place), onnxruntime-steady (bound,"
        " and without what only a stream's start and end need: it gives wrong results there), or several",
    )  # fmt: skip
    parser.add_argument("--chunk", metavar="N", help="frames of a step, or a time such as 10ms (default: the hop)")
    parser.add_argument("--steps", type=positive, default=None, help="steps (default: as many as 2 s take)")
    parser.add_argument("--rows", metavar="FILE", help="also write the raw rows there, as JSON")
    parser.add_argument("--rounds", type=positive, default=5, help="turns that the backends take (default: 5)")
    runtime_options.add_arguments(parser)
    parser.add_argument("--on", type=emulate.place, metavar="qemu|ssh://BOARD", help=emulate.HELP)


def main(args: argparse.Namespace) -> int:
    if args.on and args.on != "qemu":
        words = [*emulate.chunk_words(args.bundle, args.chunk, None), *(["--json"] if args.json else [])]
        return remote.call(args.bundle, args.on, "bench", words)
    if args.on:
        return emulate.call(args.bundle, "bench", emulate.chunk_words(args.bundle, args.chunk, None), args.json)
    backends = args.backend.split(",")
    runtime = runtime_options.runtime(args)
    if args.ram is not None and backends != ["native"]:
        raise InputError("a budget of RAM is for the native backend; leave --backend or --ram out.")
    programs = {backend: _load(args.bundle, backend, runtime) for backend in backends}
    first = programs[backends[0]]
    runtime_options.say_mode(first)
    if any(port.axis is None for port in first.timed):
        raise InputError("bench feeds inputs with a time axis; this model has others, so measure it from Python.")
    chunk = frame_count(args.chunk, first.rate, "--chunk") if args.chunk else first.hop
    for name in (BOUND, STEADY):
        if name in programs and chunk != programs[name].hop:
            raise InputError(f"{name} takes {programs[name].hop} frames a step; leave --chunk out.")
    expected = (
        None if first.rate is None else forecast([first], args.bundle, chunk / first.rate, args.io, args.io_threads)
    )
    if expected is not None:
        print(f"storage: {expected}", file=sys.stderr)
    begun = time.perf_counter()
    rows = measure(programs, chunk, args.steps, args.rounds, args.threads)
    spent = time.perf_counter() - begun
    data = [row.to_dict() | runtime_options.figures(programs[row.backend], spent) for row in rows]
    if expected is not None:
        data[0]["storage"] = expected.to_dict()
    if args.rows:
        with replacing(args.rows) as file:
            file.write((json.dumps(data, indent=1) + "\n").encode())
    if args.json:
        print(json.dumps(data, indent=1))
    else:
        threads = "one thread" if args.threads == 1 else f"{args.threads} threads"
        print(f"{args.bundle}: {terminal.frames(chunk, first.rate)} a step, {threads}")
        print(_table(rows))
        if more := runtime_options.lines(first, spent):
            print(terminal.pairs(more))
    return 0


def _load(path: str, backend: str, runtime: runnel.Runtime) -> Any:
    if backend in (BOUND, STEADY):
        from runnel.tools.peer import BoundProgram

        return BoundProgram(path, steady=backend == STEADY)
    return runnel.load(path, backend=backend, runtime=runtime if backend == "native" else None)


def _table(rows: list[Row]) -> str:
    head = ["backend", "p50", "p99", "p99.9", "steps/s", "RTF", "state", "RSS"]
    cells = []
    for row in rows:
        t = row.timing
        times = [terminal.duration(v) for v in (t.p50, t.p99, t.p999)]
        rtf = "-" if t.rtf is None else f"{t.rtf:.4f}"
        memory = [terminal.size(row.state_bytes), terminal.size(row.resident_bytes)]
        cells.append([row.backend, *times, f"{t.steps_per_second:.0f}", rtf, *memory])
    text = terminal.table(head, cells)
    for row in rows[1:]:
        middle, least, most = ratios(rows[0], row)
        text += f"\na step of {rows[0].backend} takes {middle:.2f} [{least:.2f} … {most:.2f}] of one of {row.backend}"
    return text
