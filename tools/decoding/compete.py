"""Runtimes that take turns at decoding: a process each, one thread, one core."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any

import numpy as np

WARM = 1  # turns that are not counted


@dataclass(frozen=True)
class Entry:
    """runtime: a name of worker.RUNTIMES. words: what it is opened with."""

    name: str
    runtime: str
    path: Path
    words: Mapping[str, Any] = field(default_factory=dict)


class Process:
    """A worker. Raises RuntimeError when it ends."""

    def __init__(self, entry: Entry, core: int | None) -> None:
        words = dict(entry.words) | ({} if core is None else {"core": core})
        line = [sys.executable, "-m", "runnel.tools.decoding.worker", entry.runtime, str(entry.path), json.dumps(words)]
        self.name = entry.name
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()

    def ask(self, **what: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            said = self.process.communicate()[1].strip().splitlines()
            raise RuntimeError(f"{self.name} ended: {said[-1] if said else 'without a word'}")
        return dict(json.loads(line))

    def logits(self) -> np.ndarray:
        """Behind the prompt."""
        with tempfile.TemporaryDirectory() as folder:
            self.ask(do="start", to=f"{folder}/logits.npy")
            return np.asarray(np.load(f"{folder}/logits.npy"))


@dataclass(frozen=True)
class Result:
    """seconds: the median token of each turn. deviation: of the logits from the first entry's, of their range."""

    name: str
    seconds: list[float]
    deviation: float

    @property
    def token(self) -> float:
        return median(self.seconds)


def compete(entries: Sequence[Entry], rounds: int, tokens: int) -> list[Result]:
    """All entries in turns on the last core, behind the same prompt."""
    core = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    opened: list[Process] = []
    try:
        for entry in entries:
            opened.append(Process(entry, core))
        answers = [process.logits() for process in opened]
        turns: list[list[float]] = [[] for _ in opened]
        for _ in range(WARM + rounds):
            for process, kept in zip(opened, turns, strict=True):
                kept.append(median(process.ask(do="turn", tokens=tokens)["seconds"]))
    finally:
        for process in opened:
            process.__exit__(None, None, None)
    first = answers[0]
    apart = [float(np.abs(a - first).max() / np.ptp(first)) for a in answers]
    return [Result(e.name, t[WARM:], d) for e, t, d in zip(entries, turns, apart, strict=True)]
