"""Counts the instructions that a bundle takes a frame on ARM: a figure of cost that no machine's load changes.

qemu-user writes down each block of instructions when it translates it, and each time that it runs one. A run over n
frames and one over more differ by what the frames between took, so that opening the bundle is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from runnel import targets
from runnel.errors import InputError, RunnelError
from runnel.runtime.bundle import Bundle
from runnel.tools import arm_root, emulate, terminal
from runnel.tools.arm_root import Unreachable

STEPS = 4  # of the first run, in hops; the second takes twice as many
LOG = "in_asm,exec,nochain"


def per_frame(path: str | os.PathLike[str], steps: int = STEPS) -> float:
    """Instructions of ``runnel-run`` for one frame of the stream's clock, in steps of the hop.

    Raises InputError where the bundle's processor is not emulated, or where it has several inputs.
    """
    bundle = Bundle(path)
    manifest = bundle.manifest
    inputs = manifest["inputs"]
    if len(inputs) > 1:
        raise InputError(f"'{bundle.path}' has {len(inputs)} inputs; instructions are counted for one.")
    hop = int(manifest["hop"])
    frames = [steps * hop, 2 * steps * hop]
    most = manifest["clock"].get("max_frames")
    if most is not None:
        frames = [min(f, int(most)) for f in frames]
    elements = int(np.prod([d for d in inputs[0]["shape"] if d is not None]))
    rng = np.random.default_rng(1)
    noise = rng.uniform(-1, 1, frames[1] * elements)
    data = (noise * (1 if inputs[0]["dtype"].startswith("float") else 100)).astype(inputs[0]["dtype"])
    counts = []
    for n in frames:
        words = ["run", bundle.path, "--in", "raw:-", "--chunk", str(hop)]
        counts.append(_count([*processor_of(manifest), *words], data[: n * elements].tobytes()))
    return (counts[1] - counts[0]) / (frames[1] - frames[0])


PEER = """
import sys
import os, time
import numpy, onnxruntime

model, times = sys.argv[1], int(sys.argv[2])
if not times:
    maps = open("/proc/self/maps").read().splitlines()
    print(next(line.split()[0] for line in maps if "pybind11_state" in line and "x" in line.split()[1]))
    sys.exit()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options)
types = {"tensor(float)": "f4", "tensor(int64)": "i8", "tensor(int8)": "i1", "tensor(uint8)": "u1", "tensor(bool)": "?"}
sizes = {i.name: [d if isinstance(d, int) else 1 for d in i.shape] for i in session.get_inputs()}
feeds = {i.name: numpy.ones(sizes[i.name], types[i.type]) for i in session.get_inputs()}
for pause in (SECONDS, 0):
    for _ in range(times):
        session.run(None, feeds)
    time.sleep(pause)
os._exit(0)
"""
PAUSE = 3.0  # s, in which the peer rests before what is counted


def steady_form(path: str | os.PathLike[str]) -> bytes:
    """A bundle's streaming graph without what only a stream's start and end need: the least that a peer has to do.

    Raises BundleError.
    """
    from runnel.tools.peer import without_edges

    bundle = Bundle(path)
    described = bundle.manifest["onnx"]
    return without_edges(bundle.read("streaming.onnx"), described["position"], described["length"])


def per_run_of_peer(model: bytes, runs: int = STEPS) -> float:
    """Instructions of onnxruntime's aarch64 build inside its own library for one run of an ONNX model, sizes that are
    not fixed being 1, with all optimisations and one thread.

    Raises InputError, and arm_root.Unreachable where there is no arm64 root.
    """
    root = arm_root.cached()
    python = [*arm_root.command(root), "-c", PEER.replace("SECONDS", str(2 * PAUSE))]
    env = {**os.environ, "PYTHONPATH": str(root / "site")}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "m.onnx"
        place.write_bytes(model)
        asked = subprocess.run([*python, place, "0"], capture_output=True, text=True, check=True, env=env)
        library = "..".join(f"0x{address}" for address in asked.stdout.strip().split("-"))
        return _count([*python, str(place), str(runs)], b"", env, library, PAUSE) / runs


def processor_of(manifest: dict[str, object]) -> list[str]:
    """The emulator, as the processor of the target where it knows that, and runnel-run. Raises InputError."""
    target = manifest["target"]
    assert isinstance(target, dict)
    command = emulate.command_for(str(target["arch"]))
    if len(command) < 2:
        raise InputError("this machine runs the bundle itself; instructions are counted on emulated processors.")
    try:
        cpu = targets.load(str(target["name"])).cpu
    except InputError:
        cpu = ""
    known = subprocess.run([command[0], "-cpu", "help"], capture_output=True, text=True, check=False).stdout.split()
    return [command[0], "-cpu", cpu if cpu in known else "max", *command[1:]]


def _count(
    command: Sequence[str],
    data: bytes,
    env: Mapping[str, str] | None = None,
    only: str = "",
    pause: float | None = None,
) -> int:
    """Instructions that a program takes under an emulator. Raises InputError with its last words.

    only: a range of addresses, as 0x1000..0x2000, whose instructions alone are counted. pause: seconds; what came
    before the last rest that long is left out.
    """
    blocks, runs = blocks_of(command, data, env, only, pause)
    return sum(count * len(blocks[block]) for block, count in runs.items())


def blocks_of(
    command: Sequence[str],
    data: bytes,
    env: Mapping[str, str] | None = None,
    only: str = "",
    pause: float | None = None,
) -> tuple[dict[int, list[bytes]], Counter[int]]:
    """Blocks of instructions by their address, a line of the emulator's each, and how often each block ran.

    Arguments and errors as those of a count.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        os.mkfifo(log)
        blocks: dict[int, list[bytes]] = {}
        runs: Counter[int] = Counter()
        reader = threading.Thread(target=_read, args=(log, blocks, runs, pause))
        reader.start()
        line = [command[0], "-d", LOG, *(["-dfilter", only] if only else []), "-D", str(log), *command[1:]]
        done = subprocess.run(line, input=data, capture_output=True, check=False, env=env)
        with suppress(OSError):  # ENXIO: it has read all
            os.close(
                os.open(log, os.O_WRONLY | os.O_NONBLOCK)
            )  # else a program that never opened the log leaves it waiting
        reader.join()
    if done.returncode:
        raise InputError(done.stderr.decode("utf-8", "replace").strip().splitlines()[-1])
    return blocks, runs


def _read(log: Path, blocks: dict[int, list[bytes]], runs: Counter[int], pause: float | None) -> None:
    block: list[bytes] = []
    rest = b""
    with log.open("rb", buffering=0) as file:
        while True:
            if not select.select([file], [], [], pause)[0]:
                runs.clear()
                continue
            if not (data := file.read(1 << 16)):
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"Trace "):
                    runs[int(line.split(b"/", 2)[1], 16)] += 1
                elif line.startswith(b"0x"):
                    block.append(line)
                elif block:
                    blocks[int(block[0][: block[0].index(b":")], 16)] = block
                    block = []


def main(words: Sequence[str] | None = None) -> int:
    """Prints what bundles take, or compiles models for a target and does."""
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.instructions", description=__doc__)
    parser.add_argument("bundle", nargs="+", help="bundles for ARM")
    parser.add_argument("--peer", action="store_true", help="also count onnxruntime's aarch64 build")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(words)
    try:
        rows = {path: {"runnel": per_frame(path)} for path in args.bundle}
        if args.peer:
            for path, row in rows.items():
                row["onnxruntime"] = per_run_of_peer(steady_form(path)) / int(Bundle(path).manifest["onnx"]["hop"])
    except (RunnelError, Unreachable) as error:
        print(f"instructions: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        head = ["bundle", *next(iter(rows.values()))]
        print(terminal.table(head, [[p, *(f"{n:,.0f}" for n in row.values())] for p, row in rows.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
