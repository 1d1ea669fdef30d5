"""What `runnel flash-bench` measured of this machine's storage, as it was kept."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

SMALLEST = 4096


def notes() -> Path:
    """Where results are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnel" / "storage.json"


def known() -> dict[str, dict[str, Any]]:
    """Results by the number of the device; none where the file is not there or damaged."""
    try:
        found = json.loads(notes().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes that the storage below ``path`` reads in the time that one more small read takes; 0 if it was never
    measured."""
    try:
        found = known()[str(os.stat(path).st_dev)]
        smallest = [float(s["mb_s"]) for s in found["speeds"] if s["bytes"] == SMALLEST]
        return max(0, int(SMALLEST * (float(found["mb_s"]) / max(smallest) - 1)))
    except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return 0
