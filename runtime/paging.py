"""Weights that lie in the bundle's file and pass through memory under a budget (docs/memory.md)."""

from __future__ import annotations

import ctypes
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runnel.errors import InputError, SlowStorage, StreamError
from runnel.runtime import native
from runnel.runtime.storage_notes import read_bytes

if TYPE_CHECKING:
    from runnel.runtime.bundle import Bundle

WAYS = ("auto", "io_uring", "threads", "plain")
KEPT = ("lru", "lfu", "cost", "predict", "none")
"""What leaves memory for an expert that was chosen and is not there."""
AHEAD = ("auto", "off", "on")
"""Whether experts are read before they are chosen."""
SLOW = ("stop", "warn")
STEPS = ("rn_push_on", "rn_push_many_on", "rn_prefill", "rn_flush")
UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
AUTO_SHARE = 0.8  # of what is free
STALLS = 96  # quarters of octaves from a microsecond on
CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class _Segment(ctypes.Structure):
    _fields_ = [
        ("offset", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("crc32c", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]  # fmt: skip


class _Paging(ctypes.Structure):
    _fields_ = [
        ("path", ctypes.c_char_p), ("offset", ctypes.c_uint64), ("segments", ctypes.POINTER(_Segment)),
        ("segment_count", ctypes.c_int32), ("io", ctypes.c_int32), ("threads", ctypes.c_int32),
        ("streams", ctypes.c_int32), ("ram", ctypes.c_uint64),
        ("elsewhere", ctypes.c_uint64), ("patience_us", ctypes.c_int64),
        ("slow", ctypes.c_int32), ("priority", ctypes.c_int32), ("budget", ctypes.c_void_p),
        ("units", ctypes.c_int32), ("ahead", ctypes.c_int32), ("read_bytes", ctypes.c_uint64),
    ]  # fmt: skip


NUMBERS = (
    "ram", "least", "peak", "weights", "pinned", "streamed", "tables", "buffers", "reads", "bytes_read", "uses",
    "waits", "stall_ns", "dropped", "rows", "passes", "late",
    "shared", "shared_used", "shared_least",
)  # fmt: skip


UNIT_NUMBERS = (
    "all", "room", "chosen", "found", "late", "reads", "bytes_read", "stall_ns", "guessed", "guessed_used", "gap_ns",
    "read_ns",
)  # fmt: skip


class _UnitFacts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in UNIT_NUMBERS]


class _Facts(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint64) for name in NUMBERS),
        ("stalls", ctypes.c_uint64 * STALLS),
        *((name, ctypes.c_int32) for name in ("io", "threads", "direct", "reserved")),
        ("units", _UnitFacts),
    ]


@dataclass(frozen=True)
class UnitFacts:
    """Weights that are read when they are chosen, such as experts.

    all, room: bytes of all of them, and of those that memory has room for. Since the program was opened: chosen; found,
    those that were there, and late, those on their way; reads and bytes_read; stall_ns that steps waited for them;
    guessed, read before they were chosen, and guessed_used; gap_ns, from there to the choice, and read_ns, for how long
    of that they were read.
    """

    all: int
    room: int
    chosen: int
    found: int
    late: int
    reads: int
    bytes_read: int
    stall_ns: int
    guessed: int
    guessed_used: int
    gap_ns: int
    read_ns: int

    @property
    def hit_rate(self) -> float:
        """The share of what was chosen that was there."""
        return self.found / self.chosen if self.chosen else 1.0


@dataclass(frozen=True)
class PagingFacts:
    """The weights of a program under a budget.

    ram, least, peak: bytes of the budget, of the smallest possible one, and of all that is used at most. weights,
    pinned, streamed, tables, buffers: bytes of weights; of those that stay in memory, that are read in every pass, and
    of which only rows are read; of buffers. Since the program was opened: reads and bytes_read; uses of segments that
    pass, of which waits had to be waited for, stall_ns in all; dropped: read and not used; rows of tables; passes over
    the instructions; late: waits beyond the patience. shared: bytes of the budget that programs share, of which this
    one may use ``ram`` now; shared_used and shared_least: what they all use at most and need at least. io: how reads
    run; direct: past the system's cache.
    """

    ram: int
    least: int
    peak: int
    weights: int
    pinned: int
    streamed: int
    tables: int
    buffers: int
    reads: int
    bytes_read: int
    uses: int
    waits: int
    stall_ns: int
    dropped: int
    rows: int
    passes: int
    late: int
    shared: int
    shared_used: int
    shared_least: int
    io: str
    threads: int
    direct: bool
    stalls: tuple[int, ...]
    units: UnitFacts

    @property
    def stall_ms_p50(self) -> float:
        """Milliseconds that half of the passes did not wait longer for, within a fifth."""
        left = (sum(self.stalls) + 1) // 2
        for at, count in enumerate(self.stalls):
            left -= count
            if count and left <= 0:
                return 2 ** ((at + 0.5) / 4) / 1e3 if at else 0.0
        return 0.0

    def figures(self, seconds: float) -> dict[str, object]:
        """What programs are told, after ``seconds`` of steps."""
        units = self.units
        experts = {
            "expert_bytes": units.all, "expert_room": units.room, "expert_hit_rate": units.hit_rate,
            "expert_bytes_read": units.bytes_read, "expert_stall_ms": units.stall_ns / 1e6,
            "experts_foreseen": units.guessed, "experts_foreseen_used": units.guessed_used,
        }  # fmt: skip
        return (experts if units.all else {}) | {
            "mode": self.mode,
            "ram_budget": self.shared or self.ram,
            "ram_peak": self.peak,
            "pinned_bytes": self.pinned,
            "streamed_bytes_per_step": self.streamed,
            "read_bytes_per_s": self.bytes_read / seconds if seconds > 0 else 0.0,
            "stall_ms_p50": self.stall_ms_p50,
            "hit_rate": self.hit_rate,
            "late_reads": self.late,
            "io": self.io,
            "direct": self.direct,
            "interpreter_bytes": interpreter_bytes(),
        }

    @property
    def mode(self) -> str:
        """How the weights are kept, in words."""
        units = self.units
        if not self.streamed and not self.tables and units.room == units.all:
            return "all in RAM"
        experts = f", {size(units.room)} of {size(units.all)} of experts" if units.all else ""
        return f"pinned {size(self.pinned)}, streaming {size(self.streamed)} per step{experts}"

    @property
    def hit_rate(self) -> float:
        """The share of the uses of passing segments that had not to be waited for."""
        return 1 - self.waits / self.uses if self.uses else 1.0


@dataclass(frozen=True)
class Budget:
    """What a program's weights may use.

    ram: bytes for everything; streams: whose states count; patience: seconds that a read may take, None for any time;
    slow: what becomes of a longer one. shared: the core's budget, for all programs that are opened with this one.
    experts: which of KEPT; ahead: which of AHEAD.
    """

    ram: int
    way: str = "auto"
    threads: int = 0
    streams: int = 1
    patience: float | None = None
    slow: str = "stop"
    shared: SharedBudget | None = None
    experts: str = "cost"
    ahead: str = "auto"


class SharedBudget:
    """Memory that programs share, as the core keeps it. It lives as long as one of them."""

    def __init__(self, ram: int) -> None:
        self.handle = ctypes.c_void_p()
        if native.library().rn_budget_open(ram, ctypes.byref(self.handle)) != native.OK:
            raise MemoryError

    def __del__(self) -> None:
        if self.handle:
            native.library().rn_budget_close(self.handle)


def size(count: int) -> str:
    """Bytes in words."""
    for unit, step in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"


def parse_ram(given: int | str) -> int:
    """Bytes of 268435456, "256M", "1.5G" or "auto". Raises InputError."""
    if isinstance(given, int) and not isinstance(given, bool) and given > 0:
        return given
    if given == "auto":
        return int(AUTO_SHARE * free_bytes())
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]?)(?:i?B)?", str(given).strip(), re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise InputError(f"'{given}' is no amount of memory; give one such as 256M or 1.5G, or auto.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def free_bytes() -> int:
    """What the system, or the control group that this process is in, has left."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    left = int(fields["MemAvailable"].split()[0]) << 10
    for limit, used in CGROUPS:
        try:
            most, now = Path(limit).read_text().strip(), int(Path(used).read_text())
        except (OSError, ValueError):
            continue
        if most.isdigit():
            left = min(left, max(int(most) - now, 0))
    return left


def interpreter_bytes() -> int:
    """What this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Paged:
    """Weights of a bundle as the core is told of them."""

    bytes: int
    arguments: _Paging


def paged(bundle: Bundle, budget: Budget, priority: int = 0) -> Paged:
    """Raises BundleError for a bundle without weights."""
    entry = bundle.weights_entry()
    listed = bundle.manifest["weights"]["segments"]
    table = (_Segment * len(listed))(*[_Segment(s["offset"], s["bytes"], s["crc32c"], 0) for s in listed])
    patience = 0 if budget.patience is None else max(1, int(budget.patience * 1e6))
    told = _Paging(
        os.fsencode(bundle.path), entry.offset, table, len(listed), WAYS.index(budget.way), budget.threads,
        budget.streams, budget.ram, 0, patience, SLOW.index(budget.slow), priority,
        budget.shared.handle if budget.shared is not None else None, KEPT.index(budget.experts),
        AHEAD.index(budget.ahead), read_bytes(bundle.path),
    )  # fmt: skip
    return Paged(entry.size, told)


class Watched:
    """The core's functions for a program that may be slow: it is said once, after the first step that was."""

    def __init__(self, core: Any, handle: ctypes.c_void_p, name: str, patience: float | None) -> None:
        self._core, self._handle, self._name, self._patience, self._said = core, handle, name, patience, False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._core, name)
        return self._stepping(found) if name in STEPS else found

    def _stepping(self, call: Callable[..., int]) -> Callable[..., int]:
        def step(*arguments: object) -> int:
            code = call(*arguments)
            if not self._said:
                self._look()
            return code

        return step

    def _look(self) -> None:
        facts = status(self._handle)
        if facts is None or not facts.late:
            return
        self._said = True
        warnings.warn(
            f"storage is slow: '{self._name}' waited longer than {self._patience} s for weights and goes on; by now it "
            f"waited {facts.stall_ns / 1e9:.3f} s in {facts.passes} passes, {size(facts.streamed)} each.",
            SlowStorage, stacklevel=4,
        )  # fmt: skip


def status(handle: ctypes.c_void_p) -> PagingFacts | None:
    """The facts of an open program, None where all its weights are in memory."""
    found = _Facts()
    if native.library().rn_paging_status(handle, ctypes.byref(found)) != native.OK:
        return None
    numbers = {name: int(getattr(found, name)) for name in NUMBERS}
    return PagingFacts(
        **numbers,
        io=WAYS[found.io],
        threads=found.threads,
        direct=bool(found.direct),
        stalls=tuple(found.stalls),
        units=UnitFacts(**{name: int(getattr(found.units, name)) for name in UNIT_NUMBERS}),
    )


def move(handle: ctypes.c_void_p, ram: int | str, streams: int) -> None:
    """Gives a program another budget. Raises InputError."""
    if status(handle) is None:
        raise InputError("all weights of this program are in memory; load it with a budget of RAM to change that.")
    code = native.library().rn_set_ram(handle, parse_ram(ram), streams)
    if code == native.STORAGE:
        said = native.library().rn_paging_error(handle).decode(errors="replace")
        raise StreamError(f"{said}; set the budget again when the storage answers.")
    if code != native.OK:
        said = native.library().rn_paging_error(handle).decode(errors="replace")
        raise InputError(f"a budget of {ram} is too small: {said}; give these.")
