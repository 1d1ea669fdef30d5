"""Plans and states of caches that somebody changed: refused, or run without a step outside their memory."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from attention import Attention, rope, streamed
from test_core import built

import runnel
from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.runtime import native

pytestmark = pytest.mark.skipif(not native.LIBRARY.exists(), reason="needs the native core")

POLICIES = (
    "full=9", "sink=2,window=3,positions=contiguous,spare=2", "heavy=2,window=2,spare=3,keys=int8,values=int4",
    "snap=3,window=4,observe=2", "merge=2,window=2,sink=1", "scissorhands=3,window=2", "external=9",
    "heavy=2,window=2,positions=contiguous,spare=2",
)  # fmt: skip
HEADER = 16


def plan_without_kernels(model: Attention, kv: str, hop: int = 2) -> bytes:
    """The plan, every kernel at the start of the image."""
    plan = Planner(lower(model.graph(kv)), hop, KernelModule(Target.host())).build().plan
    words = list(struct.unpack(f"<{len(plan) // 8}q", plan))
    at = HEADER + words[3] * 6 + words[4] * 12
    for kernel in range(words[5]):
        words[at + kernel * 3] = 0
    return struct.pack(f"<{len(words)}q", *words)


def test_mutated_plans_and_states_never_crash(tmp_path: Path) -> None:
    slopes = {"slopes": np.array([0.5, 0.25]), "bias": np.ones((2, 3), np.float32)}
    models = (Attention(4, 2, 8, 4, more={"rotary": rope(4)}), Attention(2, 1, 6, 2, more=slopes))
    paths = []
    for kv in POLICIES:
        for i, model in enumerate(models):
            paths.append(tmp_path / f"{len(paths)}-{i}.plan")
            paths[-1].write_bytes(plan_without_kernels(model, kv))
    # Frames that attend together, and values inside keys.
    others = (Attention(4, 2, 8, 4, more={"rotary": rope(4)}), Attention(4, 1, 12, 8, more={"shared": True}))
    for kv in (*POLICIES[:2], POLICIES[3], "sink=1,window=9,keys=int8,values=int8"):
        for i, model in enumerate(others):
            paths.append(tmp_path / f"{len(paths)}-{i}.plan")
            paths[-1].write_bytes(plan_without_kernels(model, kv, hop=9))
    fuzz = built(tmp_path, "fuzz_plan", ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"])
    done = subprocess.run([fuzz, "600", *map(str, paths)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    accepted, ran = (int(n) for n in done.stdout.split())
    assert accepted > 400
    assert ran > 100


def test_states_of_other_programs_are_refused() -> None:
    model = Attention(more={"rotary": rope(4)})
    program, x = model.program("sink=2,window=7"), model.inputs(12)
    stream = program.stream(kv="sink=1,window=4")
    streamed(stream, x)
    saved = bytearray(stream.save())
    assert program.stream(state=bytes(saved)).position == 12
    for other in ("sink=2,window=8", "sink=2,window=7,positions=contiguous", "window=9"):
        with pytest.raises(runnel.StreamError, match="another program"):
            model.program(other).stream(state=bytes(saved))
    for state in (saved[:-1], saved + b"0", saved[:200], b""):
        with pytest.raises(runnel.StreamError, match="another program"):
            program.stream(state=bytes(state))
    with pytest.raises(runnel.StreamError, match="brings its own"):
        program.stream(state=bytes(saved), kv="window=3")
    for word, value in ((16, -1), (17, 99), (30, 4), (40, 1 << 40), (41, 50)):
        changed = saved.copy()
        struct.pack_into("<q", changed, word * 8, value)
        with pytest.raises(runnel.StreamError, match="another program"):
            program.stream(state=bytes(changed))


def test_going_back_by_notes_that_somebody_changed_is_refused() -> None:
    """Whatever word of a state is changed."""
    model = Attention(2, 1, 6, 2, more={"slopes": np.array([0.5, 0.25])})
    program, x = model.program("sink=2,window=5,spare=2"), model.inputs(12)
    stream = program.stream()
    streamed(stream, x)
    saved = stream.save()
    refused = 0
    for word in range(len(saved) // 8):
        changed = bytearray(saved)
        struct.pack_into("<q", changed, word * 8, -(1 << 63))
        try:
            other = program.stream(state=bytes(changed))
        except runnel.StreamError:
            continue
        try:
            other.rollback(2)
        except runnel.StreamError as error:
            assert "is damaged" in str(error)
            refused += 1
    assert refused == 2 * 3  # slot, count and position of two notes
