"""Puts the helpers of this folder and of tests/streaming and tests/runtime on the path."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "streaming"), str(HERE.parent / "runtime")]
