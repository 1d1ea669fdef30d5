"""``python -m runnel.tools.benchmark.worker MODULE FOLDER`` runs the contenders of one package in a process.

A line of JSON asks, a line answers. A runtime that ends the process ends no other.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

from runnel.tools.benchmark.case import Array, Case, load_case
from runnel.tools.benchmark.contenders.base import CannotRun, Contender, Run
from runnel.tools.benchmark.harness import contenders

TOLD_APART = 2, 0.05  # integer outputs are right where less than this share differs by more codes than this


def error_of(got: Array, wanted: Array, first: int, tolerance: float) -> float:
    """The largest error of got, of what is allowed: a part of the range of what is wanted. got starts with frame
    ``first``.

    Integers of other runtimes differ by one code here and there, which a softmax may magnify; of integer outputs the
    share that differs counts. Raises CannotRun where nothing can be compared.
    """
    start, stop = max(first, 0), min(first + len(got), len(wanted))
    if stop <= start:
        raise CannotRun(f"gives {len(got)} frames from {first} on: too few to compare")
    mine, theirs = got[start - first : stop - first], wanted[start:stop]
    if mine.size != theirs.size:
        raise CannotRun(f"gives frames of {list(got.shape[1:])}, not {list(wanted.shape[1:])}")
    error = np.abs(mine.reshape(-1).astype(np.float64) - theirs.reshape(-1).astype(np.float64))
    if wanted.dtype.kind != "f":
        return float((error > TOLD_APART[0]).mean() / TOLD_APART[1])
    scale = max(float(np.abs(wanted).max()), 1e-6)
    return float(np.inf if np.isnan(error).any() else error.max() / scale / tolerance)


def judged(run: Run, case: Case) -> float:
    """The largest error of any output, of what is allowed."""
    answers = run.answers()
    return max(error_of(answers[n][1], value, answers[n][0], case.tolerance) for n, value in case.expected().items())


def reason(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else words[:300] + " …"


class Worker:
    def __init__(self, module: str, folder: str) -> None:
        self.contenders: dict[str, Contender] = {c.name: c for c in contenders([module])[module]}
        self.case = load_case(folder)
        self.runs: dict[str, Run] = {}

    def open(self, name: str) -> dict[str, Any]:
        try:
            run = self.contenders[name].open(self.case)
            error = judged(run, self.case)
        except CannotRun as refused:
            return {"verdict": "cannot", "reason": reason(refused)}
        except Exception as fault:  # a runtime may raise anything about a model
            return {"verdict": "cannot", "reason": f"{type(fault).__name__}: {reason(fault)}"}
        if error > 1:
            return {"verdict": "wrong", "error": error}
        self.runs[name] = run
        return {"verdict": "right", "error": error}

    def turn(self, name: str, seconds: float) -> dict[str, Any]:
        return {"blocks": self.runs[name].turn(seconds)}

    def phases(self, name: str, period: int, rounds: int) -> dict[str, Any]:
        return {"phases": self.runs[name].phases(period, rounds)}  # type: ignore[attr-defined]


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a runtime prints is no reply
    worker = Worker(sys.argv[1], sys.argv[2])
    for line in sys.stdin:
        asked = json.loads(line)
        reply = getattr(worker, asked.pop("do"))(**asked)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
