"""``runnel``: the command line. Errors are one plain sentence; exit code 2 for the user's input, 1 for our faults."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import runnel
from runnel.errors import Refused, RunnelError, SlowStorage

COMMANDS = (
    "inspect", "compile", "run", "generate", "chat", "serve", "verify", "bench", "tune", "push", "rollback", "sign",
    "targets", "flash-bench", "doctor",
)  # fmt: skip
INTERRUPTED = 130
WORDS = {"undecided": "behind a refused op, so not decided"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> Parser:
    """The parser of all commands; each lives in tools/commands under its name."""
    whole = Parser(prog="runnel", description="Offline ONNX models as exact streams on small boards.")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name in COMMANDS:
        module = import_module(f"runnel.tools.commands.{name.replace('-', '_')}")
        summary = str(module.__doc__).strip().splitlines()[0]
        command = commands.add_parser(name, help=summary, description=module.__doc__)
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print what a program can read")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(main=module.main)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    whole = parser()
    args = whole.parse_args(argv)
    if args.version:
        print(f"runnel {runnel.__version__}")
        return 0
    if args.command is None:
        whole.print_help()
        return 2
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that being ended cleans up as Ctrl-C does
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code: int = args.main(args)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's last flush stays quiet
        return 1
    except KeyboardInterrupt:
        print("\nrunnel: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return _report(error, args)
    return code


def _warn(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """A sentence of ours as such, anything else as Python shows it."""
    if issubclass(category, SlowStorage):
        print(f"runnel: {message}", file=sys.stderr)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _report(error: Exception, args: Any) -> int:
    if args.debug:
        traceback.print_exc()
    if not isinstance(error, RunnelError):
        what = " ".join(str(error).split()) or "no message"
        print(f"runnel: a fault of runnel: {type(error).__name__}: {what} (--debug shows where)", file=sys.stderr)
        return 1
    if isinstance(error, Refused):
        if args.json:
            reasons = [
                {"node": r.node, "op": r.op, "reason": r.reason, "remedy": r.remedy, "modes": list(r.modes)}
                for r in error.reasons
            ]
            print(json.dumps({"refused": reasons, "decided": error.decided}, indent=1))
        count = len(error.reasons)
        print(f"runnel: refused, {count} {'ops do' if count != 1 else 'op does'} not stream:", file=sys.stderr)
        for reason in error.reasons:
            print(f"  {reason}", file=sys.stderr)
        if args.command == "inspect":
            for what, ops in error.decided.items():
                if what == "refused":
                    continue
                counts = ", ".join(f"{op} {n}" for op, n in sorted(ops.items()))
                print(f"  {WORDS.get(what, what)}: {counts}", file=sys.stderr)
    else:
        print(f"runnel: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
