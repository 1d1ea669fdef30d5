"""List the boards and chips that bundles can be made for."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from runnel import targets
from runnel.tools import terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def main(args: argparse.Namespace) -> int:
    known = [targets.load(name) for name in targets.names()]
    if args.json:
        print(json.dumps([asdict(target) for target in known], indent=1))
    else:
        print(
            terminal.table(["target", "processor", "what it is"], [[t.name, t.arch, t.summary] for t in known], left=3)
        )
    return 0
