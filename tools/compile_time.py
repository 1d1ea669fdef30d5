"""How long compiling takes for 100, 1,000 and 5,000 nodes: ``python -m runnel.tools.compile_time`` prints the table."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.emit import emit
from runnel.compiler.streaming.optimise import optimise
from runnel.tools.build import compile_model

SIZES = (100, 200, 1000, 5000)
CHANNELS = 8
PROOF = ("running the offline model", "proving onnxruntime", "proving native")


def residual_net(nodes: int) -> bytes:
    """Residual blocks of a convolution over 3 frames with look-ahead, Tanh, a scale and a sum: 4 nodes a block."""
    rng = np.random.default_rng(0)
    blocks = max(1, nodes // 4)
    share = numpy_helper.from_array(
        np.array(1 / blocks, np.float32), "share"
    )  # else rounding grows from block to block
    made, weights, h = [], [share], "x"
    for i in range(blocks):
        weight = rng.standard_normal((CHANNELS, CHANNELS, 3)) / (3 * CHANNELS) ** 0.5
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{i}"))
        made += [
            helper.make_node("Conv", [h, f"w{i}"], [f"c{i}"], f"conv{i}", pads=[1, 1]),
            helper.make_node("Tanh", [f"c{i}"], [f"t{i}"], f"tanh{i}"),
            helper.make_node("Mul", [f"t{i}", "share"], [f"s{i}"], f"scale{i}"),
            helper.make_node("Add", [h, f"s{i}"], [f"h{i}"], f"sum{i}"),
        ]
        h = f"h{i}"
    ports = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, CHANNELS, "T"]) for n in ("x", h)]
    graph = helper.make_graph(made, "residual", ports[:1], ports[1:], weights)
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


def measure(nodes: int) -> dict[str, float]:
    """Seconds of the streaming rewrite, of the proof and of all of compile."""
    model = residual_net(nodes)
    rewrites = []
    for _ in range(3):
        start = time.perf_counter()
        graph = analyse(load(model))
        optimise(graph)
        emit(graph)
        rewrites.append(time.perf_counter() - start)
    marks: list[tuple[str, float]] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        compile_model(
            model, Path(folder) / "net.rnl", progress=lambda stage, _: marks.append((stage, time.perf_counter()))
        )
    total = time.perf_counter() - start
    ends = [t for _, t in marks[1:]] + [start + total]
    proof = sum(end - t for (stage, t), end in zip(marks, ends, strict=True) if stage in PROOF)
    return {"nodes": nodes, "rewrite": statistics.median(rewrites), "proof": proof, "compile": total}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.compile_time", description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES, metavar="N", help="sizes of the model")
    parser.add_argument("--rows", metavar="FILE", help="keep the figures as JSON")
    args = parser.parse_args(argv)
    measure(args.nodes[0])  # imports and caches
    rows: list[dict[str, Any]] = []
    print(f"{'nodes':>6} {'rewrite':>10} {'ms/node':>9} {'proof':>9} {'ms/node':>9} {'compile':>9}")
    for nodes in args.nodes:
        row = measure(nodes)
        rows.append(row)
        each = [1000 * row[k] / nodes for k in ("rewrite", "proof")]
        print(
            f"{nodes:6} {row['rewrite']:8.3f} s {each[0]:9.3f} {row['proof']:7.2f} s {each[1]:9.2f} "
            f"{row['compile']:7.2f} s",
            flush=True,
        )
    if args.rows:
        Path(args.rows).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
