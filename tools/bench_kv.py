"""Policies of caches by budget, on the shipped decoder and a text that it has not seen.

    python -m runnel.tools.bench_kv --rows build/bench/kv.json

For each: bytes of the caches, tokens a second (one at a time, at the text's end, by their median), perplexity a token
over the whole text, and how often the likeliest token is that of a cache that keeps everything. With --forks instead
what a second stream costs: taking a token back, and a clone, into a stream that is there or a new one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import runnel
from runnel import models
from runnel.errors import InputError
from runnel.files import replacing
from runnel.runtime.cache.stream import CachedStream
from runnel.tools.generate.tokens import open_tokenizer
from runnel.tools.terminal import size
from runnel.tools.units import positive

VERSE = Path(models.__path__[0]) / "verse"
BUDGETS = (64, 128, 256)
CHUNK = 256
TIMED = 400


@dataclass(frozen=True)
class Row:
    """One policy at one budget. agreement: the share of tokens whose likeliest successor is that of the full cache."""

    kv: str
    bytes: int
    tokens_per_s: float
    perplexity: float
    agreement: float


def specs(tokens: int) -> list[str]:
    """What is compared; the first keeps everything."""
    found = [f"full={tokens}"]
    for slots in BUDGETS:
        found += [f"window={slots}"]
        found += [f"sink={sink},window={slots - sink}" for sink in (1, 4, 8)]
        found += [f"sink=4,window={slots - 4},positions=contiguous"]
        half = slots // 2
        found += [f"heavy={half},window={half}", f"scissorhands={half},window={half},observe={slots}"]
        found += [f"snap={half},window={half},observe=16", f"merge={half},window={half}"]
        found += [f"sink=4,window={slots - 4},keys={k},values={v}" for k, v in (("int8", "int8"), ("int8", "int4"))]
    return found


def measured(kv: str, folder: Path, tokens: np.ndarray, likeliest: np.ndarray | None) -> tuple[Row, np.ndarray]:
    """A row, and the likeliest successor of each token."""
    path = folder / "m.rnl"
    runnel.compile(VERSE / "verse.onnx", path, kv=kv, backend="native", hop=32)
    program = runnel.load(path)
    stream = program.stream()
    untimed = len(tokens) - TIMED
    parts = [stream.push(tokens[None, i : min(i + CHUNK, untimed)]) for i in range(0, untimed, CHUNK)]
    times = []
    for i in range(untimed, len(tokens)):
        begun = time.perf_counter()
        parts.append(stream.push(tokens[None, i : i + 1]))
        times.append(time.perf_counter() - begun)
    logits = np.concatenate([np.asarray(part) for part in parts], 1)[0].astype(np.float64)
    top = logits.argmax(-1)
    shifted = logits - logits.max(-1, keepdims=True)
    chances = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    loss = -chances[np.arange(len(tokens) - 1), tokens[1:]].mean()
    agreement = 1.0 if likeliest is None else float((top == likeliest).mean())
    kept = stream.kv.bytes  # type: ignore[attr-defined]
    return Row(kv, int(kept), 1 / statistics.median(times), math.exp(loss), agreement), top


def median_us(run: Callable[[], object], rounds: int = 50) -> float:
    """Microseconds of a call."""
    spent = []
    for _ in range(rounds):
        begun = time.perf_counter()
        run()
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent) * 1e6


def print_forks(tokens: np.ndarray, folder: Path) -> None:
    """Medians beside a token's, for caches that hold more and more of the text."""
    runnel.compile(VERSE / "verse.onnx", folder / "m.rnl", kv=f"full={len(tokens) + 8},spare=8", backend="native")
    program = runnel.load(folder / "m.rnl")
    stream, twin = program.stream(), program.stream()
    assert isinstance(stream, CachedStream) and isinstance(twin, CachedStream)
    print("| kept | a token and back, µs | back | clone into a stream | clone |\n|---|---|---|---|---|")
    backs: list[float] = []
    for kept in (16, 256, 1024, len(tokens)):
        stream.push(tokens[None, stream.position : kept], last=True)
        backs.clear()

        def step_and_back() -> None:
            stream.push(tokens[None, :1])
            begun = time.perf_counter()
            stream.rollback(1)
            backs.append(time.perf_counter() - begun)

        both = median_us(step_and_back)
        figures = [
            both,
            statistics.median(backs) * 1e6,
            median_us(lambda: stream.clone(into=twin)),
            median_us(stream.clone),
        ]
        print(f"| {kept} | " + " | ".join(f"{f:.1f}" for f in figures) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=VERSE / "held_out.txt", help="a text (default: the held-out book)")
    parser.add_argument("--tokens", type=positive, default=4096, help="how much of it (default: 4096 tokens)")
    parser.add_argument("--rows", type=Path, help="also write the rows there, as JSON")
    parser.add_argument("--only", default="", help="policies with this in their name, and the full cache")
    parser.add_argument("--forks", action="store_true", help="what second streams cost, instead of the table")
    args = parser.parse_args()
    tokenizer = open_tokenizer(VERSE / "tokenizer.json")
    tokens = np.array([0, *tokenizer.encode(args.text.read_text(encoding="utf-8"))], np.int64)[: args.tokens]
    if len(tokens) < 2 * TIMED:
        raise InputError(f"'{args.text}' has {len(tokens)} tokens; give a text of at least {2 * TIMED}.")
    if args.forks:
        with tempfile.TemporaryDirectory() as folder:
            print_forks(tokens, Path(folder))
        return
    rows: list[Row] = []
    likeliest: np.ndarray | None = None
    print("| kv | bytes | tokens/s | perplexity | agreement |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for kv in specs(len(tokens)):
            if rows and args.only not in kv:
                continue
            row, top = measured(kv, Path(folder), tokens, likeliest)
            likeliest = top if likeliest is None else likeliest
            rows.append(row)
            print(
                f"| `{kv}` | {size(row.bytes)} | {row.tokens_per_s:.0f} | {row.perplexity:.2f} | {row.agreement:.3f} |",
                flush=True,
            )
    if args.rows:
        args.rows.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.rows) as file:
            file.write((json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
