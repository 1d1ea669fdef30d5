"""Replay the examples that a bundle brings, in several chunkings, and compare with what the offline model gave."""

from __future__ import annotations

import argparse
import json
from typing import Any

from runnel.runtime.bundle import Bundle
from runnel.tools import emulate, terminal
from runnel.tools.deploy import remote
from runnel.tools.facts import mode_facts
from runnel.tools.golden import verify


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="the bundle, m.rnl")
    parser.add_argument("--backend", default="native", help="native (default), onnxruntime, or both with a comma")
    parser.add_argument("--on", type=emulate.place, metavar="qemu|ssh://BOARD", help=emulate.HELP)


def main(args: argparse.Namespace) -> int:
    if args.on and args.on != "qemu":
        return remote.call(args.bundle, args.on, "verify", ["--json"] if args.json else [])
    if args.on:
        return emulate.call(args.bundle, "verify", [], args.json)
    results: list[dict[str, Any]] = []
    for backend in args.backend.split(","):
        results += verify(args.bundle, backend)
    good = all(result["ok"] for result in results)
    if args.json:
        modes = Bundle(args.bundle).manifest["modes"]
        print(json.dumps({"ok": good, "results": results, "modes": modes}, indent=1))
        return 0 if good else 1
    rows = []
    for r in results:
        words = [r["backend"], r["chunking"], "yes" if r["same_bits"] else "NO", "yes" if r["ok"] else "NO"]
        rows.append([*words, f"{r['error']:.2e}", f"{r['tolerance']:.1e}"])
    print(terminal.table(["backend", "chunking", "same bits", "holds", "error", "allowed"], rows, left=4))
    modes = mode_facts(Bundle(args.bundle).manifest)
    gives = "it gave when it was compiled, in named modes" if modes else "the offline model gives"
    print(f"verified: the stream gives what {gives}" if good else "NOT verified: see the rows marked NO")
    if modes:
        print(terminal.pairs(modes))
    return 0 if good else 1
