"""What a target's file may say. Every key is checked, and what is wrong is said in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any

from runnel.errors import InputError

NATIVE = "native"  # a triple and a cpu that are read off this machine when a model is compiled
ARCHES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64",
          "arm": "armv7", "armv7": "armv7", "armv7l": "armv7", "armv7a": "armv7"}  # fmt: skip
PAGES = (4, 16, 64)
ACCELERATORS = ("cuda", "opencl", "npu", "dla", "vulkan")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z")
_FEATURE = re.compile(r"[+-][A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_GLIBC = re.compile(r"2\.(\d{1,2})\Z")


@dataclass(frozen=True)
class Accelerator:
    """Something beside the CPU. kind: of ACCELERATORS. capability: of CUDA, such as "8.7". tops: int8, 0 unknown."""

    kind: str
    name: str
    capability: str = ""
    tops: float = 0.0


@dataclass(frozen=True)
class Target:
    """What a bundle is made for.

    triple, cpu and features ("+dotprod") are LLVM's; NATIVE stands for this machine's. glibc: the oldest that the board
    may have. cores: of the CPU. ram_mib, page_kib: of memory, 1024 and 1024² bytes. storage_mb_s, memory_mb_s: 10⁶
    bytes read in a second from storage (to assume until measured) and from memory (0: not measured).
    source: the file it was read from.
    """

    name: str
    summary: str
    triple: str
    glibc: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    ram_mib: int
    page_kib: int
    storage_mb_s: float
    memory_mb_s: float = 0.0
    accelerators: tuple[Accelerator, ...] = ()
    source: str = ""

    @property
    def native(self) -> bool:
        """Whether it stands for this machine."""
        return self.triple == NATIVE

    @property
    def arch(self) -> str:
        """``"x86_64"``, ``"aarch64"`` or ``"armv7"``."""
        return ARCHES.get(self.triple.split("-")[0], self.triple)

    @property
    def os(self) -> str:
        """The operating system; the only one is linux."""
        return "linux"

    def to_dict(self) -> dict[str, Any]:
        """Everything, with what follows from the triple, as JSON takes it."""
        return {**asdict(self), "arch": self.arch, "os": self.os}


_REQUIRED = ("summary", "triple", "glibc", "cpu", "features", "cores", "ram_mib", "page_kib", "storage_mb_s")
_OPTIONAL = ("memory_mb_s", "accelerators")
_OF_NATIVE = ("summary", "triple", "storage_mb_s")


def parse(name: str, table: Mapping[str, Any], source: str = "") -> Target:
    """A target from the table of its file. Raises InputError with the first thing that is wrong, in one sentence.

    The file of this machine (triple = "native") has a summary and a storage_mb_s alone; the rest is read off it.
    """
    check = _Checker(source or f"targets/{name}.toml")
    check.need(bool(_NAME.match(name)), "its name", "has lower-case letters, digits, dots and dashes, as in rpi5.toml")
    native = table.get("triple") == NATIVE
    required = _OF_NATIVE if native else _REQUIRED
    check.keys(table, required, () if native else _OPTIONAL)
    summary = check.text(table, "summary", 200)
    storage = check.number(table, "storage_mb_s", 0.1, 1e6)
    if native:
        return Target(name, summary, NATIVE, "", NATIVE, (), 0, 0, 0, storage, source=source)
    triple = check.text(table, "triple", 64)
    arch, *rest = triple.split("-")
    abi = "gnueabihf" if ARCHES.get(arch) == "armv7" else "gnu"
    good = arch in ARCHES and rest[-2:] == ["linux", abi] and len(rest) in (2, 3)
    check.need(good, f"triple = '{triple}'", "is aarch64-linux-gnu, armv7l-linux-gnueabihf or x86_64-linux-gnu")
    glibc = check.text(table, "glibc", 8)
    match = _GLIBC.match(glibc)
    check.need(bool(match and 17 <= int(match[1]) <= 60), f"glibc = '{glibc}'", "is the oldest that it may be, as 2.28")
    cpu = check.text(table, "cpu", 64)
    check.need(bool(_WORD.match(cpu)) and cpu != NATIVE, f"cpu = '{cpu}'", "is LLVM's name of a processor")
    features = check.features(table["features"])
    page = check.whole(table, "page_kib", 1, 1024)
    check.need(page in PAGES, f"page_kib = {page}", "is 4, 16 or 64")
    return Target(
        name, summary, triple, glibc, cpu, features, check.whole(table, "cores", 1, 1024),
        check.whole(table, "ram_mib", 16, 1 << 30), page, storage,
        check.number(table, "memory_mb_s", 0, 1e8) if "memory_mb_s" in table else 0.0,
        tuple(check.accelerator(a) for a in check.tables(table.get("accelerators", []))), source,
    )  # fmt: skip


class _Checker:
    def __init__(self, source: str) -> None:
        self.source = source

    def need(self, condition: bool, what: str, rule: str) -> None:
        if not condition:
            raise InputError(f"the target '{self.source}': {what} is not right; it {rule}.")

    def keys(self, table: Mapping[str, Any], required: tuple[str, ...], optional: tuple[str, ...]) -> None:
        known = (*required, *optional)
        for key in table:
            if key not in known:
                near = get_close_matches(str(key), known, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}."
                raise InputError(f"the target '{self.source}' has the unknown key '{str(key)[:64]}'; {hint}")
        for key in required:
            if key not in table:
                raise InputError(f"the target '{self.source}' lacks the key '{key}'; see runnel targets show rpi5.")

    def text(self, table: Mapping[str, Any], key: str, most: int) -> str:
        value = table[key]
        good = isinstance(value, str) and 0 < len(value) <= most and value.isprintable()
        self.need(good, f"'{key}'", f"is a text of at most {most} characters on one line")
        return str(value)

    def whole(self, table: Mapping[str, Any], key: str, low: int, high: int) -> int:
        value = table[key]
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        self.need(good, f"'{key}'", f"is a whole number from {low} to {high}")
        return int(value)

    def number(self, table: Mapping[str, Any], key: str, low: float, high: float) -> float:
        value = table[key]
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
        self.need(good, f"'{key}'", f"is a number from {low:g} to {high:g}")
        return float(value)

    def features(self, value: Any) -> tuple[str, ...]:
        good = isinstance(value, list) and all(isinstance(f, str) and _FEATURE.match(f) for f in value)
        self.need(
            good and len(value) <= 256, "'features'", "is a list of LLVM's names with + or - before, as '+dotprod'"
        )
        bare = [f[1:] for f in value]
        twice = next((f for f in bare if bare.count(f) > 1), "")
        self.need(not twice, f"'features' with {twice} twice", "names each once")
        return tuple(value)

    def tables(self, value: Any) -> list[Mapping[str, Any]]:
        good = isinstance(value, list) and len(value) <= 16 and all(isinstance(v, dict) for v in value)
        self.need(good, "'accelerators'", "is a list of tables, [[accelerators]] before each")
        return list(value)

    def accelerator(self, table: Mapping[str, Any]) -> Accelerator:
        inner = _Checker(f"{self.source}: [[accelerators]]")
        kind = table.get("kind")
        inner.keys(table, ("kind", "name", *(("capability",) if kind == "cuda" else ())), ("tops",))
        inner.need(kind in ACCELERATORS, "'kind'", f"is one of {', '.join(ACCELERATORS)}")
        capability = inner.text(table, "capability", 8) if kind == "cuda" else ""
        inner.need(
            kind != "cuda" or bool(re.match(r"\d{1,2}\.\d\Z", capability)), "'capability'", "is CUDA's, as '8.7'"
        )
        tops = inner.number(table, "tops", 0, 1e5) if "tops" in table else 0.0
        return Accelerator(str(kind), inner.text(table, "name", 64), capability, tops)
