"""Streams every model of models.py through runnel and the peers that are installed, and writes docs/peers.md.

``python -m runnel.tools.peers.table``. A peer runs in a process of its own, because some models end it. It is fed zeros
after the end, having no other way to end a stream.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

import runnel
from runnel import tools
from runnel.compiler.graph.fold import session
from runnel.errors import InternalError, Refused
from runnel.tools.peers.models import MODELS, Model
from runnel.tools.replay import chunkings, deviation, play

ROOT = Path(tools.__path__[0]).resolve().parent
PAGE = ROOT / "docs" / "peers.md"
FRAMES = 64
LIMIT = 1e-4
PEERS = {"tract": "tract"}


def recording(model: Model) -> np.ndarray:
    """A random input of about FRAMES frames, an odd number where the model takes one."""
    frames = FRAMES if model.multiple > 1 else FRAMES - 1
    shape = [frames if d == "T" else int(d) for d in model.shape]
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def offline(proto: bytes, x: np.ndarray) -> np.ndarray:
    """What onnxruntime makes of the whole recording; quantised models in the integer form that it turns them into."""
    model = onnx.load_from_string(proto)
    run = session(model)
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        run = ort.InferenceSession(proto, providers=["CPUExecutionProvider"])
    return np.asarray(run.run(None, {"x": x})[0])


def by_runnel(model: Model) -> str:
    """Exact on which backend, refused and why, or what a named mode costs."""
    proto, x = model.proto(), recording(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.rnl"
        try:
            manifest = runnel.compile(proto, path, **model.options).manifest
        except Refused as refused:
            return f"refused: {refused.reasons[0].reason}{by_mode(model, proto, path)}"
        wanted = {"y": offline(proto, x)}
        worst = 0.0
        for backend in manifest["backends"]:
            program = runnel.load(path, backend=backend)
            for cut in chunkings(x.shape[model.axis], program.hop, np.random.default_rng(0)).values():
                got = play(program.stream(), {"x": x}, {"x": model.axis}, cut)
                worst = max(worst, deviation(got, wanted))
    verdict = "exact" if worst <= LIMIT else f"**wrong** by {worst:.2g}"
    native = "" if "native" in manifest["backends"] else ", on onnxruntime only"
    given = ", ".join(f"{k}={v}" for k, v in model.options.items())
    return verdict + native + (f" (given {given})" if given else "")


def by_mode(model: Model, proto: bytes, path: Path) -> str:
    """What the named mode of a refused model says of itself."""
    if not model.mode:
        return ""
    manifest = runnel.compile(proto, path, **{**model.options, **model.mode}).manifest
    worst = min(o["snr_db"] for o in manifest["modes"]["deviation"].values())
    return f"; runs with {model.mode['mode']}, {worst:.0f} dB from it on noise"


def by_tract(model: Model) -> str:
    """In chunks of 4 frames: exact, wrong and where, refused, or the end of its process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.proto())
        x = recording(model)
        np.savez(Path(folder) / "case.npz", x=x, y=offline(model.proto(), x))
        facts = json.dumps({"shape": list(model.shape), "axis": model.axis, "folder": folder})
        ran = subprocess.run(
            [sys.executable, "-m", "runnel.tools.peers.run_tract", facts], capture_output=True, text=True, check=False
        )
    if ran.returncode != 0:
        return f"**ends the process** (code {ran.returncode})"
    return ran.stdout.strip().splitlines()[-1]


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def page(rows: list[dict[str, Any]], peers: dict[str, str]) -> str:
    """The table in Markdown."""
    head = ["model", "runnel", *(f"{name} {number}" for name, number in peers.items())]
    lines = [head, ["---"] * len(head)]
    lines += [[row["model"], row["runnel"], *(row[name] for name in peers)] for row in rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    exact = {name: sum(str(row[name]).startswith("exact") for row in rows) for name in ("runnel", *peers)}
    wrong = {name: sum("**" in str(row[name]) for row in rows) for name in ("runnel", *peers)}
    counts = "; ".join(f"{name}: {exact[name]} exact, {wrong[name]} wrong" for name in exact)
    return f"""# What streams exactly, here and elsewhere

Made by `python -m runnel.tools.peers.table`, which anyone can run (`pip install tract` for the peer's column). Each
model is streamed over {FRAMES - 1} or {FRAMES} random frames and compared with onnxruntime on the whole recording:
runnel frame by frame, in prime and random chunks and at once, start and end included; tract in chunks of 4 frames,
its reported delay dropped, fed zeros after the end because it has no flush. Of {len(rows)} models: {counts}.

{table}

Other converters (continual-inference, cached_conv, kws_streaming, and the caches built into single model families)
take layers of their own instead of an ONNX model, so they have no column here.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runnel.tools.peers.table", description=__doc__)
    parser.add_argument("--out", default=str(PAGE), help="where the page is written (docs/peers.md)")
    parser.add_argument("--only", default="", metavar="WORDS", help="only models whose name contains this")
    args = parser.parse_args(argv)
    peers = {name: number for name, package in PEERS.items() if (number := installed(package))}
    rows = []
    for model in MODELS:
        if args.only not in model.name:
            continue
        try:
            row = {"model": model.name, "runnel": by_runnel(model)}
        except InternalError as error:
            row = {"model": model.name, "runnel": f"**a fault**: {error}"}
        for name in peers:
            row[name] = by_tract(model)
        rows.append(row)
        print(" | ".join(str(v) for v in row.values()), flush=True)
    if not args.only:
        Path(args.out).write_text(page(rows, peers), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
