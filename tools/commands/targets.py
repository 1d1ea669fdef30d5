"""List the boards and chips that bundles can be made for, show one, read a real one, or build what runs there."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from runnel import targets
from runnel.errors import InputError
from runnel.tools import terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=("list", "show", "probe", "core", "runner"), default="list")
    parser.add_argument("what", nargs="?", help="a target's name or file; probe: local, or ssh://user@board[:port]")
    parser.add_argument("-o", "--out", metavar="FILE", help="where to write (probe: default your own targets)")
    parser.add_argument("--name", help="probe: the target's name (default: the machine's)")
    parser.add_argument("--storage", metavar="FILE", help="probe: a large file there, whose reading is timed")
    parser.add_argument("--cxx", help="core, runner: the C++ compiler (default: $RUNNEL_CXX, ziglang, or the system's)")


def main(args: argparse.Namespace) -> int:
    if args.action != "list" and args.what is None:
        needed = "local or ssh://user@board" if args.action == "probe" else "a target, such as rpi5"
        raise InputError(f"targets {args.action} needs {needed}.")
    if args.action == "list":
        return _list(args)
    if args.action in ("core", "runner"):
        return _built(args, args.action)
    return _show(targets.load(args.what), args.json) if args.action == "show" else _probe(args)


def _list(args: argparse.Namespace) -> int:
    known = [targets.load(name) for name in targets.names()]
    if args.json:
        print(json.dumps([target.to_dict() for target in known], indent=1))
        return 0
    rows = []
    for t in known:
        own = "yours: " if Path(t.source).parent != targets.FOLDER else ""
        rows.append([t.name, "this one" if t.native else t.arch, "" if t.native else t.cpu, own + t.summary])
    print(terminal.table(["target", "processor", "model", "what it is"], rows, left=4))
    return 0


def _show(t: targets.Target, as_json: bool) -> int:
    if as_json:
        print(json.dumps(t.to_dict(), indent=1))
        return 0
    rows = {
        "what it is": t.summary,
        "triple": t.triple,
        "glibc": f"{t.glibc} or newer",
        "processor": t.cpu + (f" with {' '.join(t.features)}" if t.features else ""),
        "cores": str(t.cores),
        "memory": terminal.size(t.ram_mib << 20) + _rate(t.memory_mb_s, "measured"),
        "pages": terminal.size(t.page_kib << 10),
        "storage": f"{t.storage_mb_s:g} MB/s to assume until measured",
    }
    for a in t.accelerators:
        facts = [a.name, f"capability {a.capability}" if a.capability else "", f"{a.tops:g} TOPS" if a.tops else ""]
        rows[a.kind] = ", ".join(fact for fact in facts if fact)
    print(terminal.pairs(rows | {"file": t.source}))
    return 0


def _rate(rate: float, how: str) -> str:
    return f", {rate:g} MB/s {how}" if rate else ""


def _probe(args: argparse.Namespace) -> int:
    from runnel.tools import probe

    found = probe.probe(args.what, args.storage)
    target = probe.as_target(found, args.name)
    if args.out is None:
        targets.own_folder().mkdir(parents=True, exist_ok=True)
    out = Path(args.out) if args.out else targets.own_folder() / f"{target.name}.toml"
    probe.write(target, out)
    if not args.json:
        print(f"wrote {out}")
    return _show(targets.load(str(out.resolve())), args.json)


def _built(args: argparse.Namespace, what: str) -> int:
    """The core as a library, or runnel-run."""
    from runnel.tools import toolchain

    target = targets.load(args.what)
    if target.native and what == "core":
        raise InputError("this machine's core is built when runnel is installed; name a board.")
    out = Path(args.out or ("librunnel.so" if what == "core" else "runnel-run"))
    elf = (toolchain.build_core if what == "core" else toolchain.build_runner)(target, out, args.cxx)
    size = out.stat().st_size
    if args.json:
        print(json.dumps({"path": str(out), "bytes": size, **asdict(elf)}, indent=1))
    else:
        needs = ", ".join([*elf.needed, *elf.versions]) or "no library"
        print(terminal.pairs({what: f"{out}, {terminal.size(size)}", "for": target.arch, "needs": needs}))
    return 0
