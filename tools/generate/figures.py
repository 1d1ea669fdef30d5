"""Figures of a generation, as data and as lines, in memory that does not grow with the text."""

from __future__ import annotations

import math
import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runnel.tools import terminal

FINENESS = 64  # buckets of an octave: percentiles are within 1.1 % of the true ones
SHORTEST, OCTAVES = 2.0**-30, 42


class Durations:
    """Counts of durations in buckets of a logarithmic scale, from a nanosecond to an hour."""

    def __init__(self) -> None:
        self._counts = array("q", bytes(8 * FINENESS * OCTAVES))
        self.count = 0
        self.total = 0.0

    def add(self, seconds: float) -> None:
        at = int(FINENESS * math.log2(max(seconds, SHORTEST) / SHORTEST))
        self._counts[min(at, len(self._counts) - 1)] += 1
        self.count += 1
        self.total += seconds

    def percentile(self, percent: float) -> float:
        """Seconds that ``percent`` of the durations do not exceed; 0 where there are none."""
        left = math.ceil(self.count * percent / 100)
        for at, count in enumerate(self._counts):
            left -= count
            if count and left <= 0:
                return SHORTEST * 2.0 ** ((at + 0.5) / FINENESS)
        return 0.0


@dataclass
class Timing:
    """What went into a text: seconds of all chunks of prompts, and durations of the tokens that were made."""

    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    decode: Durations = field(default_factory=Durations)


def resident_bytes() -> int:
    """Bytes of memory that this process has in RAM now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def figures(timing: Timing) -> dict[str, Any]:
    """tokens, tokens a second, and milliseconds of steps and of the prompt."""
    made = timing.decode
    return {
        "tokens": made.count,
        "tokens_per_s": made.count / made.total if made.total else 0.0,
        "ms_p50": made.percentile(50) * 1e3,
        "ms_p99": made.percentile(99) * 1e3,
        "prompt_tokens": timing.prompt_tokens,
        "prefill_ms": timing.prefill_seconds * 1e3,
    }


def lines(found: dict[str, Any]) -> str:
    """``figures`` with the cache's counts, for a person."""
    rows = {
        "tokens": f"{found['tokens']}, {found['tokens_per_s']:.1f} a second",
        "a token": f"{found['ms_p50']:.3f} ms median, {found['ms_p99']:.3f} ms p99",
        "prompt": f"{found['prompt_tokens']} tokens in {found['prefill_ms']:.1f} ms",
        "cache": f"{terminal.size(found['kv_bytes_end'])}, at the start {terminal.size(found['kv_bytes_start'])}",
        "memory": f"{terminal.size(found['rss_bytes_end'])}, at the start {terminal.size(found['rss_bytes_start'])}",
    }
    if (evictions := found.get("evictions")) is not None:
        rows["evictions"] = str(evictions)
    return terminal.pairs(rows)
