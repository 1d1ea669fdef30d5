"""What this machine's processor is and can do, as the system tells it."""

from __future__ import annotations

import platform
import struct
import sys
from collections.abc import Iterable
from functools import cache

# LLVM's names of processor features that the kernel of the system calls otherwise.
FLAGS = {
    "dotprod": "asimddp", "fullfp16": "asimdhp", "rdm": "asimdrdm", "fp-armv8": "fp", "crc": "crc32", "lse": "atomics",
    "vfp4": "vfpv4", "hwdiv-arm": "idiva", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "sse3": "pni", "bmi": "bmi1",
    "lzcnt": "abm", "avx512vnni": "avx512_vnni", "avx512vbmi2": "avx512_vbmi2", "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq", "avx512bf16": "avx512_bf16", "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
}  # fmt: skip
ADVANCED_SIMD = "asimd"  # an ARMv8 processor reports this for what LLVM calls neon, vfp4 and hwdiv-arm
# Bits of the kernel's interface on ARM (asm/hwcap.h), by the words of /proc/cpuinfo. An emulator gives those of the
# processor that it emulates, and may show the /proc/cpuinfo of the machine below.
CAPABILITIES = {
    "aarch64": (
        {0: "fp", 1: "asimd", 3: "aes", 6: "sha2", 7: "crc32", 8: "atomics", 9: "fphp", 10: "asimdhp", 12: "asimdrdm",
         13: "jscvt", 14: "fcma", 15: "lrcpc", 17: "sha3", 20: "asimddp", 22: "sve", 23: "asimdfhm"},
        {1: "sve2", 13: "i8mm", 14: "bf16"},
    ),
    "armv7": (
        {6: "vfp", 12: "neon", 13: "vfpv3", 16: "vfpv4", 17: "idiva", 18: "idivt", 19: "vfpd32", 23: "asimdhp",
         24: "asimddp", 27: "i8mm"},
        {},
    ),
}  # fmt: skip
HWCAPS = 16, 26  # AT_HWCAP, AT_HWCAP2


@cache
def processor() -> tuple[str, frozenset[str]]:
    """This machine's architecture and the features that the system reports (none where it reports none)."""
    arch = platform.machine().lower()
    arch = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "armv7", "armv8l": "armv7"}.get(arch, arch)
    if arch == "aarch64" and sys.maxsize < 1 << 32:
        arch = "armv7"  # a 32-bit system on a 64-bit kernel
    flags = _capabilities(arch) or _listed()
    if ADVANCED_SIMD in flags:
        flags |= {"neon", "vfpv4", "idiva"}
    return arch, frozenset(flags)


def _capabilities(arch: str) -> set[str]:
    """What the kernel told this process of an ARM processor; none on others, or where it cannot be read."""
    if arch not in CAPABILITIES:
        return set()
    try:
        with open("/proc/self/auxv", "rb") as file:
            data = file.read()
    except OSError:
        return set()
    pair = struct.Struct("@LL")
    told = dict(pair.iter_unpack(data[: len(data) // pair.size * pair.size]))
    words = [(told.get(key, 0), bits) for key, bits in zip(HWCAPS, CAPABILITIES[arch])]
    return {name for word, bits in words for bit, name in bits.items() if word >> bit & 1}


def _listed() -> set[str]:
    """The words of /proc/cpuinfo."""
    flags: set[str] = set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.lower().startswith(("flags", "features")):
                    flags.update(line.partition(":")[2].split())
    except OSError:
        pass
    return flags


def missing_features(needed: Iterable[str], flags: frozenset[str]) -> list[str]:
    """Those of LLVM's features that a processor does not report; none where it reports nothing at all."""
    return [f for f in needed if FLAGS.get(f, f) not in flags] if flags else []
