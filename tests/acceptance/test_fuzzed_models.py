"""Altered ONNX models are taken or refused in words, in a process of their own with bounded memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FUZZER = Path(__file__).parent / "fuzz_models.py"
COUNT = int(os.environ.get("RUNNEL_MUTANTS", "0"))
AT_MOST, SECONDS = 100_000, 15
KEPT = (57, 377, 560, 590, 827, 1544, 1933, 3861)
"""Mutants that once ended in an error that is not for a person."""


def fuzz(first: int, count: int, seconds: float | None = None) -> list[str]:
    arguments = [str(first), str(count), *([] if seconds is None else [str(seconds)])]
    ran = subprocess.run([sys.executable, str(FUZZER), *arguments], capture_output=True, text=True, check=False)
    lines = ran.stdout.splitlines()
    assert ran.returncode == 0, f"mutant {lines[-1] if lines else '?'} ended the process: {ran.stderr[-300:]}"
    assert lines[-1] == "done"
    return lines[:-1]


def test_altered_models_are_refused_in_words() -> None:
    lines = fuzz(10_000, COUNT) if COUNT else fuzz(10_000, AT_MOST, SECONDS)
    assert not [line for line in lines if "WRONG" in line]
    assert len(lines) > 50
    assert sum("taken" in line for line in lines) > len(lines) // 100


def test_kept() -> None:
    for mutant in KEPT:
        assert "WRONG" not in fuzz(mutant, 1)[0]
