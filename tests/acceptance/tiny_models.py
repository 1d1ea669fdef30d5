"""What the cases share: the command line, a folder's listing, and a tiny model."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RATE = 16000
FLOAT = TensorProto.FLOAT


def command(*argv: str | Path, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """``python -m runnel`` with these arguments."""
    words = [sys.executable, "-m", "runnel", *map(str, argv)]
    return subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, check=False, timeout=120)


def listing(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, and the sum of its bytes."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "folder"
        for p in sorted(folder.rglob("*"))
    }


def proto(nodes: list[onnx.NodeProto], shape: list[int | str], weights: dict[str, np.ndarray], opset: int = 17,
          out: list[int | str] | None = None, domains: tuple[str, ...] = ()) -> onnx.ModelProto:  # fmt: skip
    """A model from ``x`` of this shape to ``y``."""
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, out or shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def tiny() -> onnx.ModelProto:
    """Sound to sound: a convolution without padding, so at least 3 samples, and a GRU that does not start at zero."""
    rng = np.random.default_rng(3)
    shapes = {
        "w": (4, 1, 3), "gru_w": (1, 24, 4), "gru_r": (1, 24, 8), "first": (1, 1, 8), "mix": (8, 1),
    }  # fmt: skip
    weights = {name: rng.standard_normal(shape).astype(np.float32) * np.float32(0.3) for name, shape in shapes.items()}
    weights["axis"] = np.array([1], np.int64)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "smooth", kernel_shape=[3]),
        helper.make_node("Transpose", ["c"], ["t"], "turn", perm=[2, 0, 1]),
        helper.make_node("GRU", ["t", "gru_w", "gru_r", "", "", "first"], ["g"], "remember", hidden_size=8),
        helper.make_node("Squeeze", ["g", "axis"], ["s"], "drop"),
        helper.make_node("MatMul", ["s", "mix"], ["m"], "mix"),
        helper.make_node("Transpose", ["m"], ["y"], "back", perm=[1, 2, 0]),
    ]
    return proto(nodes, [1, 1, "time"], weights, out=[1, 1, "frames"])
