"""Lets the tests here build models with the helpers of the streaming tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streaming"))
