"""Reading weights of active neurons only, beside reading all of them, under a budget of half the weights.

    python -m runnel.tools.bench_sparse build/verse_wide/verse_wide.onnx --predictor build/verse_wide/predictor.npz

Every form decodes the same text with runnel-run, one token at a time and in turns, under a limit of the kernel where
there are control groups. naive: every weight is read for every token, when it is needed. dense, exact, predicted: what
--sparse is, at half the weights; resident: with all weights in memory. With --weights the same forms with rounded
weights beside them, in the same memory. What cannot run in it is left out. A form must give the same bits under any
budget.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

import runnel
from runnel import models
from runnel.errors import InputError
from runnel.files import replacing
from runnel.runtime import build_board
from runnel.runtime.bundle import Bundle
from runnel.tools.decoding.limit import Group, NoLimits, forget, group
from runnel.tools.generate.tokens import open_tokenizer
from runnel.tools.units import positive

VERSE = Path(models.__path__[0]) / "verse"
HOP = 1
LIMIT = 1.5  # of the budget: what the kernel allows


@dataclass
class Row:
    """One form. ms: mean milliseconds a token, of each round. charged: the most bytes that the kernel counted."""

    name: str
    bundle: str
    ram: int
    mode: str = ""
    perplexity: float = 0.0
    charged: int = 0
    ms: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.ms)


def perplexity(logits: np.ndarray, tokens: np.ndarray) -> float:
    """Of the tokens after the first. logits: (tokens, vocabulary)."""
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(-1, keepdims=True)
    chances = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return float(np.exp(-chances[np.arange(len(tokens) - 1), tokens[1:]].mean()))


def least(binary: Path, bundle: Path, tokens: Path) -> int:
    """The smallest budget, which a refusal tells."""
    done = subprocess.run(
        [binary, "run", bundle, "--in", tokens, "--out", "/dev/null", "--ram", "4096"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    found = re.search(r"at least (\d+) bytes", done.stderr)
    if found is None:
        raise InputError(f"'{bundle}' tells no least budget: {done.stderr.strip()}")
    return int(found[1])


def command(binary: Path, row: Row, folder: Path) -> list[object]:
    """What runs a form on the tokens, one at a time."""
    words: list[object] = [binary, "run", folder / row.bundle, "--in", folder / "tokens.npy", "--chunk", 1]
    if row.ram:
        words += ["--ram", row.ram] + (["--io", "plain"] if row.name == "naive" else [])
    return words


def play(binary: Path, row: Row, folder: Path, limits: Group | None) -> None:
    """One timed round of a form. Its logits go nowhere: pages of a file would be charged."""
    forget(folder / row.bundle)
    words = [*command(binary, row, folder), "--rate", 1, "--json"]
    if limits is not None and row.ram:
        done, charged = limits.run(words, int(LIMIT * row.ram))
        row.charged = max(row.charged, charged)
    else:
        done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"runnel-run failed ({done.returncode}): {done.stderr.strip()}")
    row.ms.append(1e3 * json.loads(done.stdout)["rtf"])
    row.mode = next((line.removeprefix("mode: ") for line in done.stderr.splitlines() if "mode:" in line), "all in RAM")


def answer(binary: Path, row: Row, folder: Path) -> np.ndarray:
    """A form's logits."""
    out = folder / "logits.npy"
    subprocess.run([*map(str, command(binary, row, folder)), "--out", out], capture_output=True, check=True)
    return np.asarray(np.load(out)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a decoder with Relu in its feed-forward layers")
    parser.add_argument("--predictor", type=Path, help="also the predicted form, by this file")
    parser.add_argument("--calibration", type=Path, help="tokens (.npy) that say how often neurons come again")
    parser.add_argument("--weights", help="also with weights rounded so: int8, int4, …, under the same budget")
    parser.add_argument("--tokenizer", type=Path, default=VERSE / "tokenizer.json")
    parser.add_argument("--text", type=Path, default=VERSE / "held_out.txt")
    parser.add_argument("--tokens", type=positive, default=512)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--share", type=float, default=0.5, help="of the weights that the budget is (default: 0.5)")
    parser.add_argument("--rows", type=Path, help="also write the rows there, as JSON")
    args = parser.parse_args()
    words = open_tokenizer(args.tokenizer).encode(args.text.read_text(encoding="utf-8"))
    tokens = np.array([0, *words], np.int64)[: args.tokens]
    with tempfile.TemporaryDirectory(dir=args.model.resolve().parent) as name, ExitStack() as stack:
        folder = Path(name)
        np.save(folder / "tokens.npy", tokens[None])
        binary = folder / "runnel-run"
        build_board.build(binary)
        forms = {"dense": None, "exact": "exact"}
        if args.predictor:
            forms["predicted"] = f"predicted={args.predictor}"
        calibration = np.load(args.calibration)[:, : len(tokens)] if args.calibration else None
        options = {"kv": f"full={len(tokens)}", "max_frames": len(tokens), "backend": "native", "hop": HOP}
        names = []
        for weights in dict.fromkeys((None, args.weights)):
            for form, sparse in forms.items():
                names.append(form if weights is None else f"{form} {weights}")
                runnel.compile(
                    args.model, folder / f"{names[-1]}.rnl", sparse=sparse, calibration=calibration, weights=weights,
                    **options,
                )  # fmt: skip
        budget = int(args.share * Bundle(folder / "dense.rnl").weights_entry().size)
        rows = [Row("naive", "dense.rnl", least(binary, folder / "dense.rnl", folder / "tokens.npy"))]
        for name in names:
            if (needs := least(binary, folder / f"{name}.rnl", folder / "tokens.npy")) <= budget:
                rows.append(Row(name, f"{name}.rnl", budget))
            else:
                print(f"{name} needs {needs} bytes, more than the budget of {budget}")
        rows += [Row(f"{name}, resident", f"{name}.rnl", 0) for name in names]
        try:
            limits = stack.enter_context(group("runnel-sparse"))
            print(f"limit of memory: cgroup v{limits.version}, {LIMIT} of the budget")
        except NoLimits as error:
            limits = None
            print(f"no limit of memory: {error}")
        answers: dict[str, np.ndarray] = {}
        for row in rows:
            logits = answer(binary, row, folder)
            row.perplexity = perplexity(logits, tokens)
            if (logits != answers.setdefault(row.bundle, logits)).any():
                raise SystemExit(f"{row.name}: other bits than with another budget")
        for _ in range(args.rounds):
            for row in rows:
                play(binary, row, folder, limits)
    _print(rows, budget)
    if args.rows:
        args.rows.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.rows) as file:
            file.write((json.dumps([asdict(row) for row in rows], indent=1) + "\n").encode())


def _print(rows: list[Row], budget: int) -> None:
    by = {row.name: row.median for row in rows}
    dense = by.get("dense", by["dense, resident"])
    print(f"budget {budget} bytes\n| form | ms a token | of naive | of dense | perplexity | charged | mode |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        charged = f"{row.charged / 2**20:.1f} MiB" if row.charged else ""
        print(
            f"| {row.name} | {row.median:.2f} | {by['naive'] / row.median:.1f} | {dense / row.median:.2f} "
            f"| {row.perplexity:.2f} | {charged} | {row.mode} |"
        )


if __name__ == "__main__":
    main()
