"""Runs mypy on the tree under its import names: build/mypy/runnel links every folder where an install puts it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("compiler", "runtime", "models", "targets", "tools")


def main() -> int:
    package = ROOT / "build" / "mypy" / "runnel"
    package.mkdir(parents=True, exist_ok=True)
    for stale in package.iterdir():
        stale.unlink()
    for source in [*(ROOT / "runnel").glob("*.py*"), *(ROOT / folder for folder in FOLDERS)]:
        (package / source.name).symlink_to(source)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "-p", "runnel", *sys.argv[1:]], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
