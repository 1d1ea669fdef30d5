"""Measure schedules of a model's products, on this machine or on a board, and keep them in a log for compile."""

from __future__ import annotations

import argparse
import json
from math import prod
from pathlib import Path

from runnel.errors import InputError
from runnel.files import writable
from runnel.tools import terminal
from runnel.tools.model_options import add_model_options, model_options
from runnel.tools.units import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument(
        "-o", "--out", required=True, metavar="LOG", help="the log, JSON; what it has already is kept and not measured"
    )  # fmt: skip
    parser.add_argument(
        "--rpc", metavar="TRACKER:PORT,KEY",
        help="measure on a board of a TVM RPC tracker, or of one RPC server (HOST:PORT); default: this machine",
    )  # fmt: skip
    parser.add_argument("--trials", type=positive, default=24, help="the most schedules of a product (default: 24)")
    parser.add_argument("--cxx", metavar="COMMAND", help="the C++ compiler for the target")


def main(args: argparse.Namespace) -> int:
    try:
        from runnel.tools.tuning import log
        from runnel.tools.tuning.tune import tune
    except ModuleNotFoundError as error:
        raise InputError(f"tune needs '{error.name}': pip install 'runnel[tune]'") from error
    out = writable(args.out)
    known = log.read(out) if Path(out).exists() else []
    progress = terminal.Progress()
    try:
        records = tune(args.model, known, args.rpc, args.trials, args.cxx, progress, model_options(args))
    finally:
        progress.close()
    log.write(out, [*known, *records])
    if args.json:
        print(json.dumps({"log": str(out), "measured": len(records), "kept": len(known)}))
        return 0
    head = ["product", "by rule", "best", "schedule"]
    cells = []
    for record in records:
        p, (best, least) = record.problem, record.best
        by_rule = record.trials[0][1]
        times = [terminal.duration(by_rule / 1e6), terminal.duration(least / 1e6)]
        shape = f"{p.form} {p.rows} x {p.vectors * p.lanes}, sums of {p.depth}"
        cells.append([shape, *times, f"{best.rows} rows, {best.vectors} vectors, {best.unroll} in a row"])
    if cells:
        print(terminal.table(head, cells))
    gain = prod(record.gain for record in records) ** (1 / max(len(records), 1))
    print(f"{args.out}: {len(records)} products measured, {len(known)} kept; the rules take {gain:.2f} times the best.")
    return 0
