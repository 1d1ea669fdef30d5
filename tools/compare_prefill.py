"""``python -m runnel.tools.compare_prefill``: attention of a prompt over a cache against onnxruntime's own.

Both take the queries, keys and values of a prompt, turn the latter, keep all of them and attend, one thread, in turns:
this in chunks, onnxruntime's GroupQueryAttention with the whole prompt in one call, which is fastest for it. Outputs
are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from runnel.tools.compare_attention import Shape, own_program

CHUNK = 64


@dataclass(frozen=True)
class Row:
    """Milliseconds of a prompt, the least of all turns, and the median of the turns' ratios; deviation: of the outputs,
    as a part of the range."""

    heads: str
    tokens: int
    own: float
    peer: float
    ratio: float
    deviation: float


def peer_of(shape: Shape) -> ort.InferenceSession:
    """GroupQueryAttention over ``shape.slots`` tokens."""
    tokens, wide, narrow = shape.slots, shape.heads * shape.size, shape.kv_heads * shape.size
    cache = [1, shape.kv_heads, tokens, shape.size]
    angles = np.outer(np.arange(tokens), shape.frequencies)
    tables = [
        helper.make_tensor(n, TensorProto.FLOAT, angles.shape, f(angles).astype(np.float32).tobytes(), raw=True)
        for n, f in (("cos", np.cos), ("sin", np.sin))
    ]
    dims = {"q": [1, tokens, wide], "k": [1, tokens, narrow], "v": [1, tokens, narrow], "pk": cache, "pv": cache}
    floats = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in dims.items()]
    counts = [helper.make_tensor_value_info(n, TensorProto.INT32, d) for n, d in (("len", [1]), ("total", []))]
    outs = {"y": [1, tokens, wide], "ck": cache, "cv": cache}
    node = helper.make_node(
        "GroupQueryAttention", [*dims, "len", "total", "cos", "sin"], list(outs), domain="com.microsoft",
        num_heads=shape.heads, kv_num_heads=shape.kv_heads, do_rotary=1,
    )  # fmt: skip
    made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in outs.items()]
    graph = helper.make_graph([node], "gqa", [*floats, *counts], made, tables)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=sets, ir_version=onnx.IR_VERSION_2023_5_5)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def compare(shape: Shape, rounds: int) -> Row:
    """Both with the same prompt, which fills ``shape.slots``, in turns."""
    rng, tokens = np.random.default_rng(0), shape.slots
    heads = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
    x = {n: rng.standard_normal((1, tokens, h, shape.size)).astype(np.float32) for n, h in heads.items()}
    own, peer = own_program(shape, f"full={tokens}", CHUNK), peer_of(shape)
    feeds = {n: a.reshape(1, tokens, -1) for n, a in x.items()}
    feeds |= {n: np.zeros((1, shape.kv_heads, tokens, shape.size), np.float32) for n in ("pk", "pv")}
    feeds |= {"len": np.array([tokens - 1], np.int32), "total": np.array(tokens, np.int32)}
    turned = {n: a.transpose(0, 2, 1, 3) for n, a in x.items()}
    chunks = [
        {n: np.ascontiguousarray(a[:, :, at : at + CHUNK]) for n, a in turned.items()} for at in range(0, tokens, CHUNK)
    ]
    times: list[tuple[float, float]] = []
    for _ in range(rounds):
        stream, begun = own.stream(), time.perf_counter()
        parts = [np.asarray(stream.push(chunk)) for chunk in chunks]
        between = time.perf_counter()
        wanted = np.asarray(peer.run(["y"], feeds)[0])[0]
        times.append((between - begun, time.perf_counter() - between))
    got = np.concatenate(parts, 2)[0].transpose(1, 0, 2).reshape(tokens, -1)
    return Row(
        f"{shape.heads}/{shape.kv_heads} x {shape.size}",
        tokens,
        min(a for a, _ in times) * 1e3,
        min(b for _, b in times) * 1e3,
        statistics.median(a / b for a, b in times),
        float(np.abs(got - wanted).max() / np.ptp(wanted)),
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="compare_prefill", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    shapes = [Shape(heads, kv, 64, n) for heads, kv in ((16, 4), (16, 16)) for n in (256, 1024)]
    rows = [compare(shape, args.rounds) for shape in [*shapes, Shape(16, 4, 64, 4096), Shape(8, 1, 128, 1024)]]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    print(f"{'heads':12} {'tokens':>7} {'own ms':>8} {'ort ms':>8} {'ratio':>6}  deviation")
    for row in rows:
        print(
            f"{row.heads:12} {row.tokens:7} {row.own:8.2f} {row.peer:8.2f} {row.ratio:6.2f}  {row.deviation:.1e}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
