"""The machine that kernels are made for, as code generation sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm

_VECTOR_BYTES = (("avx512f", 64), ("avx2", 32), ("avx", 32))


@dataclass(frozen=True)
class Target:
    """A CPU. x86-64 needs AVX2 and FMA (x86-64-v3) or better, aarch64 is enough as it is.

    triple: an LLVM triple. cpu: LLVM's name of the CPU. features: LLVM features such as ``"+dotprod"``.
    vector_bytes: width of the vectors that kernels use.
    """

    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    vector_bytes: int = 16

    @staticmethod
    def host() -> Target:
        """The machine this runs on."""
        triple = str(tvm.get_global_func("tvm.codegen.llvm.GetDefaultTargetTriple")())
        cpu = str(tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
        target = Target(triple, cpu)
        if target.arch == "aarch64":
            return target
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((set(line.split()) for line in file if line.startswith("flags")), set())
        width = next((width for flag, width in _VECTOR_BYTES if flag in flags), 16)
        # A virtual machine may hide what LLVM expects of the CPU's model: name what kernels rely on.
        features = tuple(
            f"{'+' if flag in flags else '-'}{flag}" for flag in ("fma", "avx2", "avx512f", "avx512vl", "avx512dq")
        )
        return Target(triple, cpu, features, width)

    @property
    def arch(self) -> str:
        """``"x86_64"`` or ``"aarch64"``."""
        name = self.triple.split("-")[0]
        return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)

    @property
    def lanes(self) -> int:
        """float32 elements in one vector register."""
        return self.vector_bytes // 4

    @property
    def registers(self) -> int:
        """Vector registers."""
        return 16 if self.arch == "x86_64" and self.vector_bytes < 64 else 32

    def tvm(self) -> Any:
        """The same as TVM's target."""
        config: dict[str, Any] = {"kind": "llvm", "mtriple": self.triple, "mcpu": self.cpu}
        if self.features:
            config["mattr"] = list(self.features)
        return tvm.target.Target(config)
