"""Control groups with a limit of memory that the kernel enforces: cgroup v2's where its memory controller is on, else
v1's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
FILES = ("memory.max", "memory.peak", 2), ("memory.limit_in_bytes", "memory.max_usage_in_bytes", 1)


class NoLimits(Exception):
    """No control group with a memory controller can be made here."""


@dataclass(frozen=True)
class Group:
    """A control group. version: 1 or 2."""

    folder: Path
    limit: str
    peak: str
    version: int

    def set_limit(self, limit: int) -> None:
        """From now on its processes may use ``limit`` bytes, cached pages of files among them."""
        (self.folder / self.limit).write_text(str(limit))

    def forget_peak(self) -> None:
        """Begin to look for the most memory anew, where the kernel can."""
        if self.version == 1:
            (self.folder / self.peak).write_text("0")

    @property
    def charged(self) -> int:
        """The most bytes that its processes were charged at a time."""
        return int((self.folder / self.peak).read_text())

    @property
    def used(self) -> int:
        """Bytes that its processes are charged now."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self.folder / name).read_text())

    @property
    def kills(self) -> int:
        """Processes that the kernel ended for lack of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        lines = dict(line.split() for line in (self.folder / name).read_text().splitlines())
        return int(lines["oom_kill"])

    def enter(self, pid: int = 0) -> None:
        """Put a process under the limit, this one by default."""
        (self.folder / "cgroup.procs").write_text(str(pid or os.getpid()))

    def run(self, command: Sequence[object], limit: int) -> tuple[subprocess.CompletedProcess[str], int]:
        """What a command did under a limit, and the most memory that it was charged."""
        self.set_limit(limit)
        self.forget_peak()
        words = [str(word) for word in command]
        done = subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=self.enter)
        return done, self.charged


def at(folder: Path) -> Group | None:
    """The group of a folder, None where it has no limit of memory."""
    for limit, peak, version in FILES:
        if (folder / limit).exists() and (folder / peak).exists():
            return Group(folder, limit, peak, version)
    return None


@contextmanager
def group(name: str) -> Iterator[Group]:
    """A new group below this process's own, which is removed in the end. Raises NoLimits."""
    lines = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    for parent in (V2 / lines.get("", "/").lstrip("/"), V1 / lines.get("memory", "/").lstrip("/")):
        folder = parent / f"{name}-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            if (made := at(folder)) is not None:
                yield made
                return
        finally:
            folder.rmdir()
    raise NoLimits("no control group with a memory controller can be made here (neither cgroup v2 nor v1)")


def forget(path: str | os.PathLike[str]) -> None:
    """Take a file out of the system's cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
