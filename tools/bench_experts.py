"""``python -m runnel.tools.bench_experts``: a decoder with experts that has memory for a part of them.

    python -m runnel.tools.bench_experts --model build/verse_experts/verse_experts.onnx

Reads a text token by token with everything in memory, with nothing kept and nothing read ahead, and with each policy,
in turns on one thread; compares the bits. Then the same in as much memory with experts of 8 bits, of 4, and of several
widths by what another part of the text makes of them, with the perplexity of each. Then several streams that read other
parts of the text and are stepped together, whose experts (8 bits) are read one stream after another or at the same
time. The routes are those that the model takes through the text: for figures that mean something it has to be a trained
one (models/verse_experts).
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
UNIFORM = "8 bits"
CALIBRATED = 1024  # tokens, of what comes LATER in the text
LATER = 4096
CHUNK = 32
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


def with_room(bundle: Path, room: int, experts: str = "cost", ahead: str = "auto", streams: int = 1) -> runnel.Program:
    """A program with ``room`` bytes for experts, and memory for everything else."""

    def paged(ram: int) -> runnel.Program:
        runtime = runnel.Runtime(ram=ram, experts=experts, experts_ahead=ahead, streams=streams)
        return runnel.load(bundle, runtime=runtime)

    facts = paged(1 << 40).paging
    assert facts is not None
    ram = facts.least + facts.streamed + facts.pinned + facts.tables + room  # everything, were it not for experts
    program = paged(ram)
    for _ in range(3):  # the least has room for some experts, and more where not all fit
        assert program.paging is not None
        program.set_weight_budget(program.paging.ram - (program.paging.units.room - room))
    return program


def expert_bytes(bundle: Path) -> int:
    program: runnel.Program = runnel.load(bundle, runtime=runnel.Runtime(ram=1 << 40))
    assert program.paging is not None
    return program.paging.units.all


def contenders(bundle: Path, share: float) -> list[Contender]:
    """Programs with memory for a share of the experts and for everything else."""
    room = int(share * expert_bytes(bundle))
    found = [Contender(RESIDENT, runnel.load(bundle))]
    for kept in ("none", *(k for k in KEPT if k != "none")):
        for ahead in ("off",) if kept == "none" else ("off", "on", "auto"):
            name = NAIVE if kept == "none" else f"{kept}, ahead {ahead}"
            found.append(Contender(name, with_room(bundle, room, kept, ahead)))
    return found


def take_turns(found: list[Contender], tokens: np.ndarray, turns: int) -> None:
    for _ in range(turns):
        for contender in found:
            contender.begin()
        for number, at in enumerate(range(0, len(tokens), PIECE)):
            for k in range(len(found)):
                found[(k + number) % len(found)].push(tokens[at : at + PIECE])
        for contender in found:
            contender.end()


def policies(bundle: Path, share: float, tokens: np.ndarray, turns: int) -> list[dict[str, Any]]:
    """Rows of each policy, with memory for a share of the experts; raises SystemExit where bits differ."""
    found = contenders(bundle, share)
    take_turns(found, tokens, turns)
    for contender in found:
        if contender.bits != found[0].bits:
            raise SystemExit(f"'{contender.name}' gives other bits than everything in memory")
    return figures(found, NAIVE, turns * len(tokens))


def figures(found: list[Contender], base: str, count: int) -> list[dict[str, Any]]:
    """Rows: medians of pieces that were taken in turns, and of each contender against the one named ``base``."""
    against = next(c for c in found if c.name == base)
    rows = []
    for contender in found:
        ratio = median(a / b for a, b in zip(against.times, contender.times, strict=True))
        row: dict[str, Any] = {"name": contender.name, "ms": median(contender.times), "faster": ratio}
        units = contender.units
        if units is not None:
            row |= {
                "room": units.room / units.all, "bytes": units.all, "hit_rate": units.hit_rate,
                "late": units.late / units.chosen,
                "mb": units.bytes_read / count / 1e6, "stall_ms": units.stall_ns / count / 1e6,
                "foreseen": units.guessed / units.chosen, "right": units.guessed_used / max(units.guessed, 1),
                "overlap": units.read_ns / units.gap_ns if units.gap_ns else 0.0,
            }  # fmt: skip
        rows.append(row)
    return rows


def widths(
    model: Path, folder: Path, text: np.ndarray, calibration: np.ndarray, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Rows of experts of 8 and 4 bits and of several widths, all with the room that a share of those of 8 bits take."""
    tokens, calibration = text[: args.tokens], calibration[:CALIBRATED]
    forms: dict[str, dict[str, Any]] = {UNIFORM: {}}
    forms |= {"4 bits": {"expert_bits": 4}} | {
        f"{mean:g} bits in the mean": {"expert_bits": mean} for mean in args.means
    }
    found: list[Contender] = []
    worse: dict[str, float] = {}
    for number, (name, options) in enumerate(forms.items()):
        bundle = folder / f"widths{number}.rnl"
        given = options | ({"calibration": calibration[None]} if options else {})
        runnel.compile(model, bundle, backend="native", kv="full", max_frames=LATER, weights="int8", **given)
        if not found:
            room = int(args.share * expert_bytes(bundle))
        found.append(Contender(name, with_room(bundle, room)))
        worse[name] = perplexity(runnel.load(bundle), text[:CALIBRATED])
    take_turns(found, tokens, args.turns)
    for number, contender in enumerate(found):
        whole = Contender(RESIDENT, runnel.load(folder / f"widths{number}.rnl"))
        take_turns([whole], tokens, 1)
        if contender.bits != whole.bits:
            raise SystemExit(f"'{contender.name}' gives other bits than everything in memory")
    rows = figures(found, UNIFORM, args.turns * len(tokens))
    return [row | {"perplexity": worse[row["name"]]} for row in rows]


def together(bundle: Path, text: np.ndarray, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of streams that are stepped together; raises SystemExit where bits differ from streams on their own."""
    each, count = len(text) // args.streams, args.tokens // args.streams * args.turns
    parts = [text[lane * each :][:count] for lane in range(args.streams)]
    room = int(args.share * expert_bytes(bundle))
    whole = [runnel.load(bundle).stream() for _ in parts]
    pairs = zip(whole, parts, strict=True)
    expected = [b"".join(np.asarray(s.push(t.reshape(1, 1))).tobytes() for t in part) for s, part in pairs]
    rows: list[dict[str, Any]] = []
    found = {}
    for name, ahead in ((APART, "off"), ("at the same time", "auto")):
        program = with_room(bundle, room, ahead=ahead, streams=args.streams)
        batch = program.batch(args.streams)
        found[name] = program, batch, [batch.join() for _ in parts], [b""] * len(parts)
    times: dict[str, list[float]] = {name: [] for name in found}
    for number, at in enumerate(range(0, count, PIECE)):
        for name in list(found)[:: 1 if number % 2 else -1]:
            _, batch, lanes, made = found[name]
            began = time.perf_counter()
            for i in range(at, min(at + PIECE, count)):
                got = batch.push({lane: part[i].reshape(1, 1) for lane, part in zip(lanes, parts, strict=True)})
                for k, lane in enumerate(lanes):
                    made[k] += np.asarray(got[lane]).tobytes()
            times[name].append(1e3 * (time.perf_counter() - began) / (min(at + PIECE, count) - at))
    for name, (program, _, _, made) in found.items():
        assert program.paging is not None
        if made != expected:
            raise SystemExit(f"streams that are read '{name}' give other bits than each on its own")
        ratio = median(a / b for a, b in zip(times[APART], times[name], strict=True))
        units = program.paging.units
        mb, stall = units.bytes_read / count / 1e6, units.stall_ns / count / 1e6
        rows.append({"name": name, "ms": median(times[name]), "faster": ratio, "mb": mb, "stall_ms": stall})
    return rows


def perplexity(program: runnel.Program, tokens: np.ndarray) -> float:
    """A token, of each given all before it."""
    stream = program.stream()
    given = tokens[: (len(tokens) - 1) // CHUNK * CHUNK].reshape(-1, CHUNK)
    logits = np.concatenate([np.asarray(stream.push(part[None])) for part in given], 1)[0].astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    chances = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return float(np.exp(-chances[np.arange(len(logits)), tokens[1 : len(logits) + 1]].mean()))


HEAD = [
    "experts", "ms a token", "faster than none kept", "hit rate", "MB read a token", "wait, ms", "read ahead",
    "rightly", "overlap",
]  # fmt: skip


def line(row: dict[str, Any]) -> list[str]:
    """A row of the table. overlap: of the time between a guess and its use, that during which it was read."""
    cells = [row["name"], f"{row['ms']:.2f}", f"{row['faster']:.2f}"]
    if "hit_rate" in row:
        ahead = [f"{100 * row[key]:.0f} %" for key in ("foreseen", "right", "overlap")] if row["foreseen"] else [""] * 3
        cells += [f"{100 * row['hit_rate']:.0f} %", f"{row['mb']:.2f}", f"{row['stall_ms']:.2f}", *ahead]
    return cells + [""] * (len(HEAD) - len(cells))


APART = "one after another"
TOGETHER = ["streams' experts", "ms a step", "faster", "MB read a step", "wait, ms"]
WIDTHS = ["experts", "MB", "room for", "perplexity", "ms a token", "faster", "hit rate", "MB read a token", "wait, ms"]


def width_line(row: dict[str, Any]) -> list[str]:
    """A row of the second table."""
    return [
        row["name"], f"{row['bytes'] / 1e6:.2f}", f"{100 * row['room']:.0f} %", f"{row['perplexity']:.2f}",
        f"{row['ms']:.2f}", f"{row['faster']:.2f}", f"{100 * row['hit_rate']:.0f} %", f"{row['mb']:.2f}",
        f"{row['stall_ms']:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.bench_experts", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a decoder with mixtures of experts (.onnx)")
    parser.add_argument("--tokenizer", type=Path, help="its tokenizer (default: the one beside it)")
    parser.add_argument("--text", type=Path, default=TEXT, help="what is read (default: verse's held-out book)")
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.25, help="of the experts that memory has room for")
    parser.add_argument(
        "--means",
        type=float,
        nargs="*",
        default=[3.0, 4.5, 6.0],
        help="bits of experts of several widths (default: 3 4.5 6)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="a text by which experts of several widths have theirs (default: later in --text)",
    )
    parser.add_argument("--streams", type=int, default=4, help="that are stepped together")
    parser.add_argument("--only", choices=("policies", "widths", "streams"), help="measure one of the tables")
    parser.add_argument("--folder", type=Path, help="where the bundle is written, and so the storage that is measured")
    parser.add_argument("--rows", type=Path, default=Path("build/bench/experts.json"), help="where the raw rows go")
    args = parser.parse_args()
    words = open_tokenizer(args.tokenizer or args.model.with_name("tokenizer.json"))
    text = np.array([0, *words.encode(args.text.read_text(encoding="utf-8"))][: LATER + CALIBRATED], np.int64)
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="runnel-bench-", dir=args.folder) as folder:
        bundle = Path(folder) / "m.rnl"
        options: dict[str, Any] = {"backend": "native", "kv": "full", "hop": 1}
        if args.only in (None, "policies"):
            runnel.compile(args.model, bundle, max_frames=args.tokens, **options)
            rows["policies"] = policies(bundle, args.share, text[: args.tokens], args.turns)
            print(terminal.table(HEAD, [line(row) for row in rows["policies"]]), flush=True)
        if args.only in (None, "widths"):
            other = text[LATER:]
            if args.calibration is not None:
                other = np.array([0, *words.encode(args.calibration.read_text(encoding="utf-8"))], np.int64)
            rows["widths"] = widths(args.model, Path(folder), text, other, args)
            print(terminal.table(WIDTHS, [width_line(row) for row in rows["widths"]]), flush=True)
        if args.only in (None, "streams"):
            runnel.compile(args.model, bundle, max_frames=args.tokens * args.turns, weights="int8", **options)
            rows["streams"] = together(bundle, text, args)
            keys = ("ms", "faster", "mb", "stall_ms")
            lines = [[row["name"], *(f"{row[key]:.2f}" for key in keys)] for row in rows["streams"]]
            print(terminal.table(TOGETHER, lines))
    args.rows.parent.mkdir(parents=True, exist_ok=True)
    args.rows.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
