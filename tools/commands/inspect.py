"""Say whether an ONNX model can stream, op by op, and what that takes: look-ahead, state, work."""

from __future__ import annotations

import argparse
import json

import runnel
from runnel.tools.model_options import add_model_options, model_options
from runnel.tools.terminal import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)


def main(args: argparse.Namespace) -> int:
    options = model_options(args)
    progress = Progress()
    try:
        report = runnel.inspect(args.model, progress=progress, **options)
    finally:
        progress.close()
    print(json.dumps(report.to_dict(), indent=1) if args.json else report.text())
    return 0
