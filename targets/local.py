"""This machine as a target."""

from __future__ import annotations

import os
import platform
from dataclasses import replace

from runnel.targets.schema import Target


def this_machine(target: Target) -> Target:
    """``target`` with this machine's cores, memory and page size. triple and cpu stay NATIVE: LLVM knows them."""
    return replace(
        target,
        glibc=platform.libc_ver()[1],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        ram_mib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        page_kib=os.sysconf("SC_PAGE_SIZE") >> 10,
    )
