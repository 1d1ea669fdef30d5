"""Say what this machine has and lacks, and how to get what it lacks."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from runnel import runtime, targets
from runnel.errors import InputError
from runnel.tools import terminal, toolchain

LIBRARY = "_lib/librunnel.so"


@dataclass(frozen=True)
class Finding:
    """One thing that runnel uses: what was found (None: it is missing), what it is for, and how to get it."""

    name: str
    found: str | None
    purpose: str
    remedy: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def _package(distribution: str, purpose: str, remedy: str) -> Finding:
    try:
        return Finding(distribution, metadata.version(distribution), purpose, remedy)
    except metadata.PackageNotFoundError:
        return Finding(distribution, None, purpose, remedy)


def _compiler() -> str | None:
    for name in ("c++", "g++", "clang++"):
        if path := shutil.which(name):
            return path
    return "zig c++ (the ziglang package)" if find_spec("ziglang") else None


def _core() -> str | None:
    found = (Path(folder) / LIBRARY for folder in runtime.__path__)
    return next((str(path) for path in found if path.exists()), None)


def _boards() -> list[Finding]:
    """What makes and tries programs for boards."""
    found = []
    for name in ("aarch64", "armv7"):
        try:
            chain = toolchain.find(targets.load(name)).name
        except InputError:
            chain = None
        remedy = f"pip install ziglang, or set {toolchain.NAMED} to a cross compiler"
        found.append(Finding(f"tool chain for {name}", chain, "building the core for a board", remedy))
        qemu = {"aarch64": "qemu-aarch64", "armv7": "qemu-arm"}[name]
        path = shutil.which(qemu) or shutil.which(f"{qemu}-static")
        found.append(Finding(f"emulated {name}", path, "running bundles of a board here", "apt-get install qemu-user"))
    return [*found, Finding("ssh", shutil.which("ssh"), "reading and reaching boards", "install openssh-client")]


def findings() -> list[Finding]:
    """Everything that is looked for, in the order of need."""
    laptop = "pip install 'runnel[compiler]'"
    return [
        Finding("Python", platform.python_version(), "everything", "install Python 3.10 or newer"),
        Finding("processor", platform.machine(), "kernels are made for it", ""),
        _package("numpy", "everything", "pip install numpy"),
        Finding("native core", _core(), "running bundles", "reinstall runnel where a C++ compiler or ziglang is found"),
        Finding("C++ compiler", _compiler(), "building the native core", "install g++, or: pip install ziglang"),
        _package("onnx", "compiling models", laptop),
        _package("onnxruntime", "proving models; the reference backend", laptop),
        _package("apache-tvm", "compiling models to machine code", laptop),
        *_boards(),
        _package("ai-edge-litert", "TensorFlow Lite files", "pip install 'runnel[tflite]'"),
        _package("cryptography", "signing bundles", "pip install 'runnel[deploy]'"),
        _package("pyserial", "boards behind a serial line", "pip install 'runnel[deploy]'"),
        _package("soxr", "sound whose rate is not the model's", "pip install soxr"),
        _package("matplotlib", "the demo's picture", "pip install 'runnel[demo]'"),
    ]


def main(args: argparse.Namespace) -> int:
    found = findings()
    if args.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        rows = [[f.name, f.found or f"missing: {f.remedy}", f.purpose] for f in found]
        print(terminal.table(["what", "found", "for"], rows, left=3))
    return 0
