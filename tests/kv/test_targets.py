"""Kernels of caches for processors of boards: they link, and need nothing from outside."""

from __future__ import annotations

import pytest

from runnel.compiler.codegen import KernelModule, Target, cached
from runnel.compiler.codegen.cache_shape import CacheShape
from runnel.compiler.codegen.cached_latent import attend_latent
from runnel.compiler.codegen.cached_rows import attend_rows

TARGETS = {
    "cortex-a76": Target.of("aarch64-linux-gnu", "cortex-a76"),
    "cortex-a7": Target.of("armv7l-linux-gnueabihf", "cortex-a7", ("+neon", "+vfp4")),
    "x86-64-v2": Target.of("x86_64-linux-gnu", "x86-64-v2"),
}


@pytest.mark.parametrize(
    ("cpu", "bits", "ranked"), [("cortex-a76", 8, False), ("cortex-a7", 32, True), ("x86-64-v2", 4, True)]
)
def test_kernels_link_for_boards(cpu: str, bits: int, ranked: bool) -> None:
    target, module = TARGETS[cpu], KernelModule(TARGETS[cpu])
    shape = CacheShape(
        8, 2, 64, 64, 256, bits, bits, 32, softcap=5.0, bias=True, sinks=True, apart=not ranked, ranked=ranked
    )
    names = [
        module.symbol(cached.turn(target, shape, shape.heads, 0.125)),
        module.symbol(cached.turn(target, shape, shape.kv_heads, 1.0, ranked)),
        module.symbol(cached.store(target, shape)),
        module.symbol(cached.attend(target, shape)),
    ]
    assert set(module.build().entries) == set(names)


@pytest.mark.parametrize("cpu", TARGETS)
def test_other_kernels_link_for_boards(cpu: str) -> None:
    """Those of several frames, and of keys that hold the values."""
    target, module = TARGETS[cpu], KernelModule(TARGETS[cpu])
    shape = CacheShape(8, 2, 64, 64, 256, 8, 4, 32, softcap=5.0, sinks=True, apart=True)
    latent = CacheShape(16, 1, 72, 64, 256, 8, 8, 4, start=64, apart=True, shared=True)
    names = [module.symbol(attend_rows(target, shape)), module.symbol(attend_latent(target, latent))]
    assert set(module.build().entries) == set(names)
