"""Bring a bundle to a board over ssh or a serial line: checked, tried there, switched to at once, the old one kept."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from runnel.errors import InputError
from runnel.tools import terminal
from runnel.tools.deploy.address import parse
from runnel.tools.deploy.push import push_bundle

ADDRESS = "ssh://user@board[:port][:folder], or serial:///dev/ttyUSB0[?baud=115200&dir=folder]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="the bundle, m.rnl")
    parser.add_argument("board", help=ADDRESS)
    parser.add_argument("--runner", metavar="FILE", help="the runnel-run to send (default: built for the bundle)")
    parser.add_argument(
        "--service", metavar="ARGUMENTS", help="also make a systemd service of it: what runnel-run run gets, as in"
        " --service='--in pcm:hw:0,0 --out json:/run/heard'",
    )  # fmt: skip
    parser.add_argument("--trust", metavar="KEY", help="tell the board a public key: from now on it runs nothing else")


def main(args: argparse.Namespace) -> int:
    progress = terminal.Progress()
    keys = b""
    if args.trust:
        try:
            keys = Path(args.trust).read_bytes()
        except OSError as error:
            raise InputError(f"the key '{args.trust}' cannot be read: {error.strerror}.") from None
    address, service = parse(args.board), args.service
    try:
        done = push_bundle(args.bundle, address, progress, runner=args.runner, keys=keys, service=service)
    finally:
        progress.close()
    if args.json:
        print(json.dumps(asdict(done), indent=1))
        return 0
    took, known = terminal.duration(done.seconds), terminal.size(done.known)
    rows = {
        "sent": f"{terminal.size(done.sent)} in {took}, {known} were there",
        "version": done.id,
        "folder": done.folder,
        "before": done.previous or "none",
    } | ({"service": done.service} if done.service else {})
    print(terminal.pairs(rows))
    return 0
