"""Say whether an ONNX model can stream, op by op, and what that takes: look-ahead, state, work."""

from __future__ import annotations

import argparse
import json

import runnel
from runnel import targets
from runnel.runtime.paging import parse_ram
from runnel.tools.model_options import add_model_options, model_options
from runnel.tools.storage import predict
from runnel.tools.terminal import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("--ram", metavar="SIZE", help="say what a budget of memory, such as 256M, would mean")


def main(args: argparse.Namespace) -> int:
    options = model_options(args)
    progress = Progress()
    try:
        report = runnel.inspect(args.model, progress=progress, **options)
    finally:
        progress.close()
    page, data = report.text(), report.to_dict()
    if args.ram:
        board = targets.load(args.target)
        data["memory"] = predict(report, board, parse_ram(args.ram), board.native)
        page += "\n" + "\n".join(f"  {name.replace('_', ' '):20} {value}" for name, value in data["memory"].items())
    print(json.dumps(data, indent=1) if args.json else page)
    return 0
