"""Whether a bundle fits a board, told before anything is sent: every mismatch is one sentence."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runnel.errors import InputError
from runnel.runtime import native
from runnel.runtime.bundle import Bundle, missing_features
from runnel.tools import terminal
from runnel.tools.elf_check import Elf

SIMD = frozenset({"neon", "vfpv4", "idiva"})  # what a kernel of the system calls asimd on an ARMv8 processor
MARGIN = 1 << 20  # of disk, for lists and names


@dataclass(frozen=True)
class Needs:
    """What a bundle and its program need. memory: bytes of state and scratch of one stream. disk: of a version."""

    path: str
    arch: str
    target: str
    features: tuple[str, ...]
    memory: int
    weights: int
    disk: int
    program: Elf


def memory_of(bundle: Bundle) -> tuple[int, int]:
    """Bytes of state and scratch of one stream, and of the weights, whatever processor the bundle is for.

    Raises BundleError where the plan does not fit the rest.
    """
    core, manifest = native.library(), bundle.manifest
    plan, weights = bundle.view("plan"), bundle.weights()
    image = bundle.view(f"kernels/{manifest['target']['name']}")  # is looked at and never run
    handle, said = ctypes.c_void_p(), ctypes.create_string_buffer(256)
    sizes = [part for array in (plan, weights, image) for part in (array.ctypes.data, array.nbytes)]
    digest = bytes.fromhex(manifest["program_hash"])
    code = core.rn_open(*sizes, digest, ctypes.byref(handle), said, len(said))
    if code != native.OK:
        why = said.value.decode("utf-8", "replace") or f"code {code}"
        raise InputError(f"the plan of '{bundle.path}' cannot be used: {why}; compile the model again.")
    try:
        return int(core.rn_state_bytes(handle)) + int(core.rn_scratch_bytes(handle)), weights.nbytes
    finally:
        core.rn_close(handle)


def refuse_mismatch(needs: Needs, found: Mapping[str, str], name: str) -> None:
    """Raises InputError where a board, as it was probed, cannot run the bundle."""
    wrong = list(_mismatches(needs, found))
    if wrong:
        raise InputError(f"'{needs.path}' cannot run on {name}: {'; '.join(wrong)}.")


def _mismatches(needs: Needs, found: Mapping[str, str]) -> Any:
    arch = board_arch(found)
    if arch != needs.arch:
        yield f"it is made for {needs.arch} ({needs.target}) and the board is {arch}; compile it for the board"
        return
    flags = set(found.get("features", "").split())
    if "asimd" in flags:
        flags |= SIMD
    if lacking := missing_features(needs.features, frozenset(flags)):
        yield f"it needs a processor with {', '.join(lacking)}, which the board's lacks; compile it for this board"
    if needs.program.arch != needs.arch:
        yield f"the program runnel-run is for {needs.program.arch}; build it for {needs.arch}"
    yield from _libraries(needs.program, found)
    page = _number(found, "page")
    if page > needs.program.align:
        yield f"the board has pages of {page} bytes and the program is aligned to {needs.program.align}; build it again"
    memory = _number(found, "available_kib") << 10 or _number(found, "ram_kib") << 10
    if memory and needs.memory > memory:
        yield (
            f"a stream needs {terminal.size(needs.memory)} of memory and the board has {terminal.size(memory)}; "
            "compile it with a smaller hop"
        )
    disk = _number(found, "disk")
    if "disk" in found and needs.disk + MARGIN > disk:
        yield f"it needs {terminal.size(needs.disk)} of disk and the board has {terminal.size(disk)} free; make room"


def _libraries(program: Elf, found: Mapping[str, str]) -> Any:
    """What a program that is not static asks of the board's C library."""
    if not program.needed:
        return
    floor = max((_version(v) for v in program.versions if v.startswith("GLIBC_2")), default=(0,))
    match = re.match(r"glibc (\d+\.\d+)", found.get("glibc", ""))
    wanted = ".".join(map(str, floor))
    if match is None:
        yield f"the program needs glibc {wanted} and the board has none; build it with: runnel targets runner"
    elif _version(match[1]) < floor:
        yield f"the program needs glibc {wanted} and the board has {match[1]}; build it with: runnel targets runner"


def board_arch(found: Mapping[str, str]) -> str:
    """A probed board's processor, as targets name it; what it says itself where that is another."""
    machine = found.get("machine", "").lower()
    if machine in ("aarch64", "arm64"):
        return "armv7" if found.get("bits") == "32" else "aarch64"
    if machine in ("armv7l", "armv7", "armv8l"):
        return "armv7"
    return {"amd64": "x86_64"}.get(machine, machine or "unknown")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def _number(found: Mapping[str, str], key: str) -> int:
    text = found.get(key, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
