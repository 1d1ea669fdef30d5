"""The machine that kernels are made for, as code generation sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tvm

from runnel.compiler.codegen import features as known

_VECTOR_BYTES = (("avx512f", 64), ("avx2", 32), ("avx", 32))
_GPU = "nvptx64-nvidia-cuda"
_ARCHES = {"amd64": "x86_64", "arm64": "aarch64", "arm": "armv7", "armv7l": "armv7", "armv7a": "armv7"}


@dataclass(frozen=True)
class Target:
    """A CPU: x86-64-v2 or better, aarch64, or armv7 with NEON and VFPv4; or a GPU of NVIDIA's.

    triple: an LLVM triple. cpu: LLVM's name of the CPU. features: LLVM features such as ``"+dotprod"``.
    vector_bytes: width of the vectors that kernels use.
    """

    triple: str
    cpu: str
    features: tuple[str, ...] = ()
    vector_bytes: int = 16

    @staticmethod
    def of(triple: str, cpu: str, features: tuple[str, ...] = ()) -> Target:
        """A target with vectors as wide as its registers. Raises InputError for names that LLVM does not know."""
        known.check(triple, cpu, features)
        enabled = known.enabled(triple, cpu, features)
        return Target(triple, cpu, features, next((width for f, width in _VECTOR_BYTES if f in enabled), 16))

    @staticmethod
    def cuda(capability: str) -> Target:
        """A GPU of NVIDIA's by its compute capability, such as "8.7". Raises InputError for one that LLVM lacks."""
        cpu = "sm_" + capability.replace(".", "")
        known.check(_GPU, cpu, ())
        return Target(_GPU, cpu)

    @staticmethod
    def host() -> Target:
        """The machine this runs on."""
        triple = str(tvm.get_global_func("tvm.codegen.llvm.GetDefaultTargetTriple")())
        cpu = str(tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
        target = Target(triple, cpu)
        if target.arch != "x86_64":
            return target
        # A virtual machine may hide what LLVM expects of the CPU's model: name what kernels rely on.
        has = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
        features = tuple(f"{'+' if _on(has, f) else '-'}{f}" for f in known.REPORTED[target.arch])
        width = next((width for feature, width in _VECTOR_BYTES if f"+{feature}" in features), 16)
        return Target(triple, cpu, features, width)

    @property
    def arch(self) -> str:
        """``"x86_64"``, ``"aarch64"`` or ``"armv7"``."""
        name = self.triple.split("-")[0]
        return _ARCHES.get(name, name)

    @property
    def gpu(self) -> bool:
        """Whether threads share each kernel's work."""
        return self.triple == _GPU

    @property
    def lanes(self) -> int:
        """float32 elements in one vector register."""
        return self.vector_bytes // 4

    @property
    def registers(self) -> int:
        """Vector registers."""
        narrow = self.arch == "armv7" or (self.arch == "x86_64" and self.vector_bytes < 64)
        return 16 if narrow else 32

    def has(self, feature: str) -> bool:
        """Whether code may use a feature."""
        return not self.gpu and feature in known.enabled(self.triple, self.cpu, self.features)

    @property
    def fused(self) -> bool:
        """Whether a product and a sum can be rounded once."""
        return self.gpu or self.arch == "aarch64" or self.has("fma" if self.arch == "x86_64" else "vfp4")

    @property
    def rounds(self) -> bool:
        """Whether there are instructions that round to whole numbers."""
        return self.arch != "armv7"

    @property
    def wide(self) -> bool:
        """Whether there are instructions that divide int64 and convert it to and from floats."""
        return self.arch != "armv7"

    @property
    def halves(self) -> bool:
        """Whether there are instructions that convert float16."""
        return self.gpu or self.arch == "aarch64" or self.has("f16c" if self.arch == "x86_64" else "fp16")

    @property
    def arm(self) -> bool:
        """Whether this is 32-bit Arm with instructions that convert float16."""
        return self.arch == "armv7" and self.halves

    @property
    def needs(self) -> tuple[str, ...]:
        """The features that a processor must report for kernels to run on it."""
        return tuple(f for f in known.REPORTED.get(self.arch, ()) if self.has(f))

    def tvm(self) -> Any:
        """The same as TVM's target."""
        if self.gpu:
            return tvm.target.Target({"kind": "nvptx", "mcpu": self.cpu})
        parts = self.triple.split("-")
        triple = "-".join([parts[0], "unknown", *parts[1:]]) if len(parts) == 3 else self.triple
        config: dict[str, Any] = {"kind": "llvm", "mtriple": triple, "mcpu": self.cpu}
        if self.features:
            config["mattr"] = list(self.features)
        return tvm.target.Target(config)


def _on(features: Any, name: str) -> bool:
    return name in features and bool(features[name])
