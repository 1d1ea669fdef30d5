"""Reads a machine, this one or one over the user's own ssh, and writes it as a target."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from runnel import targets
from runnel.errors import InputError
from runnel.files import replacing

SECONDS = 120
MOST_BYTES = 1 << 20
BEGIN, END = "runnel-probe 1", "runnel-probe end"
STORAGE_MB_S = 20.0  # of a slow card, where none was measured
OLDEST_GLIBC = "2.17"
_HOST = re.compile(r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]*)@)?(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9A-Fa-f:]+\])"
                   r"(?::(?P<port>\d{1,5}))?/?\Z")  # fmt: skip
_COPIED = re.compile(r"(\d+) bytes.* copied, ([0-9.e+-]+) s")

# LLVM's processors by implementer and part, from the smallest: a board with two kinds is scheduled for the largest.
PARTS = {
    ("0x41", "0xc07"): "cortex-a7", ("0x41", "0xc0f"): "cortex-a15", ("0x41", "0xc0e"): "cortex-a17",
    ("0x41", "0xd04"): "cortex-a35", ("0x41", "0xd03"): "cortex-a53", ("0x41", "0xd05"): "cortex-a55",
    ("0x41", "0xd46"): "cortex-a510", ("0x41", "0xd07"): "cortex-a57", ("0x41", "0xd08"): "cortex-a72",
    ("0x41", "0xd09"): "cortex-a73", ("0x41", "0xd0a"): "cortex-a75", ("0x4e", "0x004"): "carmel",
    ("0x41", "0xd0b"): "cortex-a76", ("0x41", "0xd0c"): "neoverse-n1", ("0x41", "0xd0d"): "cortex-a77",
    ("0x41", "0xd41"): "cortex-a78", ("0x41", "0xd42"): "cortex-a78ae", ("0x41", "0xd4b"): "cortex-a78c",
    ("0x41", "0xd44"): "cortex-x1", ("0x41", "0xd40"): "neoverse-v1", ("0x41", "0xd49"): "neoverse-n2",
}  # fmt: skip
# What the kernel of the system calls LLVM's features.
ARM = {"crc": "crc32", "lse": "atomics", "rdm": "asimdrdm", "fullfp16": "asimdhp", "dotprod": "asimddp", "i8mm": "i8mm"}
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "x86-64-v2": {"cx16", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"},
}
CHIPS = {
    "nvidia,tegra210": targets.Accelerator("cuda", "Maxwell, 128 cores", "5.3"),
    "nvidia,tegra194": targets.Accelerator("cuda", "Volta", "7.2"),
    "nvidia,tegra234": targets.Accelerator("cuda", "Ampere", "8.7"),
    "rockchip,rk3588": targets.Accelerator("npu", "RKNN, three cores", tops=6.0),
}


def probe(where: str, file: str | None = None) -> dict[str, str]:
    """What a machine says of itself, by key. where: "local", or ssh://[user@]host[:port]. file: one there to read.

    Runs tools/probe.sh there through the user's ssh, with its settings, and leaves no file. Raises InputError.
    """
    if where == "local":
        command, name = ["sh", "-s"], "this machine"
    else:
        match = _HOST.match(where.removeprefix("ssh://")) if where.startswith("ssh://") else None
        if match is None:
            raise InputError(f"'{where[:200]}' is neither 'local' nor ssh://user@host[:port].")
        port = ["-p", match["port"]] if match["port"] else []
        name = match["host"].strip("[]")
        command = ["ssh", *port, *(["-l", match["user"]] if match["user"] else []), "--", name, "sh -s"]
    try:
        done = subprocess.run(command, input=script(file).encode(), capture_output=True, timeout=SECONDS, check=False)
    except FileNotFoundError:
        raise InputError(f"there is no '{command[0]}' on this machine; install it (openssh-client has ssh).") from None
    except subprocess.TimeoutExpired:
        raise InputError(f"{name} did not answer within {SECONDS} s; try: {shlex.join(command[:-1])}") from None
    if done.returncode == 255 and command[0] == "ssh":
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise InputError(f"ssh does not reach {name}: {_printable(said[-1]) if said else 'it says nothing'}.")
    return parse(done.stdout, name)


def script(file: str | None = None, quick: bool = False) -> str:
    """What a POSIX shell there runs. file: one to read, whose reading is timed. quick: times nothing."""
    before = f"FILE={shlex.quote(file or '')}\nQUICK={'yes' if quick else ''}\n"
    return before + (files("runnel.tools") / "probe.sh").read_text("utf-8")


def parse(said: bytes, name: str) -> dict[str, str]:
    """What the script printed. Raises InputError for anything else."""
    lines = said[:MOST_BYTES].decode("utf-8", "replace").split("\n")
    if BEGIN not in lines or END not in lines[lines.index(BEGIN) :]:
        shown = _printable(" ".join(lines).strip())
        raise InputError(f"{name} did not answer as a Linux machine with a POSIX shell does; it said: '{shown}'.")
    first = lines.index(BEGIN)
    inner = lines[first + 1 : lines.index(END, first)]
    found = {key: "".join(c for c in value if c.isprintable()).strip() for key, _, value in
             (line.partition(" ") for line in inner)}  # fmt: skip
    for key in ("machine", "page", "cores", "ram_kib", "features"):
        if not found.get(key):
            raise InputError(f"{name} does not say its {key}; it needs Linux with /proc mounted.")
    return found


def as_target(found: Mapping[str, str], name: str | None = None) -> targets.Target:
    """A target of what a machine said. Raises InputError where it cannot be one."""
    chosen = name or re.sub(r"[^a-z0-9]+", "-", found.get("host", "").lower()).strip("-")[:64] or "probed"
    reported = set(found["features"].split())
    machine = found["machine"].lower()
    if machine.startswith("arm") or (machine == "aarch64" and found.get("bits") == "32"):
        triple, (cpu, features) = "armv7l-linux-gnueabihf", _armv7(found, reported)
    elif machine in ("aarch64", "arm64"):
        triple, (cpu, features) = "aarch64-linux-gnu", _aarch64(found, reported)
    elif machine in ("x86_64", "amd64"):
        triple, (cpu, features) = "x86_64-linux-gnu", _x86_64(reported)
    else:
        raise InputError(f"there are no kernels for a '{_printable(machine)}'; known are aarch64, armv7 and x86_64.")
    table = {
        "summary": _summary(found), "triple": triple, "glibc": _glibc(found), "cpu": cpu, "features": features,
        "cores": _whole(found["cores"]), "ram_mib": _whole(found["ram_kib"]) >> 10,
        "page_kib": _whole(found["page"]) >> 10, "storage_mb_s": _rate(found, "storage") or STORAGE_MB_S,
        "memory_mb_s": _rate(found, "memory"), "accelerators": _accelerators(found),
    }  # fmt: skip
    return targets.parse(chosen, table, chosen)


def write(target: targets.Target, path: Path) -> None:
    """The target as a file. Raises InputError where it cannot be written."""
    keys = ("summary", "triple", "glibc", "cpu", "features", "cores", "ram_mib", "page_kib", "storage_mb_s")
    values = {key: getattr(target, key) for key in (*keys, *(("memory_mb_s",) if target.memory_mb_s else ()))}
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
    for a in target.accelerators:
        text += "\n[[accelerators]]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in _facts(a).items())
    with replacing(path) as file:
        file.write(text.encode())


def _facts(a: targets.Accelerator) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": a.kind, "name": a.name}
    facts |= {"capability": a.capability} if a.kind == "cuda" else {}
    return facts | ({"tops": a.tops} if a.tops else {})


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _armv7(found: Mapping[str, str], reported: set[str]) -> tuple[str, list[str]]:
    if "asimd" not in reported and not {"neon", "vfpv4"} <= reported:
        raise InputError("this processor has no NEON with VFPv4, which kernels need.")
    cpu = _part(found)
    return cpu if cpu in ("cortex-a7", "cortex-a15", "cortex-a17") else "cortex-a7", ["+neon", "+vfp4"]


def _aarch64(found: Mapping[str, str], reported: set[str]) -> tuple[str, list[str]]:
    features = [f"{'+' if flag in reported else '-'}{name}" for name, flag in ARM.items()]
    return _part(found) or "generic", ["+neon", *features]


def _x86_64(reported: set[str]) -> tuple[str, list[str]]:
    needed: set[str] = set().union(*LEVELS.values())
    for level, flags in LEVELS.items():
        if needed <= reported:
            return level, ["+avx512vnni"] if level == "x86-64-v4" and "avx512_vnni" in reported else []
        needed -= flags
    raise InputError("this processor has no SSE4.2 (x86-64-v2), which kernels need.")


def _part(found: Mapping[str, str]) -> str:
    words = found.get("parts", "").lower().split()
    known = list(PARTS)
    there = [pair for pair in zip(words[::2], words[1::2]) if pair in PARTS]
    return PARTS[max(there, key=known.index)] if there else ""


def _accelerators(found: Mapping[str, str]) -> list[dict[str, Any]]:
    listed = [CHIPS[chip] for chip in found.get("compatible", "").split() if chip in CHIPS]
    capability, _, name = found.get("cuda", "").partition(", ")
    if not listed and re.match(r"\d{1,2}\.\d\Z", capability):
        listed = [targets.Accelerator("cuda", name[:64] or "CUDA", capability)]
    return [_facts(a) for a in listed]


def _glibc(found: Mapping[str, str]) -> str:
    match = re.match(r"glibc (2\.\d{1,2})", found.get("glibc", ""))
    return match[1] if match else OLDEST_GLIBC


def _summary(found: Mapping[str, str]) -> str:
    return (found.get("model") or found.get("name") or found["machine"])[:160] + ", as it was read"


def _rate(found: Mapping[str, str], key: str) -> float:
    """10⁶ bytes a second, 0 where it was not measured. Raises InputError where a named file could not be read."""
    said = found.get(key, "")
    if said == "unreadable":
        raise InputError("the file whose reading should be timed cannot be read there; name another one.")
    match = _COPIED.search(said)
    try:
        return round(int(match[1]) / float(match[2]) / 1e6, 1) if match else 0.0
    except (ValueError, ZeroDivisionError, OverflowError):
        return 0.0


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "." for c in text[:120])
