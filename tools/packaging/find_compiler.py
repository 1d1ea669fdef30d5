"""Names the package that brings a C++ compiler, where this machine has none."""

from __future__ import annotations

import os
import shutil

ZIG = "ziglang==0.17.1"


def compiler_requirements() -> list[str]:
    """What pip must bring for the C++ core to be compiled on this machine."""
    named = os.environ.get("CXX", "").split()
    candidates = [*named[:1], "c++", "g++", "clang++"]
    return [] if any(shutil.which(name) for name in candidates) else [ZIG]


if __name__ == "__main__":  # the Makefile puts the same compiler into its environment
    print(*compiler_requirements())
