"""Tells what instructions of x86-64, aarch64 and ARMv7 do: work on vectors, on one element, or neither."""

from __future__ import annotations

import re

VECTOR, SCALAR, OTHER = "vector", "scalar", "other"

# Arithmetic on one float; bytes and half words, which are never addresses; one lane put into or taken out of a vector;
# stores of one element. Loads of one float32 are not: what is broadcast is loaded so.
_X86_ARITHMETIC = re.compile(
    r"^v?(add|sub|mul|div|min|max|sqrt|round|rndscale|u?comi|cmp\w*|cvt\w*|cvtt\w*|fn?m(add|sub)\d+|getexp|scalef|range"
    r"|reduce|rcp\w*|rsqrt\w*)s[sdh]$|^v?cvtt?s[sdh]2u?si[lq]?$|^v?cvtu?si2s[sdh][lq]?$"
)
_X86_ELEMENT = re.compile(r"^(mov[sz][bw][wlq]|movsx|movzx|v?p(insr|extr)[bwd]|v?(insert|extract)ps)$")
_X86_STORE = re.compile(r"^(v?movs[sd]\s+%xmm|mov[bwl]?\s+%(e|[a-d][lxh]\b|[sd]i|bp|r\d+[dwb]))[^(]*,[^,]*\((?!%rsp)")
_ARM64_ELEMENT = re.compile(r"^(ldr|ldur|str|stur)s?[bh]$|^(smov|umov|ins)$")
_ARM32_ELEMENT = re.compile(r"^(ldr|str)s?[bh](eq|ne|lt|le|gt|ge|hs|lo|hi|ls|mi|pl)?$")


def kind_of(arch: str, text: str) -> str:
    """VECTOR, SCALAR or OTHER of an instruction as disassemblers write it (of x86-64 in AT&T's form)."""
    name, _, operands = text.partition("\t" if "\t" in text else " ")
    return _KINDS[arch](name.strip(), operands.split("#")[0].strip())


def _x86(name: str, operands: str) -> str:
    if _X86_ARITHMETIC.match(name) or _X86_ELEMENT.match(name):
        return SCALAR
    if _X86_STORE.match(f"{name} {operands}"):
        return SCALAR
    return VECTOR if re.search(r"%[xyz]mm", operands) and not re.match(r"^v?mov(s[sd]|d)$", name) else OTHER


def _arm64(name: str, operands: str) -> str:
    first = operands.split(",")[0].strip()
    if re.search(r"v\d+\.(\d|16)", operands):
        if name in ("ins", "umov", "smov", "mov") and re.search(r"v\d+\.[bhsd]\[", operands):
            return SCALAR
        return VECTOR
    if re.search(r"v\d+\.[bhsd]\}?\[\d+\]", operands):  # one lane, of which arithmetic takes a copy
        return SCALAR if name in ("ins", "umov", "smov", "mov", "st1", "ld1") else VECTOR
    if _ARM64_ELEMENT.match(name):
        return SCALAR
    if name in ("str", "stur", "stp"):
        if re.match(r"^[qd]\d", first):
            return VECTOR
        return SCALAR if re.match(r"^[bhs]\d", first) or (first.startswith("w") and "sp" not in operands) else OTHER
    if name in ("ldr", "ldur", "ldp"):
        return VECTOR if first.startswith("q") else SCALAR if re.match(r"^[bh]\d", first) else OTHER
    if re.match(r"^[bhsd]\d", first) or re.search(r"\b[hsd]\d+", operands):
        return SCALAR if name != "movi" else VECTOR
    return OTHER


def _arm32(name: str, operands: str) -> str:
    first = operands.split(",")[0].strip().strip("{} ")
    if _ARM32_ELEMENT.match(name):
        return SCALAR
    if not name.startswith("v"):
        return OTHER
    if name.startswith(("vldm", "vstm", "vpush", "vpop", "vmrs", "vmsr")):
        return OTHER
    if re.search(r"d\d+\[\d\]", operands):
        lane = name.startswith(("vst1", "vmov", "vld1.8", "vld1.16"))  # of 32 bits, a lane may be four codes
        return SCALAR if lane else VECTOR
    if name.startswith("vldr"):
        return OTHER
    if name.startswith("vstr"):
        return SCALAR
    if re.match(r"^s\d", first) or re.search(r"\bs\d+\b", operands):
        return SCALAR
    if ".f64" in name:
        return SCALAR
    return VECTOR if re.search(r"\b[dq]\d+", operands) else OTHER


_KINDS = {"x86_64": _x86, "aarch64": _arm64, "armv7": _arm32}
