"""Decoding under a budget of memory that the kernel enforces, in turns with what bounds it and with llama.cpp.

A bundle whose kernels do nothing reads and checks what the real one does: a pass with the arithmetic left out.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from runnel.compiler.bundle import write_bundle
from runnel.compiler.bundle.write import COMPUTED_KEYS
from runnel.errors import InputError
from runnel.runtime import build_board
from runnel.runtime.bundle import Bundle
from runnel.tools.decoding import limit
from runnel.tools.decoding.worker import WINDOW

SHARES = (0.88, 0.53, 0.25, 0.10)  # budgets, as parts of the weights of 8 bits
SECONDS = 8  # of a run: many disks are faster for the first one or two after a pause
REPEATED, ROOMS = 0.4, (1.0, 1.5)  # the budget of many runs, as a part of the bundle, and their limits beside it
BRIEFLY = 0.3  # seconds of one of many runs
RETURN_ZERO = {"x86_64": bytes.fromhex("31c0c3"), "aarch64": bytes.fromhex("00008052c0035fd6")}
CLOCK_WORDS, BUFFER_WORDS, KERNEL_WORDS, HEADER_WORDS = 6, 12, 3, 16  # of a plan


def without_arithmetic(source: Path, out: Path) -> None:
    """The bundle with kernels that return at once. Raises InputError for processors that this does not know."""
    bundle = Bundle(source)
    target = bundle.manifest["target"]
    if target["arch"] not in RETURN_ZERO:
        raise InputError(f"kernels for {target['arch']} cannot be left out; measure on x86-64 or 64-bit Arm.")
    entries = {name: bundle.read(name) for name in bundle.names}
    plan = entries["plan"]
    words = struct.unpack(f"<{len(plan) // 8}q", plan)
    begin = HEADER_WORDS + words[3] * CLOCK_WORDS + words[4] * BUFFER_WORDS
    code = bytearray(entries[f"kernels/{target['name']}"])
    nothing = RETURN_ZERO[target["arch"]]
    for i in range(words[5]):
        at = words[begin + i * KERNEL_WORDS]
        code[at : at + len(nothing)] = nothing
    entries[f"kernels/{target['name']}"] = bytes(code)
    given = {k: v for k, v in bundle.manifest.items() if k not in COMPUTED_KEYS}
    write_bundle(out, given, entries)


def own(
    binary: Path, bundle: Path, budget: int | None, group: limit.Group, room: float = 1.0, lasting: float = SECONDS
) -> dict[str, Any]:
    """A run of runnel-run under a budget, its limit ``room`` times that; in memory for no budget. seconds: of a token.

    lasting: seconds of the run.
    """
    words: list[object] = [binary, "bench", bundle, "--chunk", 1, "--seconds", lasting, "--json"]
    if budget is not None:
        limit.forget(bundle)
        limit.forget(binary)
        words += ["--ram", budget]
    done, peak = group.run(words, int(room * budget) if budget else 1 << 40)
    if done.returncode != 0:
        raise InputError(f"runnel-run ended with {done.returncode}: {done.stderr.strip()}")
    row = dict(json.loads(done.stdout))
    return row | {"seconds": row["p50"], "charged": peak}


def llama_cpp(gguf: Path, budget: int, group: limit.Group) -> dict[str, Any]:
    """A run of llama.cpp with its file mapped, under a limit of the budget and of what Python has before it loads. It
    keeps as many tokens as ours, in float16 as well."""
    limit.forget(gguf)
    group.set_limit(1 << 40)
    line = [sys.executable, "-m", "runnel.tools.decoding.limited", gguf, budget, SECONDS, WINDOW, group.folder]
    done = subprocess.run([str(w) for w in line], capture_output=True, text=True, check=False, preexec_fn=group.enter)
    if done.returncode != 0:
        return {"seconds": None, "ended": done.returncode}
    return dict(json.loads(done.stdout))


def measured(files: dict[str, Path], rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row a budget. files: of ``prepared``. seconds of a token are medians of the rounds' medians."""
    folder = files["paged"].parent
    binary, idle = folder / "runnel-run", folder / "without-arithmetic.rnl"
    build_board.build(binary)
    without_arithmetic(files["paged"], idle)
    whole = (files.get("gguf") or files["onnx"].with_suffix(".onnx.data")).stat().st_size
    runs: dict[tuple[float, str], list[dict[str, Any]]] = {}
    with limit.group("runnel-bench") as group:
        say(f"limits by cgroup v{group.version}; {rounds} rounds")
        for _ in range(rounds):
            runs.setdefault((1.0, "in memory"), []).append(own(binary, files["paged"], None, group))
            for share in SHARES:
                budget = int(share * whole) // 4096 * 4096
                runs.setdefault((share, "runnel"), []).append(own(binary, files["paged"], budget, group))
                runs.setdefault((share, "reads"), []).append(own(binary, idle, budget, group))
                if "gguf" in files:
                    runs.setdefault((share, "llama.cpp"), []).append(llama_cpp(files["gguf"], budget, group))
        kills = group.kills
    rows = [_row(share, int(share * whole), runs) for share in SHARES]
    say("| budget | MiB | tokens/s | reads alone | in memory | of the lower bound | llama.cpp | times it | MB a token "
        "| most charged |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for row in rows:
        times = "" if row["times_llama"] is None else f"{row['times_llama']:.2f}"
        peer = "" if row["llama"] is None else f"{row['llama']:.2f}"
        say(f"| {row['share']:.0%} | {row['budget'] / 2**20:.0f} | {row['own']:.2f} | {row['reads']:.2f} | "
            f"{row['memory']:.2f} | {row['of_bound']:.2f} | {peer} | {times} | {row['streamed'] / 1e6:.0f} | "
            f"{row['charged'] / 2**20:.1f} MiB |")  # fmt: skip
    say(f"ended by the kernel for lack of memory: {kills}")
    return rows


def repeated(bundle: Path, runs: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """As many runs with the limit at the budget as with half as much again, each from a cold cache. Returns for each
    limit the most that was charged, runs that were charged more than the budget, and runs that the kernel ended."""
    binary = bundle.with_name("runnel-run")
    build_board.build(binary)
    budget = int(REPEATED * bundle.stat().st_size) // 4096 * 4096
    rows = []
    for room in ROOMS:
        charged = []
        with limit.group("runnel-bench") as group:
            for _ in range(runs):
                charged.append(own(binary, bundle, budget, group, room, BRIEFLY)["charged"])
            kills = group.kills
        over = sum(peak > budget for peak in charged)
        rows.append({"room": room, "budget": budget, "charged": max(charged), "over": over, "kills": kills})
        say(f"{runs} runs of a budget of {budget / 2**20:.0f} MiB, limit {room:g} times that: {kills} ended by the "
            f"kernel, {over} runs over the budget, at most {max(charged) / 2**20:.1f} MiB charged")  # fmt: skip
    return rows


def _row(share: float, budget: int, runs: dict[tuple[float, str], list[dict[str, Any]]]) -> dict[str, Any]:
    """Rates are tokens a second."""

    def rate(at: float, what: str) -> float | None:
        seconds = [run["seconds"] for run in runs.get((at, what), []) if run["seconds"]]
        return 1 / median(seconds) if seconds else None

    mine, reads, memory, peer = (
        rate(share, "runnel"), rate(share, "reads"), rate(1.0, "in memory"), rate(share, "llama.cpp")
    )  # fmt: skip
    assert mine and reads and memory
    paged = runs[share, "runnel"]
    return {
        "share": share, "budget": budget, "own": mine, "reads": reads, "memory": memory,
        "of_bound": mine / min(reads, memory), "llama": peer, "times_llama": mine / peer if peer else None,
        "streamed": paged[0]["streamed_bytes_per_step"], "charged": max(run["charged"] for run in paged), "runs": paged,
    }  # fmt: skip
