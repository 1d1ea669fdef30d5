"""``python -m runnel.tools.bench_experts``: a decoder with experts that has memory for a part of them.

    python -m runnel.tools.bench_experts --model build/verse_experts/verse_experts.onnx

Reads a text token by token with everything in memory, with nothing kept and nothing read ahead, and with each policy,
in turns on one thread; compares the bits. The routes are those that the model takes through the text: for figures that
mean something it has to be a trained one (models/verse_experts).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import runnel
from runnel.runtime.paging import KEPT, UnitFacts
from runnel.tools import terminal
from runnel.tools.generate.tokens import open_tokenizer

TEXT = Path(__file__).resolve().parent.parent / "models" / "verse" / "held_out.txt"
RESIDENT, NAIVE = "all in memory", "none kept, none ahead"
PIECE = 10  # tokens of one after the other that a contender has in a turn


@dataclass
class Contender:
    """A way of running, and milliseconds a token of each of its pieces of the text."""

    name: str
    program: runnel.Program
    times: list[float] = field(default_factory=list)
    bits: set[bytes] = field(default_factory=set)
    parts: list[bytes] = field(default_factory=list)

    def begin(self) -> None:
        self.stream, self.parts = self.program.stream(), []

    def push(self, tokens: np.ndarray) -> None:
        began = time.perf_counter()
        made = [self.stream.push(token.reshape(1, 1)) for token in tokens]
        self.times.append(1e3 * (time.perf_counter() - began) / len(tokens))
        self.parts += [np.asarray(m).tobytes() for m in made]

    def end(self) -> None:
        self.bits.add(b"".join(self.parts))

    @property
    def units(self) -> UnitFacts | None:
        return self.program.paging.units if self.program.paging is not None else None


def contenders(bundle: Path, share: float) -> list[Contender]:
    """Programs with memory for a share of the experts and for everything else."""

    def paged(ram: int, experts: str = "lru", ahead: str = "auto") -> runnel.Program:
        return runnel.load(bundle, runtime=runnel.Runtime(ram=ram, experts=experts, experts_ahead=ahead))

    found = [Contender(RESIDENT, runnel.load(bundle))]
    for kept in ("none", *(k for k in KEPT if k != "none")):
        for ahead in ("off",) if kept == "none" else ("off", "on", "auto"):
            facts = paged(1 << 40, kept).paging
            assert facts is not None
            ram = facts.least + facts.streamed + facts.pinned + facts.tables  # everything, were it not for experts
            program = paged(ram + int(share * facts.units.all), kept, ahead)
            assert program.paging is not None
            excess = program.paging.units.room - int(share * facts.units.all)
            program.set_weight_budget(ram + int(share * facts.units.all) - excess)
            name = NAIVE if kept == "none" else f"{kept}, ahead {ahead}"
            found.append(Contender(name, program))
    return found


def measure(found: list[Contender], tokens: np.ndarray, turns: int) -> list[dict[str, Any]]:
    """Rows of figures, medians of pieces that are taken in turns; raises SystemExit where bits differ."""
    for _ in range(turns):
        for contender in found:
            contender.begin()
        for number, at in enumerate(range(0, len(tokens), PIECE)):
            for k in range(len(found)):
                found[(k + number) % len(found)].push(tokens[at : at + PIECE])
        for contender in found:
            contender.end()
    naive = next(c for c in found if c.name == NAIVE)
    rows, count = [], turns * len(tokens)
    for contender in found:
        if contender.bits != found[0].bits:
            raise SystemExit(f"'{contender.name}' gives other bits than everything in memory")
        ratio = median(a / b for a, b in zip(naive.times, contender.times, strict=True))
        row: dict[str, Any] = {"name": contender.name, "ms": median(contender.times), "against_naive": ratio}
        units = contender.units
        if units is not None:
            row |= {
                "room": units.room / units.all, "hit_rate": units.hit_rate, "late": units.late / units.chosen,
                "mb": units.bytes_read / count / 1e6, "stall_ms": units.stall_ns / count / 1e6,
                "foreseen": units.guessed / units.chosen, "right": units.guessed_used / max(units.guessed, 1),
                "overlap": units.read_ns / units.gap_ns if units.gap_ns else 0.0,
            }  # fmt: skip
        rows.append(row)
    return rows


HEAD = [
    "experts", "ms a token", "faster than none kept", "hit rate", "MB read a token", "wait, ms", "read ahead",
    "rightly", "overlap",
]  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    """A row of the table. overlap: of the time between a guess and its use, that during which it was read."""
    cells = [row["name"], f"{row['ms']:.2f}", f"{row['against_naive']:.2f}"]
    if "hit_rate" in row:
        ahead = [f"{100 * row[key]:.0f} %" for key in ("foreseen", "right", "overlap")] if row["foreseen"] else [""] * 3
        cells += [f"{100 * row['hit_rate']:.0f} %", f"{row['mb']:.2f}", f"{row['stall_ms']:.2f}", *ahead]
    return cells + [""] * (len(HEAD) - len(cells))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.bench_experts", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a decoder with mixtures of experts (.onnx)")
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer (default: the one beside it)")
    parser.add_argument("--text", type=Path, default=TEXT, help="what is read (default: verse's held-out book)")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.25, help="of the experts that memory has room for")
    parser.add_argument("--folder", type=Path, help="where the bundle is written, and so the storage that is measured")
    parser.add_argument("--rows", type=Path, default=Path("build/bench/experts.json"), help="where the raw rows go")
    args = parser.parse_args()
    words = open_tokenizer(args.tokenizer or args.model.with_name("tokenizer.json"))
    tokens = np.array([0, *words.encode(args.text.read_text(encoding="utf-8"))][: args.tokens], np.int64)
    with tempfile.TemporaryDirectory(prefix="runnel-bench-", dir=args.folder) as folder:
        bundle = Path(folder) / "m.rnl"
        runnel.compile(args.model, bundle, backend="native", kv="full", max_frames=args.tokens, hop=1)
        rows = measure(contenders(bundle, args.share), tokens, args.turns)
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    args.rows.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(terminal.table(HEAD, [line(row) for row in rows]))


if __name__ == "__main__":
    main()
