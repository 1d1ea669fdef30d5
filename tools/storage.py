"""How fast storage is read: sizes of reads times how many run together, and what is kept of it for the planner."""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runnel.errors import InputError
from runnel.files import replacing
from runnel.runtime import native
from runnel.runtime.paging import WAYS, size
from runnel.runtime.storage_notes import known, notes
from runnel.targets.schema import Target

if TYPE_CHECKING:  # a board has no compiler
    from runnel.compiler.streaming.report import Report

SIZES = (4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20)
DEPTHS = (1, 4, 8)
SPAN = 128 << 20  # bytes of the file that is made where a folder is given
BUDGET = 24 << 20  # bytes that one point of the table reads, or fewer
QUICK = 256 << 10  # bytes of a read where storage is measured for a moment
KNEE = 0.9  # of the highest bandwidth
OWN, MAPPED = 3 << 20, 512  # bytes of the runtime itself; and of weights for which the system keeps one more
BUFFERS = 5 << 20  # bytes of buffers that reads go to, where weights do not fit


@dataclass(frozen=True)
class Speed:
    """One point: bytes of a read, how many run together, and 10⁶ bytes a second."""

    bytes: int
    depth: int
    mb_s: float


@dataclass(frozen=True)
class Table:
    """What was measured of the storage below a path. direct: past the system's cache."""

    device: int
    io: str
    direct: bool
    speeds: tuple[Speed, ...]

    @property
    def best(self) -> Speed:
        return max(self.speeds, key=lambda s: s.mb_s)

    @property
    def knee(self) -> Speed:
        """The fewest bytes on their way (size times depth) that give nine tenths of the best."""
        enough = [s for s in self.speeds if s.mb_s >= KNEE * self.best.mb_s]
        return min(enough, key=lambda s: (s.bytes * s.depth, s.depth))

    def to_dict(self) -> dict[str, object]:
        points = [{"bytes": s.bytes, "depth": s.depth, "mb_s": s.mb_s} for s in self.speeds]
        knee = {"bytes": self.knee.bytes, "depth": self.knee.depth, "mb_s": self.knee.mb_s}
        return {"io": self.io, "direct": self.direct, "mb_s": self.best.mb_s, "knee": knee, "speeds": points}


def measure(path: str | Path, way: str = "auto", threads: int = 0) -> Table:
    """The table of a file, or of a folder, in which a file is made and removed. Raises InputError."""
    with _file(Path(path)) as file:
        span = file.stat().st_size // 4096 * 4096
        if span < 4 * SIZES[0]:
            raise InputError(f"'{file}' is too small to be measured; name a larger file, or a folder.")
        speeds, direct = [], ctypes.c_int32()
        for size in (s for s in SIZES if s <= span):
            for depth in DEPTHS:
                count = max(min(BUDGET // size, 512), depth)
                _forget(file)
                spent = ctypes.c_int64()
                code = native.library().rn_read_speed(
                    os.fsencode(file), WAYS.index(way), threads, span, size, depth, count, ctypes.byref(spent),
                    ctypes.byref(direct),
                )  # fmt: skip
                if code != native.OK:
                    raise InputError(f"'{file}' cannot be read: {native.message(code)}; name another file or way.")
                speeds.append(Speed(size, depth, size * count / max(spent.value, 1) * 1e3))
        return Table(file.stat().st_dev, way, bool(direct.value), tuple(speeds))


@contextmanager
def _file(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise InputError(f"there is no file or folder '{path}'; name one on the storage to be measured.")
    try:
        with tempfile.NamedTemporaryFile(prefix=".runnel-", dir=path) as file:
            block = os.urandom(1 << 20)
            for _ in range(SPAN >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            yield Path(file.name)
    except OSError as error:
        raise InputError(f"no file can be made in '{path}': {error.strerror}; name a file that is there.") from None


def quick_mb_s(path: str | Path, way: str = "auto", threads: int = 0) -> float | None:
    """10⁶ bytes a second of a file, measured for a moment; None where it is too small."""
    span, count = os.stat(path).st_size, 32
    if span < QUICK:
        return None
    best, spent, direct = 0, ctypes.c_int64(), ctypes.c_int32()
    for _ in range(3):  # the best: what others read meanwhile is not the storage's fault
        code = native.library().rn_read_speed(
            os.fsencode(path), WAYS.index(way), threads, span, QUICK, 4, count, ctypes.byref(spent),
            ctypes.byref(direct),
        )  # fmt: skip
        if code != native.OK:
            return None
        best = min(best, spent.value) if best else spent.value
    return QUICK * count / max(best, 1) * 1e3


def _forget(path: Path) -> None:
    """Takes a file out of the system's cache, for storage that is not read past it."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def keep(table: Table) -> None:
    """Remembers a table for the storage that it is about."""
    path, found = notes(), known()
    found[str(table.device)] = table.to_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())


def kept_mb_s(path: str | Path) -> float | None:
    """10⁶ bytes a second of the storage below ``path`` as it was measured, None if it never was."""
    try:
        value = known()[str(os.stat(path).st_dev)]["mb_s"]
    except (OSError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, (int, float)) else None


def own_bytes(report: Report) -> int:
    """What runnel-run counts beside weights, states and buffers."""
    assert report.weights
    return OWN + sum(report.weights[what] for what in ("streamed", "tables", "experts", "neurons")) // MAPPED


def predict(report: Report, target: Target, ram: int, here: bool) -> dict[str, float | str]:
    """What a budget means before anything is bought: the mode, bytes that a step reads, and the most steps a second
    that storage (the target's, or this machine's as it was measured) and memory allow.

    A step is whatever goes through the layers together: a frame, or a hop of frames. Experts count as if each were as
    likely to be chosen as any other: those that memory has no room for are read for each frame. Raises InputError for a
    model without native kernels.
    """
    if not report.weights:
        why = report.native or "it has no weights"
        raise InputError(f"the weights of '{report.name}' cannot pass through memory: {why}; leave --ram out.")
    streamed, tables = report.weights["streamed"], report.weights["tables"]
    room = ram - own_bytes(report) - report.state_bytes
    experts, chosen = report.weights["experts"], report.weights["chosen"]
    fits = streamed + tables + experts <= room
    kept = max(0, min(experts, room - streamed)) / experts if experts else 1.0
    whole = streamed <= room and experts  # no buffers are needed then
    pinned = streamed + tables if fits else max(0, min(room - (0 if whole else BUFFERS), streamed))
    read = 0 if fits else max(streamed - pinned, 0) + round((1 - kept) * chosen)
    storage = (kept_mb_s(".") if here else None) or target.storage_mb_s
    found: dict[str, float | str] = {
        "mode": "all in RAM" if read == 0 else f"pinned {size(pinned)}, streaming {size(read)} per step",
        "ram_budget": ram,
        "pinned_bytes": pinned,
        "streamed_bytes_per_step": read,
        "storage_mb_s": storage,
    }
    if experts:
        found["experts_kept"] = kept
    if read:
        found["most_steps_per_s"] = storage * 1e6 / read
    elif target.memory_mb_s:
        found["most_steps_per_s"] = target.memory_mb_s * 1e6 / max(streamed, 1)
    if report.rate is not None and read:
        steps = report.rate / report.natural_hop
        found["steps_per_s_needed"] = steps
        found["real_time"] = "yes" if float(found["most_steps_per_s"]) >= steps else "no: storage is too slow"
    return found
