"""Go back to the version that a board had before, in one step."""

from __future__ import annotations

import argparse
import json

from runnel.tools import terminal
from runnel.tools.commands.push import ADDRESS
from runnel.tools.deploy.address import parse
from runnel.tools.deploy.push import connected, rollback


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("board", help=ADDRESS)


def main(args: argparse.Namespace) -> int:
    progress = terminal.Progress()
    try:
        with connected(parse(args.board), None) as board:
            name = rollback(board, progress)
    finally:
        progress.close()
    print(json.dumps({"id": name, "folder": board.folder}) if args.json else f"{board.folder}: now version {name}")
    return 0
