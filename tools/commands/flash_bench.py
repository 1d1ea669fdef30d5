"""Measure how fast storage is read, and keep it for the planner of weights larger than memory."""

from __future__ import annotations

import argparse
import json

from runnel.runtime.paging import WAYS
from runnel.tools import storage
from runnel.tools.units import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="a file on the storage, or a folder, in which one is made and removed")
    parser.add_argument("--io", choices=WAYS, default="auto", help="how it is read (default: auto)")
    parser.add_argument("--io-threads", type=positive, default=0, metavar="N", help="of --io threads")


def main(args: argparse.Namespace) -> int:
    table = storage.measure(args.path, args.io, args.io_threads)
    storage.keep(table)
    if args.json:
        print(json.dumps(table.to_dict(), indent=1))
        return 0
    depths = sorted({s.depth for s in table.speeds})
    print("10⁶ bytes a second   " + "".join(f"{f'{d} at a time':>14}" for d in depths))
    for size in sorted({s.bytes for s in table.speeds}):
        row = {s.depth: s.mb_s for s in table.speeds if s.bytes == size}
        print(f"reads of {size >> 10:>5} KiB    " + "".join(f"{row[d]:>14.0f}" for d in depths))
    knee, way = table.knee, "past the system's cache" if table.direct else "through the system's cache"
    print(f"knee: {knee.depth} reads of {knee.bytes >> 10} KiB, {knee.mb_s:.0f}; {way}; kept in {storage.notes()}")
    return 0
