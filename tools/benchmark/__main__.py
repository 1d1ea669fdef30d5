"""``python -m runnel.tools.benchmark``: steps of ours and of other runtimes on the same models, inputs and core.

All are pinned to one CPU and take turns. A runtime that gives wrong numbers is told so and not timed; one that is not
installed or does not take a model is told so too. Raw rows go to a JSON file beside the page, which is made from it; a
quick run keeps both in its folder.
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

import numpy as np

from runnel.runtime.bundle import Bundle
from runnel.runtime.program import load
from runnel.tools.benchmark import driver, page, roofline
from runnel.tools.benchmark.case import Case
from runnel.tools.benchmark.figures import Figures, figures, ratios
from runnel.tools.benchmark.harness import OURS, Settings, compete
from runnel.tools.benchmark.prepare import prepare
from runnel.tools.benchmark.workloads import WORKLOADS, Workload
from runnel.tools.measure import one_cpu

SETTLED = 2  # turns of the strides that are looked at, after as many
QUICK = Settings(rounds=3, seconds=0.02)


def bench(workload: Workload, folder: Path, settings: Settings) -> dict[str, Any]:
    """One row."""
    told = ("name", "kind", "hop", "lanes", "codes", "target", "of", "own_target")
    row: dict[str, Any] = {name: getattr(workload, name) for name in told} | {"when": time.strftime("%Y-%m-%d")}
    try:
        case, manifest = prepare(workload, folder / workload.name.replace(" ", "-"))
    except Exception as error:  # whatever it is, the other workloads go on
        return row | {"fault": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    weights = parameter_bytes(case.place / "step.onnx")
    row |= {"macs": case.macs, "macs_of_window": manifest["macs"].get("per_hop_naive"), "weights_bytes": weights}
    row["done"] = own_work(case, int(manifest["macs"]["natural_hop"]))
    return row | {"entries": [asdict(e) for e in compete(case, settings)]}


def own_work(case: Case, period: int) -> dict[str, float] | None:
    """Multiply-adds that our step makes, and bytes of weights that it has: less than the model's where a product is
    computed as thinner ones. None where the model has no native form."""
    bundle = Bundle(case.place / "model.rnl")
    if bundle.manifest["native_refusal"]:
        return None
    program = load(case.place / "model.rnl", backend="native")
    stream: Any = program.stream()
    port = program.timed[0]
    frames = np.zeros(port.sized(case.hop * port.per_tick), port.dtype)
    pushes = SETTLED * period
    for _ in range(pushes + max(case.reach, case.window) // case.hop):
        stream.push(frames)
    before = stream.counters["macs"]
    for _ in range(pushes):
        stream.push(frames)
    weights = sum(segment["bytes"] for segment in bundle.manifest["weights"]["segments"])
    return {"macs": (stream.counters["macs"] - before) / pushes * case.lanes, "weights_bytes": weights}


def merged(before: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """The rows of this run, and those of earlier ones on this kind of processor for workloads that it left out."""
    if before is None or before["machine"]["cpu"] != now["machine"]["cpu"]:
        return now
    rows = {row["name"]: row for row in (*before["rows"], *now["rows"])}
    top = page.top_of(before["machine"]).better(page.top_of(now["machine"]))
    known = [w.name for w in WORKLOADS]
    ordered = sorted(rows.values(), key=lambda row: known.index(row["name"]) if row["name"] in known else len(known))
    return {"machine": now["machine"] | {"roofline": json.loads(json.dumps(top.to_dict()))}, "rows": ordered}


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
    parser.add_argument(
        "--trials", type=int, default=64, metavar="N",
        help="measurements that TVM's search may make for a model, once (default: 64; 0: take what is there)",
    )  # fmt: skip
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="also write the page, such as docs/performance.md, and rows beside it"
    )
    parser.add_argument("--keep", action="store_true", help="measure nothing: make the page of the rows that are kept")
    args = parser.parse_args(argv)
    chosen = [w for w in WORKLOADS if any(part in w.name for part in args.only.split(","))]
    if not chosen:
        parser.error(f"no workload's name contains '{args.only}'; there are: {', '.join(w.name for w in WORKLOADS)}")
    shown = args.folder / args.page.name if args.page and args.quick else args.page
    place = shown.with_suffix(".json") if shown else args.folder / "rows.json"
    if args.keep:
        page.write(read(place), args.page)
        return 0
    settings = QUICK if args.quick else Settings()
    os.environ |= {"OMP_NUM_THREADS": "1", "TVM_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    os.environ["RUNNEL_BENCH_TRIALS"] = str(0 if args.quick else args.trials)
    os.environ["RUNNEL_BENCH_DRIVER"] = str(driver.build(args.folder))
    rows: list[dict[str, Any]] = []
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
            kept = merged(read(place) if place.exists() else None, {"machine": machine, "rows": rows})
            keep(kept, place)
    if shown:
        page.write(kept, shown)
        print(f"written: {shown}, {place}")
    return 0


def read(place: Path) -> dict[str, Any]:
    """Rows that were kept."""
    return dict(json.loads(place.read_text("utf-8")))


def keep(kept: dict[str, Any], place: Path) -> None:
    """A line a row, and five digits of a time."""
    head = json.dumps(kept["machine"])
    rows = ",\n".join(json.dumps(rounded(row)) for row in kept["rows"])
    place.write_text(f'{{"machine": {head},\n"rows": [\n{rows}\n]}}\n', "utf-8")


def rounded(value: Any) -> Any:
    """Data for JSON with five digits of each number that is not whole."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def model_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    raise SystemExit(main())
