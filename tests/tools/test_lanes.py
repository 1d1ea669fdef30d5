"""What instructions do, as ``runnel.tools.lanes`` tells it."""

from __future__ import annotations

import pytest

from runnel.tools.lanes.kinds import OTHER, SCALAR, VECTOR, kind_of

TOLD = {
    "x86_64": {
        SCALAR: ["vfmadd231ss (%rdi), %xmm1, %xmm2", "vmovss\t%xmm0, 4(%rdi)", "mov    %eax,(%rdi,%rsi,1)",
                 "movzbl (%rdi), %eax", "vcvttss2si %xmm0, %eax", "vpinsrb $1, (%rsi), %xmm7, %xmm7"],
        VECTOR: ["vfmadd231ps %ymm0, %ymm1, %ymm2", "vmovups %ymm0, (%rdi)", "vpmaddwd %ymm0, %ymm1, %ymm2"],
        OTHER: ["vmovss (%rdi), %xmm2", "vmovss %xmm0,0x8(%rsp)", "mov    %rax,(%rdi)", "addq $4, %rdi"],
    },
    "aarch64": {
        SCALAR: ["fmadd s0, s1, s2, s3", "str s0, [x1]", "ldrb w0, [x1]", "st1 {v0.s}[1], [x2]", "umov w0, v0.b[3]"],
        VECTOR: ["fmla v0.4s, v1.4s, v2.s[0]", "str d0, [x1]", "str q0, [sp]", "sqxtn v5.4h, v5.4s"],
        OTHER: ["ldr s0, [x1]", "add x0, x0, #4", "b.ne #0x5500"],
    },
    "armv7": {
        SCALAR: ["vfma.f32 s0, s1, s2", "vst1.32 {d0[0]}, [r0]", "ldrsb r0, [r1]"],
        VECTOR: ["vfma.f32 q8, q9, d0[0]", "vld1.32 {d16, d17}, [r0]"],
        OTHER: ["vldr s0, [r0]", "add r0, r0, #4"],
    },
}  # fmt: skip


@pytest.mark.parametrize("arch", TOLD)
def test_instructions_are_told_apart(arch: str) -> None:
    for kind, lines in TOLD[arch].items():
        assert {line: kind_of(arch, line) for line in lines} == dict.fromkeys(lines, kind)
