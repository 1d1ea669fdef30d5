"""The names of processors and features that LLVM knows, as TVM offers them. TVM itself only logs an unknown one."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache

import tvm
from tvm.target import codegen

from runnel.errors import InputError

# What kernels may use and a system reports of its processor; LLVM's other features are about tuning.
REPORTED = {
    "x86_64": (
        "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe",
        "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avx512vbmi", "avx512vbmi2",
        "avx512bitalg", "avx512vpopcntdq", "avx512ifma", "avx512bf16", "avx512fp16", "avxvnni", "gfni",
    ),
    "aarch64": ("neon", "rdm", "fullfp16", "dotprod", "i8mm", "bf16", "sve", "sve2"),
    "armv7": ("neon", "vfp4", "hwdiv-arm"),
}  # fmt: skip


@cache
def processors(triple: str) -> frozenset[str]:
    """LLVM's names of the processors of an architecture."""
    return frozenset(str(c) for c in codegen.llvm_get_cpu_archlist(tvm.target.Target(_config(triple))))


@cache
def features(triple: str) -> frozenset[str]:
    """LLVM's names of the features of an architecture: those that some processor has."""
    return frozenset(f for cpu in processors(triple) for f in enabled(triple, cpu, ()))


@cache
def enabled(triple: str, cpu: str, more: tuple[str, ...]) -> frozenset[str]:
    """What LLVM may use on ``cpu`` with ``more`` features on ("+x") or off ("-x")."""
    config = _config(triple) | {"mcpu": cpu} | ({"mattr": list(more)} if more else {})
    return frozenset(str(f) for f in codegen.llvm_get_cpu_features(tvm.target.Target(config)))


def check(triple: str, cpu: str, more: Sequence[str]) -> None:
    """Raises InputError that names a processor or feature unknown to LLVM, and the ones that it may mean."""
    if cpu not in processors(triple):
        raise InputError(f"LLVM knows no processor '{cpu}' for {triple}; {_near(cpu, processors(triple))}.")
    for feature in more:
        if feature[1:] not in features(triple):
            raise InputError(
                f"LLVM knows no feature '{feature[1:]}' for {triple}; {_near(feature[1:], features(triple))}."
            )


def _near(name: str, known: frozenset[str]) -> str:
    near = get_close_matches(name, sorted(known), 3, 0.5)
    return f"near are: {', '.join(near)}" if near else f"known are: {', '.join(sorted(known))}"


def _config(triple: str) -> dict[str, object]:
    return {"kind": "llvm", "mtriple": triple}
