"""``python -m runnel.tools.compare_attention``: a step of attention over a cache against onnxruntime's own.

Both take the query, key and value of one token, turn them, keep a window of them and attend to it, one thread, in
turns. Onnxruntime's is GroupQueryAttention with ``sliding_window_cache``, its cache bound in place, at the capacity
that is fastest for it. Outputs are compared.
"""

from __future__ import annotations

import argparse
import json
import mmap
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Source, Stream, StreamFact, StreamGraph, StreamNode
from runnel.compiler.streaming.kinds.cache import CachedAttend, Rotary
from runnel.runtime.backends.memory import aligned
from runnel.runtime.backends.native import NativeProgram

LONGEST = 1 << 15  # positions in onnxruntime's table
STORAGE = ("", *(f",keys={kind},values={kind}" for kind in ("float16", "int8", "int4")))


@dataclass(frozen=True)
class Shape:
    """Heads of queries and of keys, features of a head, tokens that are kept."""

    heads: int = 16
    kv_heads: int = 4
    size: int = 64
    slots: int = 256

    @property
    def frequencies(self) -> np.ndarray:
        return 10000.0 ** (-np.arange(self.size // 2) * 2 / self.size)


def own_program(shape: Shape, kv: str, hop: int = 1) -> NativeProgram:
    """A program whose only step is the attention, for up to ``hop`` tokens in one step."""
    time_, streams = Count.time(), []
    nodes: list[StreamNode] = []
    for name, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
        x = Stream(name, (1, heads, None, shape.size), "float32", StreamFact(2, time_, time_, "q"))
        x.node = Source(name, "Source", [], x)
        streams.append(x)
        nodes.append(x.node)
    y = Stream("y", (1, shape.heads, None, shape.size), "float32", StreamFact(2, time_, time_, "q"))
    scale = shape.size**-0.5
    nodes.append(CachedAttend("y", "CachedAttention", [*streams], y, scale=scale, rotary=Rotary(shape.frequencies)))
    graph = StreamGraph("attention", streams, {"y": y}, nodes, 17, kv=kv)
    native = Planner(lower(graph), hop, KernelModule(Target.host())).build()
    ports = [{"name": s.name, "dtype": "float32", "axis": 2, "shape": list(s.shape)} for s in (*streams, y)]
    manifest = {
        "name": "attention", "hop": hop, "latency_frames": 0, "program_hash": "00" * 32, "inputs": ports[:3],
        "outputs": ports[3:], "clock": {"rate": None}, "kv": None,
    }  # fmt: skip
    weights = aligned(len(native.weights))
    weights[:] = np.frombuffer(native.weights, np.uint8)
    code = mmap.mmap(-1, len(native.image.code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(native.image.code)
    return NativeProgram(manifest, native.plan, weights, np.frombuffer(code, np.uint8))


class Peer:
    """GroupQueryAttention of onnxruntime over a window, with a cache of ``capacity`` tokens bound in place."""

    def __init__(self, shape: Shape, capacity: int) -> None:
        self.shape, self.tokens = shape, 0
        wide, narrow = shape.heads * shape.size, shape.kv_heads * shape.size
        cache = [1, shape.kv_heads, capacity, shape.size]
        angles = np.outer(np.arange(LONGEST), shape.frequencies)
        tables = [
            helper.make_tensor(n, TensorProto.FLOAT, angles.shape, f(angles).astype(np.float32).tobytes(), raw=True)
            for n, f in (("cos", np.cos), ("sin", np.sin))
        ]
        dims = {"q": [1, 1, wide], "k": [1, 1, narrow], "v": [1, 1, narrow], "pk": cache, "pv": cache}
        floats = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in dims.items()]
        counts = [helper.make_tensor_value_info(n, TensorProto.INT32, d) for n, d in (("len", [1]), ("total", []))]
        outs = [("y", [1, 1, wide]), ("ck", cache), ("cv", cache)]
        node = helper.make_node(
            "GroupQueryAttention", [*dims, "len", "total", "cos", "sin"], [n for n, _ in outs],
            domain="com.microsoft", num_heads=shape.heads, kv_num_heads=shape.kv_heads, do_rotary=1,
            local_window_size=shape.slots, sliding_window_cache=1,
        )  # fmt: skip
        made = [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in outs]
        graph = helper.make_graph([node], "gqa", [*floats, *counts], made, tables)
        sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        model = helper.make_model(graph, opset_imports=sets, ir_version=onnx.IR_VERSION_2023_5_5)
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.arrays = {n: np.zeros(d, np.float32) for n, d in dims.items()}
        self.arrays |= {"len": np.zeros(1, np.int32), "total": np.zeros((), np.int32), "y": np.zeros([1, 1, wide], "f")}
        self.binding = self.session.io_binding()
        self.kept: list[Any] = []
        for name in (*dims, "len", "total"):
            self._bind(self.binding.bind_ortvalue_input, name, name)
        for name, memory in (("y", "y"), ("ck", "pk"), ("cv", "pv")):
            self._bind(self.binding.bind_ortvalue_output, name, memory)

    def _bind(self, bind: Callable[[str, Any], None], name: str, memory: str) -> None:
        value = ort.OrtValue.ortvalue_from_numpy(self.arrays[memory])
        self.kept.append(value)
        bind(name, value)

    def push(self, x: dict[str, np.ndarray]) -> np.ndarray:
        for name, value in x.items():
            self.arrays[name].reshape(-1)[:] = value.reshape(-1)
        self.arrays["len"][0] = self.tokens
        self.tokens += 1
        self.arrays["total"][...] = self.tokens
        self.session.run_with_iobinding(self.binding)
        return self.arrays["y"].reshape(-1)


@dataclass(frozen=True)
class Row:
    """Medians in microseconds and their ratio; deviation: of the outputs, as a part of the range, None where another
    policy gives others."""

    kv: str
    slots: int
    own: float
    peer: float
    ratio: float
    deviation: float | None
    capacity: int


def compare(shape: Shape, kv: str, rounds: int) -> Row:
    """Both fed the same tokens until the window is full, then timed in turns of 20 steps."""
    rng = np.random.default_rng(0)
    stream = own_program(shape, kv).stream()
    peers = {c: Peer(shape, c) for c in (shape.slots, shape.slots + 64, 2 * shape.slots)}

    def token() -> dict[str, np.ndarray]:
        heads = {"q": shape.heads, "k": shape.kv_heads, "v": shape.kv_heads}
        return {n: rng.standard_normal((1, h, 1, shape.size)).astype(np.float32) for n, h in heads.items()}

    worst = 0.0
    for n in range(shape.slots + 80):
        x = token()
        got, wanted = np.asarray(stream.push(x)).reshape(-1), [p.push(x) for p in peers.values()][0]
        if n % 16 == 0:
            worst = max(worst, float(np.abs(got - wanted).max() / np.ptp(wanted)))
    tokens = [token() for _ in range(20)]
    runs: dict[Any, Callable[[dict[str, np.ndarray]], Any]] = {"own": stream.push}
    runs |= {c: p.push for c, p in peers.items()}
    times: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for x in tokens:
                run(x)
            times[name].append((time.perf_counter() - start) / len(tokens) * 1e6)
    medians = {name: statistics.median(t) for name, t in times.items()}
    own = medians.pop("own")
    capacity = min(medians, key=lambda c: medians[c])
    return Row(
        kv,
        shape.slots,
        own,
        medians[capacity],
        own / medians[capacity],
        worst if kv.startswith("window") else None,
        capacity,
    )


def main(argv: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="compare_attention", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    rows = []
    for slots in (64, 256, 1024):
        shape = Shape(slots=slots)
        kinds = [f"window={slots}{storage}" for storage in STORAGE]
        kinds.append(f"sink=4,window={slots - 4},positions=contiguous")
        ranked = f"heavy={slots // 2},window={slots // 2}"
        kinds += [ranked, f"{ranked},positions=contiguous"]
        rows += [compare(shape, kv, args.rounds) for kv in kinds]
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return 0
    print(f"{'kv':42} {'own µs':>8} {'ort µs':>8} {'ratio':>6}  deviation")
    for row in rows:
        deviation = "" if row.deviation is None else f"{row.deviation:.1e}"
        print(f"{row.kv:42} {row.own:8.1f} {row.peer:8.1f} {row.ratio:6.2f}  {deviation}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
