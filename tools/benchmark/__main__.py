"""``python -m runnel.tools.benchmark``: steps of ours and of other runtimes on the same models, inputs and core.

All are pinned to one CPU and take turns. A runtime that gives wrong numbers is told so and not timed; one that is not
installed or does not take a model is told so too. Raw rows go to a JSON file, from which the page is made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runnel.errors import RunnelError
from runnel.tools.benchmark import driver, page, roofline
from runnel.tools.benchmark.figures import Figures, figures, ratios
from runnel.tools.benchmark.harness import OURS, Settings, compete
from runnel.tools.benchmark.prepare import prepare
from runnel.tools.benchmark.workloads import WORKLOADS, Workload
from runnel.tools.measure import one_cpu

QUICK = Settings(rounds=3, seconds=0.02)


def bench(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """One row."""
    told = ("name", "kind", "hop", "lanes", "codes", "target", "of", "own_target")
    row: dict[str, Any] = {name: getattr(workload, name) for name in told}
    try:
        case, manifest = prepare(workload, folder / workload.name.replace(" ", "-"))
    except RunnelError as error:
        return row | {"fault": str(error).splitlines()[0]}
    weights = parameter_bytes(case.place / "step.onnx")
    row |= {"macs": case.macs, "macs_of_window": manifest["macs"].get("per_hop_naive"), "weights_bytes": weights}
    return row | {"entries": [asdict(e) for e in compete(case, settings)]}


def told(found: Figures) -> str:
    """A row as text: every contender's step, or why it has none."""
    lines = [found.name + (f": {found.fault}" if found.fault else "")]
    ours = next((e for e in found.entries if e.name == OURS), None)
    for e in found.entries:
        text = f"  {e.name:<20}"
        if e.step is None:
            text += f" {e.verdict} {e.reason[:90]}" + (f"by {e.error:.3g} of what is allowed" if e.error else "")
        else:
            text += f" {1e6 * e.step:9.2f} µs"
            if ours is not None and ours.rounds and e is not ours:
                text += "   we take {:.3f} [{:.3f} … {:.3f}] of it".format(*ratios(ours, e))
        lines.append(text)
    if found.roofline is not None:
        lines.append(f"  {'roofline':<20} {1e6 * found.roofline:9.2f} µs")
    for goal in found.goals:
        lines.append(
            f"  of {goal.what}: {goal.ratio:.3f}, {'reached' if goal.reached else 'NOT REACHED'} ({goal.limit:.3f})"
        )
    return "\n".join(lines)


def parameter_bytes(path: Path) -> int:
    """Of the constants that a model brings, as it stores them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    constants = [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"]
    return sum(numpy_helper.to_array(t).nbytes for t in (*graph.initializer, *constants))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.benchmark", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="NAME,...", help="only workloads whose name contains one of these"
    )
    parser.add_argument("--quick", action="store_true", help="few and short turns")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="where models and rows are kept")
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write the page, such as docs/performance.md")
    parser.add_argument("--keep", action="store_true", help="measure nothing: make the page of the rows that are kept")
    args = parser.parse_args(argv)
    if args.keep:
        page.write(json.loads((args.folder / "rows.json").read_text()), args.page)
        return 0
    settings = QUICK if args.quick else Settings()
    chosen = [w for w in WORKLOADS if any(part in w.name for part in args.only.split(","))]
    os.environ |= {"OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.environ["RUNNEL_BENCH_DRIVER"] = str(driver.build(args.folder))
    rows = []
    with one_cpu() as cpu:
        top = roofline.measure()
        machine = {"machine": platform.machine(), "cpu": model_name(), "pinned": cpu, "settings": asdict(settings),
                   "when": time.strftime("%Y-%m-%d"), "roofline": top.to_dict()}  # fmt: skip
        for workload in chosen:
            row = bench(workload, args.folder / "cases", settings)
            rows.append(row)
            top = top.better(roofline.measure(0.004))
            machine["roofline"] = top.to_dict()
            print(told(figures(row, rows, top)), flush=True)
            (args.folder / "rows.json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    if args.page and not args.only:
        page.write({"machine": machine, "rows": rows}, args.page)
    return 0


def model_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    raise SystemExit(main())
