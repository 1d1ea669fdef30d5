"""What a person sees while something runs and after: a progress line on a terminal, tables, sizes and times."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

BAR = 24
REDRAW_SECONDS = 0.05


class Progress:
    """A line that is drawn over itself on a terminal, and nothing in a pipe. Called with a stage and a fraction."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.drawn = 0.0
        self.stage = ""

    def __call__(self, stage: str, fraction: float | None = None) -> None:
        now = time.monotonic()
        if not self.live or (stage == self.stage and now - self.drawn < REDRAW_SECONDS):
            return
        self.drawn, self.stage = now, stage
        bar = ""
        if fraction is not None:
            full = round(BAR * min(max(fraction, 0.0), 1.0))
            bar = f"  [{'#' * full}{'.' * (BAR - full)}] {100 * fraction:3.0f} %"
        self.stream.write(f"\r\x1b[K{stage}{bar}")
        self.stream.flush()

    def note(self, text: str) -> None:
        """A line that stays, in a pipe too."""
        self.close()
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def close(self) -> None:
        """Wipe the line."""
        if self.live and self.drawn:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


def size(count: float) -> str:
    """Bytes as a person reads them: 3.2 KiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def duration(seconds: float) -> str:
    """A time as a person reads it: 12.3 µs, 4.56 ms, 1.2 s."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def frames(count: float, rate: float | None) -> str:
    """Frames, and milliseconds where the rate is known: 3071 frames (191.9 ms)."""
    text = f"{count:g} frame{'' if count == 1 else 's'}"
    return text if rate is None else f"{text} ({1000 * count / rate:.1f} ms)"


def pairs(rows: Mapping[str, str]) -> str:
    """One line an entry, values aligned."""
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns as wide as they need; the first ``left`` are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = []
    for row in (head, *rows):
        cells = [f"{c:<{w}}" if i < left else f"{c:>{w}}" for i, (c, w) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
