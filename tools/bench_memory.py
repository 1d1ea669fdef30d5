"""Weights beyond memory, measured: from a cold start to the first output, and a speech model larger than its budget
against its deadline, on storage as it is and on storage that a control group slows down.

``make bench-memory``. Every run is a process of runnel-run whose bundle was taken out of the system's cache; runs take
turns. Dense weights are all needed for a first output, so there reading them as needed can save only what overlaps;
otherwise it saves what the first output does not need.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.files import replacing
from runnel.runtime import build_board
from runnel.tools import terminal
from runnel.tools.decoding.limit import forget

RATE, HOP = 100, 8  # frames of 10 ms, 80 ms a step
ROUNDS = 7
SLOW = 60_000_000  # bytes a second: a card
BURST = 0.2  # seconds of its rate that a control group may let through at once
WIDTH, MIB = 1024, 1 << 20
THROTTLES = (("blkio", "blkio.throttle.read_bps_device", "{} {}"), ("", "io.max", "{} rbps={}"))


def model(layers: int, words: int) -> bytes:
    """Dense layers of 4 MiB; with ``words``, behind a table of as many rows of 2 KiB."""
    rng = np.random.default_rng(3)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(0.04 * rng.standard_normal(shape, np.float32), name)

    size = 512 if words else WIDTH
    weights = [weight("w0", size, WIDTH)] + [weight(f"w{i}", WIDTH, WIDTH) for i in range(1, layers)]
    x, shape, dtype, nodes = "x", [1, "T", WIDTH], TensorProto.FLOAT, []
    if words:
        weights.append(weight("table", words, size))
        nodes.append(helper.make_node("Gather", ["table", "x"], ["rows"]))
        x, shape, dtype = "rows", [1, "T"], TensorProto.INT64
    for i in range(layers):
        nodes += [helper.make_node("MatMul", [x, f"w{i}"], [f"p{i}"]), helper.make_node("Tanh", [f"p{i}"], [f"h{i}"])]
        x = f"h{i}"
    graph = helper.make_graph(
        nodes, "bench-memory", [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [1, "T", WIDTH])], weights,
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(made.SerializeToString())


def mixture(layers: int) -> bytes:
    """Layers of 16 experts of 2 MiB each, of which a frame chooses 2."""
    rng = np.random.default_rng(4)
    size, experts = 512, 16
    weights, nodes, x = [numpy_helper.from_array(np.array([-1, experts]), "rows")], [], "x"
    for i in range(layers):
        shapes = {"router": (size, experts), "first": (experts, size, size), "second": (experts, size, size)}
        for name, shape in shapes.items():
            weights.append(numpy_helper.from_array(0.04 * rng.standard_normal(shape, np.float32), f"{name}{i}"))
        names = [x, f"r{i}", f"first{i}", "", f"second{i}"]
        nodes += [
            helper.make_node("MatMul", [x, f"router{i}"], [f"s{i}"]),
            helper.make_node("Reshape", [f"s{i}", "rows"], [f"r{i}"]),
            helper.make_node("MoE", names, [f"m{i}"], domain="com.microsoft", k=2, activation_type="relu"),
            helper.make_node("Add", [x, f"m{i}"], [f"h{i}"]),
        ]
        x = f"h{i}"
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "T", size]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "bench-memory-experts", ports[:1], ports[1:], weights)
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=sets, ir_version=8).SerializeToString())


def disk_of(path: Path) -> str:
    """``major:minor`` of the disk below a path."""
    device = os.stat(path).st_dev
    known = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    whole = known.resolve().parent if (known / "partition").exists() else known
    return (whole / "dev").read_text().strip()


@contextmanager
def throttled(path: Path, bytes_per_s: int) -> Iterator[Path | None]:
    """A control group whose reads below ``path`` are no faster; None where none can be made."""
    lines = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
    for controller, file, form in THROTTLES:
        folder = Path("/sys/fs/cgroup") / controller / lines.get(controller, "/").lstrip("/") / f"runnel-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / file).write_text(form.format(disk_of(path), bytes_per_s))
        except OSError:
            folder.rmdir()
            continue
        try:
            yield folder
        finally:
            folder.rmdir()
        return
    yield None


def call(command: Sequence[object], group: Path | None, drain: Path | None = None) -> subprocess.CompletedProcess[str]:
    """drain: a file of which as much is read first as the group may let through at once."""

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    words = [str(word) for word in command]
    if group is not None and drain is not None:
        blocks = int(SLOW * BURST) // MIB + 1
        read = f'dd if="$0" of=/dev/null bs={MIB} count={blocks} iflag=direct 2>/dev/null; exec "$@"'
        words = ["sh", "-c", read, str(drain), *words]
    return subprocess.run(words, capture_output=True, text=True, check=False, preexec_fn=enter)


def starts(program: Path, bundle: Path, group: Path | None, drain: Path) -> dict[str, Any]:
    """Seconds to the first output, everything loaded first and weights read as needed."""
    seconds: dict[str, list[float]] = {"loaded first": [], "read as needed": []}
    for _ in range(ROUNDS):
        for name, words in (("loaded first", []), ("read as needed", ["--ram", "1G"])):
            forget(bundle)
            done = call(
                [program, "bench", bundle, "--seconds", "0.001", "--chunk", "1", "--json", *words], group, drain
            )
            if done.returncode:
                raise runnel.InternalError(done.stderr)
            seconds[name].append(json.loads(done.stdout)["first_step"])
    ratios = np.asarray(seconds["loaded first"]) / np.asarray(seconds["read as needed"])
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    return {**medians, "ratio": float(np.median(ratios)), "least": float(ratios.min()), "raw": seconds}


def deadline(program: Path, bundle: Path, ram: int, group: Path | None) -> dict[str, Any]:
    """What runnel-run says beforehand of real time, and what came of it, at a priority where the system gives one."""
    forget(bundle)
    words = ["--chunk", HOP, "--rate", RATE, "--realtime", "--seconds", "10", "--json", "--ram", ram]
    done = call([program, "bench", bundle, *words, "--priority", 50], group)
    if "is not allowed" in done.stderr:
        done = call([program, "bench", bundle, *words], group)
    said = next((line for line in done.stderr.splitlines() if line.startswith("storage: ")), done.stderr.strip())
    row = json.loads(done.stdout) if done.returncode == 0 else {}
    kept = ("steps", "deadline_misses", "p50", "worst", "ram_budget", "ram_peak", "streamed_bytes_per_step")
    return {"said": said, "refused": done.returncode == 2, **{name: row.get(name) for name in kept}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--rows", metavar="FILE", help="also write the raw rows there, as JSON")
    args = parser.parse_args()
    found: dict[str, Any] = {"start": {}, "deadline": {}}
    with tempfile.TemporaryDirectory(prefix="runnel-bench-", dir=".") as name:
        folder = Path(name)
        program = folder / "runnel-run"
        build_board.build(program)
        bundles = {
            "dense, 32 MiB": model(8, 0),
            "32 MiB behind a table of 96 MiB": model(8, 48 << 10),
            "2 of 16 experts in each of 4 layers, 128 MiB": mixture(4),
        }
        drain = folder / "drain"
        drain.write_bytes(os.urandom(int(SLOW * BURST) + 2 * MIB))
        for i, (title, given) in enumerate(bundles.items()):
            path = folder / f"{i}.rnl"
            runnel.compile(given, path, backend="native", hop=HOP)
            for speed in (0, SLOW):
                with throttled(folder, speed or SLOW) as group:
                    if speed and group is None:
                        continue
                    where = f"{speed / 1e6:.0f} MB/s" if speed else "as it is"
                    found["start"][f"{title}, storage {where}"] = starts(program, path, group if speed else None, drain)
        speech = folder / "0.rnl"
        for speed in (0, SLOW):
            with throttled(folder, speed or SLOW) as group:
                if speed and group is None:
                    continue
                where = f"{speed / 1e6:.0f} MB/s" if speed else "as it is"
                found["deadline"][where] = deadline(program, speech, 20 << 20, group if speed else None)
    cells = [
        [title, terminal.duration(row["loaded first"]), terminal.duration(row["read as needed"]),
         f"{row['ratio']:.2f} (least {row['least']:.2f})"]
        for title, row in found["start"].items()
    ]  # fmt: skip
    print(terminal.table(["to the first output", "all loaded first", "read as needed", "times faster"], cells))
    print(f"\n32 MiB of weights in 20 MiB of memory, {HOP * 1000 // RATE} ms a step, storage")
    for where, row in found["deadline"].items():
        came = "refused"
        if not row["refused"]:
            times = f"p50 {terminal.duration(row['p50'])}, worst {terminal.duration(row['worst'])}"
            came = f"{row['deadline_misses']} of {row['steps']} steps late, {times}"
        print(f"  {where}: {row['said']}; {came}")
    if args.rows:
        Path(args.rows).parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.rows) as file:
            file.write((json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
