"""The options of what a program runs on: threads, and memory for its weights."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import runnel
from runnel.errors import InputError
from runnel.runtime.paging import AHEAD, KEPT, SLOW, WAYS
from runnel.runtime.program import Program
from runnel.tools.measure import THREADS
from runnel.tools.units import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=positive, default=1, metavar="N", help=THREADS)
    parser.add_argument(
        "--ram", metavar="SIZE",
        help="the most memory, such as 256M, 1.5G or auto: weights beyond it are read in each step",
    )  # fmt: skip
    parser.add_argument("--io", choices=WAYS, default="auto", help="how weights are read (default: auto)")
    parser.add_argument("--io-threads", type=positive, default=0, metavar="N", help="of --io threads")
    parser.add_argument("--patience", type=float, metavar="S", help="the most seconds that a read may take")
    parser.add_argument(
        "--slow", choices=SLOW, default="stop", help="what a read beyond --patience does: stop, or warn once and go on"
    )
    parser.add_argument("--experts", choices=KEPT, default="cost", help="which experts stay in memory (default: cost)")
    parser.add_argument(
        "--experts-ahead",
        choices=AHEAD,
        default="auto",
        help="read experts before they are chosen (auto: if it pays)",
    )


def runtime(args: argparse.Namespace, streams: int = 1) -> runnel.Runtime:
    """Raises InputError for what makes no sense."""
    told = args.io != "auto" or args.io_threads or args.patience is not None or args.slow != "stop"
    if args.ram is None and told:
        raise InputError("--io, --io-threads, --patience and --slow are for weights beyond memory; give --ram too.")
    if args.ram is None and (args.experts != "cost" or args.experts_ahead != "auto"):
        raise InputError("--experts and --experts-ahead are for experts that pass through memory; give --ram too.")
    ram = int(args.ram) if args.ram is not None and args.ram.isdigit() else args.ram
    return runnel.Runtime(
        args.threads, ram=ram, io=args.io, io_threads=args.io_threads, streams=streams, patience=args.patience,
        slow=args.slow, experts=args.experts, experts_ahead=args.experts_ahead,
    )  # fmt: skip


def say_mode(program: Program) -> None:
    """The first line of a program with a budget, on the error stream."""
    facts = getattr(program, "paging", None)
    if facts is not None:
        print(f"mode: {facts.mode}", file=sys.stderr)


def figures(program: Program, seconds: float) -> dict[str, Any]:
    """What paging cost, as data; nothing without a budget."""
    facts = getattr(program, "paging", None)
    return {} if facts is None else facts.figures(seconds)


def lines(program: Program, seconds: float) -> dict[str, str]:
    """What paging cost, for a person."""
    facts = getattr(program, "paging", None)
    if facts is None:
        return {}
    speed = facts.bytes_read / seconds / 1e6 if seconds > 0 else 0.0
    budget = facts.shared or facts.ram
    return {
        "memory": f"{facts.peak / 2**20:.1f} MiB at most, of {budget / 2**20:.1f} MiB; {facts.mode}",
        "storage": f"{speed:.0f} MB/s read, stalls of {facts.stall_ms_p50:.3f} ms (median), "
        f"{100 * facts.hit_rate:.1f} % of the segments in time",
    }
