"""Our schedules beside MetaSchedule's: ``python -m runnel.tools.tuning.metaschedule`` measures both for like layers.

MetaSchedule writes its own kernels from TVM's description of the layer, so what it finds cannot serve our builder; this
says what there would be to gain.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from runnel.tools.tuning.bench import LEAST_MS, ROUNDS
from runnel.tools.tuning.tune import tune

LAYERS = ((64, 3, 512, 1), (64, 3, 512, 4), (64, 3, 512, 16), (256, 1, 1, 1), (256, 1, 1, 16))
"""(channels, taps, dilation, frames) of residual layers."""


def layer(channels: int, taps: int, dilation: int) -> bytes:
    """x + relu(conv(x)), causal, [1, channels, T]."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((channels, channels, taps)).astype(np.float32) / (channels * taps) ** 0.5
    constants = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(channels, np.float32), "b")]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", dilations=[dilation], pads=[(taps - 1) * dilation, 0]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Add", ["x", "r"], ["y"], "sum"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, "T"]) for name in "xy"]
    graph = helper.make_graph(nodes, "layer", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def by_ours(channels: int, taps: int, dilation: int, frames: int, trials: int) -> tuple[float, float]:
    """Microseconds of a call by rule, and with the best schedule."""
    say = lambda *_: None  # noqa: E731
    records = tune(layer(channels, taps, dilation), [], None, trials, None, say, {"hop": frames})
    record = max((r for r in records if r.problem.rows <= frames), key=lambda r: r.problem.rows)
    return record.trials[0][1], min(t for _, t in record.trials)


def by_metaschedule(channels: int, taps: int, dilation: int, frames: int, trials: int, target: Any) -> float:
    """Microseconds of a call of the best kernel of a search, measured in the same way."""
    import tvm
    from tvm.s_tir import meta_schedule as ms

    described = tvm.IRModule({"main": function(channels, taps, dilation, frames)})
    with tempfile.TemporaryDirectory() as folder:
        database = ms.tir_integration.tune_tir(
            described, target, work_dir=folder, max_trials_global=trials, num_trials_per_iter=min(trials, 32),
            builder=_builder(ms, folder), runner=_runner(ms),
        )  # fmt: skip
        times = [float(t) for r in database.get_all_tuning_records() for t in r.run_secs or ()]
    return min(times) * 1e6


def function(channels: int, taps: int, dilation: int, frames: int) -> Any:
    """The layer as TVM describes it, over frames with their channels next to each other as ours are."""
    from tvm import te, tirx

    reach = (taps - 1) * dilation
    x = te.placeholder((frames + reach, channels), "float32", "x")
    w = te.placeholder((taps, channels, channels), "float32", "w")
    b = te.placeholder((channels,), "float32", "b")
    k, c = te.reduce_axis((0, taps), "k"), te.reduce_axis((0, channels), "c")
    total = te.compute(
        (frames, channels), lambda t, o: te.sum(x[t + k * dilation, c] * w[k, c, o], axis=[k, c]), "total"
    )
    zero = tirx.const(0, "float32")
    y = te.compute((frames, channels), lambda t, o: tirx.max(total[t, o] + b[o], zero) + x[t + reach, o], "y")
    return te.create_prim_func([x, w, b, y]).with_attr("global_symbol", "main")


def _builder(ms: Any, folder: str) -> Any:
    """In this process, since its own builders spend most of their time starting."""
    from tvm.ir.utils import derived_object
    from tvm.s_tir.meta_schedule.builder.local_builder import default_build

    @derived_object
    class Builder(ms.builder.PyBuilder):
        def build(self, build_inputs: Any) -> Any:
            results = []
            for wanted in build_inputs:
                path = str(Path(tempfile.mkdtemp(dir=folder)) / "kernel.so")  # the search removes its folder
                try:
                    default_build(wanted.mod, wanted.target, None).export_library(path)
                    results.append(ms.builder.BuilderResult(path, None))
                except Exception as error:  # a schedule that does not compile is none
                    results.append(ms.builder.BuilderResult(None, str(error)[:500]))
            return results

    return Builder()


def _runner(ms: Any) -> Any:
    """The least of several turns, as ours are measured: on a busy machine a mean says little."""
    import tvm
    from tvm.ir.utils import derived_object

    def timed(wanted: Any) -> float:
        loaded = tvm.runtime.load_module(wanted.artifact_path)
        random = np.random.default_rng(0)
        arrays = [
            tvm.runtime.tensor(random.standard_normal([int(n) for n in info.shape]).astype(np.float32))
            for info in wanted.args_info
        ]
        timer = loaded.time_evaluator("main", tvm.cpu(), number=1, repeat=1, min_repeat_ms=LEAST_MS)
        return min(float(timer(*arrays).mean) for _ in range(ROUNDS))

    @derived_object
    class Future(ms.runner.PyRunnerFuture):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def done(self) -> bool:
            return True

        def result(self) -> Any:
            return ms.runner.RunnerResult([self.seconds], None)

    @derived_object
    class Runner(ms.runner.PyRunner):
        def run(self, runner_inputs: Any) -> Any:
            return [Future(timed(wanted)) for wanted in runner_inputs]

    return Runner()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.tuning.metaschedule", description=__doc__)
    parser.add_argument("--trials", type=int, default=64, metavar="N", help="kernels that MetaSchedule may measure")
    parser.add_argument("--layers", type=int, nargs="+", metavar="N", help=f"which of the {len(LAYERS)} layers")
    parser.add_argument("--rows", metavar="FILE", help="keep the figures as JSON")
    args = parser.parse_args(argv)
    import tvm

    logging.getLogger("tvm").setLevel(logging.ERROR)
    cpu = str(tvm.get_global_func("target.llvm_get_system_cpu")())
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": 1})
    rows = []
    print("| channels | taps | frames | by rule, µs | searched | MetaSchedule | of by rule |\n|" + " --- |" * 7)
    for n in args.layers or range(len(LAYERS)):
        channels, taps, dilation, frames = LAYERS[n]
        rule, best = by_ours(channels, taps, dilation, frames, args.trials)
        theirs = by_metaschedule(channels, taps, dilation, frames, args.trials, target)
        again, _ = by_ours(channels, taps, dilation, frames, 1)
        rule = min(rule, again)
        rows.append({"layer": LAYERS[n], "rule": rule, "searched": min(best, rule), "metaschedule": theirs})
        figures = " | ".join(f"{value:.2f}" for value in (rule, min(best, rule), theirs, theirs / rule))
        print(f"| {channels} | {taps} | {frames} | {figures} |", flush=True)
    if args.rows:
        Path(args.rows).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
