"""Compile an ONNX model into a bundle that streams, and prove it against the offline model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import runnel
from runnel import targets
from runnel.errors import InputError
from runnel.tools import terminal
from runnel.tools.facts import bundle_facts
from runnel.tools.model_options import add_model_options, model_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    parser.add_argument("-o", "--out", metavar="M.rnl", help="the bundle (default: the model's name here, in .rnl)")
    parser.add_argument("--backend", choices=("native", "onnxruntime"), help="insist on kernels, or do without them")
    parser.add_argument("--tuning", metavar="LOG", help="schedules that runnel tune measured; the same bits come out")
    parser.add_argument(
        "--tokenizer",
        metavar="FILE",
        help="of a decoder of text (default: tokenizer.json or tok*.bin beside the model)",
    )


def main(args: argparse.Namespace) -> int:
    targets.load(args.target)
    out = Path(args.out) if args.out else Path(Path(args.model).stem + ".rnl")
    if out.resolve() == Path(args.model).resolve():
        raise InputError(f"'{out}' is the model itself; name another file with --out.")
    options = {**model_options(args), "backend": args.backend, "tuning": args.tuning, "tokenizer": args.tokenizer}
    progress = terminal.Progress()
    try:
        info = runnel.compile(args.model, out, progress=progress, **options)
    finally:
        progress.close()
    if args.json:
        manifest = {key: value for key, value in info.manifest.items() if key not in ("entries", "weights")}
        print(json.dumps({"path": str(info.path), "bytes": info.path.stat().st_size, "manifest": manifest}, indent=1))
    else:
        rows = {"bundle": f"{info.path}, {terminal.size(info.path.stat().st_size)}", **bundle_facts(info.manifest)}
        print(terminal.pairs(rows))
    return 0
