"""``python -m runnel.tools.calibrate_heads lm.onnx text.txt -o heads.tsv``: which KV heads have to keep everything.

Each KV head of each layer in turn keeps sinks and a window alone while all others keep everything. What that does to
the predictions over the first half of the text (the divergence of the next token's distribution) is what the head is
worth; perplexities are of the second half. The table has the form of DuoAttention's: a line a layer, a column a KV
head, 0.5 and more for heads that keep everything.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runnel.errors import InputError
from runnel.runtime.backends.native import NativeProgram
from runnel.runtime.bundle import Bundle
from runnel.tools.build import compile_model
from runnel.tools.generate.tokens import open_tokenizer

HEADER_BYTES, CODE_WORD, TOTAL_WORD = 128, 6, 2
Table = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Calibrated:
    """worth: (layers, KV heads), the mean divergence in nats that a head's streaming costs. table: values for
    ``heads=``. full, streaming, chosen: perplexities with all heads keeping everything, none, and those of the table.
    """

    worth: np.ndarray
    table: np.ndarray
    full: float
    streaming: float
    chosen: float


class Tabled:
    """A model compiled once whose table of heads can be changed."""

    def __init__(self, model: Path, slots: int, sink: int, window: int, folder: Path) -> None:
        inner = compile_model(model, folder / "full.rnl", kv="full", max_frames=slots).manifest["kv"]["layers"]
        self.shape = (len(inner), int(inner[0]["kv_heads"]))
        table = folder / "heads.tsv"
        table.write_text("".join("\t".join("1" * self.shape[1]) + "\n" for _ in inner))
        compile_model(model, folder / "heads.rnl", kv=f"heads={table},full={slots},sink={sink},window={window}")
        self.bundle = Bundle(folder / "heads.rnl")

    def program(self, heads: np.ndarray) -> NativeProgram:
        """heads: (layers, KV heads) bool, which keep everything."""
        plan = bytearray(self.bundle.read("plan"))
        words = struct.unpack_from(f"<{HEADER_BYTES // 8}q", plan)
        at = (words[TOTAL_WORD] - words[CODE_WORD] - heads.size) * 8
        struct.pack_into(f"<{heads.size}q", plan, at, *(int(h) for h in heads.reshape(-1)))
        return NativeProgram(self.bundle.manifest, bytes(plan), self.bundle.weights(), self.bundle.kernels())


def calibrate(
    model: Path, tokens: np.ndarray, sink: int, window: int, sparsity: float, piece: int = 512,
    progress: Callable[[str], None] | None = None,
) -> Calibrated:  # fmt: skip
    """tokens: (T) int64, taken in pieces of ``piece``. sparsity: the part of heads that are to stream.

    Raises InputError where the text is shorter than two pieces.
    """
    pieces = [tokens[i : i + piece][None] for i in range(0, len(tokens) - piece + 1, piece)]
    if len(pieces) < 2:
        raise InputError(f"the text has {len(tokens)} tokens, and two pieces have {2 * piece}; give more text.")
    first, second = pieces[: len(pieces) // 2], pieces[len(pieces) // 2 :]
    with tempfile.TemporaryDirectory(prefix="runnel-heads-") as folder:
        tabled = Tabled(model, piece, sink, window, Path(folder))

        def predicted(heads: np.ndarray, text: list[np.ndarray]) -> list[np.ndarray]:
            program = tabled.program(heads)
            return [_log_softmax(np.asarray(program.stream().push(p))[0].astype(np.float64)) for p in text]

        every = np.ones(tabled.shape, bool)
        wanted = predicted(every, first)
        worth = np.zeros(tabled.shape)
        for at in np.ndindex(tabled.shape):
            if progress is not None:
                progress(f"layer {at[0]}, head {at[1]}")
            heads = every.copy()
            heads[at] = False
            got = predicted(heads, first)
            worth[at] = np.mean([(np.exp(w) * (w - g)).sum(-1).mean() for w, g in zip(wanted, got, strict=True)])
        table = scaled(worth, sparsity)
        figures = [_perplexity(predicted(heads, second), second) for heads in (every, ~every, table >= 0.5)]
    return Calibrated(worth, table, *figures)


def scaled(worth: np.ndarray, sparsity: float) -> np.ndarray:
    """Ranks between 0 and 1, the ``sparsity`` least of them below 0.5."""
    order = np.argsort(np.argsort(worth.reshape(-1), kind="stable")).reshape(worth.shape)
    few = round(sparsity * worth.size)
    low = 0.5 * order / max(few, 1)
    high = 0.5 + 0.5 * (order - few) / max(worth.size - few - 1, 1)
    return np.where(order < few, low, high)


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))


def _perplexity(predicted: Sequence[np.ndarray], pieces: Sequence[np.ndarray]) -> float:
    losses = [-p[np.arange(t.shape[1] - 1), t[0, 1:]] for p, t in zip(predicted, pieces, strict=True)]
    return float(np.exp(np.concatenate(losses).mean()))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the table and prints what it is worth."""
    parser = argparse.ArgumentParser(prog="calibrate_heads", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=Path("heads.tsv"))
    parser.add_argument("--sink", type=int, default=4)
    parser.add_argument("--window", type=int, default=60)
    parser.add_argument("--sparsity", type=float, default=0.5, help="the part of heads that stream")
    parser.add_argument("--pieces", type=int, default=8, help="pieces of 512 tokens of the text that are used")
    args = parser.parse_args(argv)
    text = args.text.read_text("utf-8")
    tokens = np.array(open_tokenizer(args.tokenizer).encode(text), np.int64)[: 512 * args.pieces]
    say = (lambda s: print(f"\r{s}   ", end="", file=sys.stderr)) if sys.stderr.isatty() else None
    found = calibrate(args.model, tokens, args.sink, args.window, args.sparsity, progress=say)
    args.out.write_text("".join("\t".join(f"{x:.4f}" for x in row) + "\n" for row in found.table))
    print(f"perplexity {found.full:.3f} with everything, {found.streaming:.3f} with sinks and window alone")
    print(f"{found.chosen:.3f} with the table in {args.out}, {np.mean(found.table < 0.5):.0%} of the heads streaming")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
