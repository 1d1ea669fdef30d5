"""Decoding of a Llama of 336 million random weights of 8 and 4 bits, one thread, beside onnxruntime and llama.cpp.

    python -m runnel.tools.decoding --rows build/bench/llm.json

With everything in memory: processor time of a token, in turns, and a step of attention alone. Then under budgets of
memory that the kernel enforces, the file taken out of the system's cache before each run, beside llama.cpp with its
file mapped; and many such runs, of which none may be charged more than its budget.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import runnel
from runnel.files import replacing
from runnel.tools import compare_attention
from runnel.tools.decoding import flash
from runnel.tools.decoding.compete import Entry, compete
from runnel.tools.decoding.model import Shape, write_gguf, write_onnx
from runnel.tools.decoding.worker import WINDOW
from runnel.tools.units import positive

FORMS: dict[str, dict[str, str]] = {
    "float32": {"kv": f"window={WINDOW}"},
    "int8": {"kv": f"window={WINDOW}", "activations": "int8"},
    "paged": {"kv": f"window={WINDOW},keys=float16,values=float16", "activations": "int8"},  # as llama.cpp keeps them
}
"""What each bundle is compiled with."""


def prepared(folder: Path, shape: Shape, bits: int, forms: tuple[str, ...]) -> dict[str, Path]:
    """The model, made where it is not there yet: onnx, gguf (where that package is), and these forms of a bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"llama-{shape.parameters // 1_000_000}M-{bits}"
    found = {"onnx": folder / f"{name}.onnx"}
    if not found["onnx"].exists():
        write_onnx(found["onnx"], shape, bits)
    if find_spec("gguf") and find_spec("llama_cpp"):
        found["gguf"] = folder / f"{name}.gguf"
        if not found["gguf"].exists():
            write_gguf(found["gguf"], shape, bits)
    for form in forms:
        found[form] = folder / f"{name}-{form}.rnl"
        if not found[form].exists():
            runnel.compile(found["onnx"], found[form], backend="native", **FORMS[form])
    return found


def in_memory(files: dict[str, Path], bits: int, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """Rows of one bit width: each runtime with activations of float32 and of 8 bits, where it has them."""
    entries = [
        Entry("runnel, float32", "own", files["float32"]),
        Entry("onnxruntime, float32", "onnxruntime", files["onnx"], {"level": 0}),
        Entry("runnel, int8", "own", files["int8"]),
        Entry("onnxruntime, int8", "onnxruntime", files["onnx"], {"level": 4}),
    ]
    if "gguf" in files:
        entries.append(Entry("llama.cpp, int8", "llama.cpp", files["gguf"]))
        entries.append(Entry("llama.cpp, int8, mapped", "llama.cpp", files["gguf"], {"repack": False}))
    results = compete(entries, rounds, tokens)
    rows = []
    for result in results:
        runtime, activations = result.name.split(", ")[:2]
        own = next(r for r in results if r.name == f"runnel, {activations}")
        rows.append({
            "bits": bits, "runtime": result.name.replace(f", {activations}", ""), "activations": activations,
            "ms": 1e3 * result.token, "turns_ms": [1e3 * s for s in result.seconds],
            "ratio": own.token / result.token if runtime != "runnel" else None, "deviation": result.deviation,
        })  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/cache/llama"), help="where models are kept")
    parser.add_argument("--rounds", type=positive, default=9, help="turns of each runtime (default: 9)")
    parser.add_argument("--tokens", type=positive, default=8, help="of a turn (default: 8)")
    parser.add_argument("--layers", type=positive, default=Shape.layers, help="fewer make a smaller model")
    parser.add_argument("--bits", type=int, choices=(4, 8), action="append", help="8, then 4, if left out")
    parser.add_argument("--rows", type=Path, help="also write the rows there, as JSON")
    parser.add_argument("--only", choices=("memory", "flash", "limits"), help="one part of it")
    parser.add_argument("--runs", type=positive, default=10, help="under each limit of memory (default: 10)")
    args = parser.parse_args(argv)
    shape = Shape(layers=args.layers)
    rows: list[dict[str, Any]] = []
    limited: list[dict[str, Any]] = []
    many: list[dict[str, Any]] = []
    if args.only in (None, "memory"):
        print("| bits | activations | runtime | ms a token | runnel's part of it | logits apart |")
        print("|---|---|---|---|---|---|")
        for bits in args.bits or (8, 4):
            rows += in_memory(prepared(args.folder, shape, bits, ("float32", "int8")), bits, args.rounds, args.tokens)
            for row in rows:
                if row["bits"] == bits:
                    ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
                    print(f"| {bits} | {row['activations']} | {row['runtime']} | {row['ms']:.2f} | {ratio} | "
                          f"{row['deviation']:.1e} |", flush=True)  # fmt: skip
        step = compare_attention.compare(compare_attention.Shape(), f"window={WINDOW}", 60)
        print(f"attention of 16/4 heads of 64 over {WINDOW} slots: {step.own:.1f} µs, onnxruntime's ring "
              f"{step.peer:.1f}: {step.ratio:.2f} of it", flush=True)  # fmt: skip
    if args.only in (None, "flash"):
        limited = flash.measured(prepared(args.folder, shape, 8, ("paged",)), min(args.rounds, 5), print)
    if args.only in (None, "limits"):
        many = flash.repeated(prepared(args.folder, shape, 8, ("paged",))["paged"], args.runs, print)
    if args.rows:
        args.rows.parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.rows) as file:
            file.write((json.dumps({"memory": rows, "flash": limited, "limits": many}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
