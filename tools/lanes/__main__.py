"""Prints, for bundles or for the bench's models, the kernels that handle elements one at a time.

Instructions of a step are counted where they run: those for this machine by its trap flag, those for others under
qemu-user.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import runnel
from runnel.errors import RunnelError
from runnel.runtime.bundle import Bundle
from runnel.tools import terminal
from runnel.tools.benchmark.prepare import compile_options, quantise
from runnel.tools.benchmark.workloads import WORKLOADS, Workload
from runnel.tools.lanes.kernels import Work, work

SHARE = 0.02  # of a step's instructions, from which on a kernel is told
SCALAR = 0.25  # of its instructions on elements


def bundle_of(workload: Workload, target: str, folder: Path) -> Path:
    """The bundle of one of the bench's workloads for a target, compiled once in a folder. Raises what compile does."""
    out = folder / f"{workload.name.replace(' ', '-')}-{target}.rnl"
    if not out.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = folder / f"{workload.name.replace(' ', '-')}.onnx"
        if not model.exists():
            model.write_bytes(workload.model())
            if workload.quantise:
                quantise(model, workload)
        runnel.compile(model, out, target=target, backend="native", **compile_options(workload))
    return out


def told(row: Work) -> bool:
    return row.share >= SHARE and row.scalar_share >= SCALAR


def _bundles(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    for path in args.bundle:
        yield path, Path(path)
    with tempfile.TemporaryDirectory() as made:
        for workload in WORKLOADS:
            if args.only is None or workload.lanes > 1 or not any(p in workload.name for p in args.only.split(",")):
                continue
            for target in args.targets.split(","):
                yield f"{workload.name}, {target}", bundle_of(workload, target, args.folder or Path(made))


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.lanes", description=__doc__)
    parser.add_argument("bundle", nargs="*", help="bundles to look at")
    parser.add_argument("--only", metavar="NAME,...", help="workloads of the bench whose name contains one of these")
    parser.add_argument("--targets", default="x86-64-v3,rpi4,rpi5,armv7", help="what workloads are compiled for")
    parser.add_argument("--folder", type=Path, help="where workloads' bundles are kept")
    parser.add_argument("--all", action="store_true", help="tell of every kernel")
    parser.add_argument("--lines", type=int, default=0, metavar="N", help="the N commonest such instructions as well")
    args = parser.parse_args(words)
    found = 0
    for name, path in _bundles(args):
        try:
            rows, outside = work(Bundle(path))
        except RunnelError as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        everything = sum(row.all for row in rows)
        kept = rows if args.all else [row for row in rows if told(row)]
        found += sum(map(told, rows))
        print(f"{name}: {everything:,.0f} instructions a step in kernels, {outside:,.0f} around them", flush=True)
        if kept:
            head = ["share", "one by one", "instructions", "ops", "output"]
            table = [
                [f"{row.share:.1%}", f"{row.scalar_share:.0%}", f"{row.all:,.0f}", row.ops[:70], row.output[:50]]
                for row in kept
            ]
            print(terminal.table(head, table))
        for row in kept if args.lines else ():
            print(row.ops[:70], row.output)
            for place, times, text in row.scalars[: args.lines]:
                print(f"  {place:#8x} {times:10,.0f}  {text}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
