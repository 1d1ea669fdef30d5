"""Write the short-time Fourier transform and its inverse as two offline ONNX models.

    python -m runnel.models.stft.export --frame 512 --hop 256 --window sqrt-hann --out build/stft

The transforms are one convolution and one transposed convolution over the windowed Fourier basis, so that they stream
like any other layer. Their conventions are those of torch.stft and torch.istft (PyTorch's documentation, "onesided").
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
WINDOWS = ("hann", "sqrt-hann", "hamming", "rectangular")
LAYOUTS = {
    "bins-frames-parts": (0, 2, 3, 1),  # (1, bins, frames, 2): torch.view_as_real of torch.stft
    "parts-frames-bins": (0, 1, 3, 2),  # (1, 2, frames, bins)
    "parts-bins-frames": (0, 1, 2, 3),  # (1, 2, bins, frames)
}
Array = NDArray[np.float64]


def window(name: str, frame: int) -> Array:
    """A periodic window, (frame,) float64. Raises ValueError for an unknown name."""
    if name not in WINDOWS:
        raise ValueError(f"there is no window '{name}'; use one of {', '.join(WINDOWS)}")
    angle = 2 * np.pi * np.arange(frame) / frame
    if name == "sqrt-hann":
        return np.sin(angle / 2)
    return {"hann": 0.5 - 0.5 * np.cos(angle), "hamming": 0.54 - 0.46 * np.cos(angle)}.get(name, np.ones(frame))


def fourier_basis(frame: int) -> Array:
    """The one-sided Fourier basis, (2 * bins, frame): rows of cos, then rows of -sin; bins = frame / 2 + 1."""
    angle = 2 * np.pi / frame * (np.outer(np.arange(frame // 2 + 1), np.arange(frame)) % frame)
    rows = np.concatenate([np.cos(angle), -np.sin(angle)])
    rows[np.abs(rows) < 1e-12] = 0.0  # quarter turns
    return rows


def overlap_gain(name: str, frame: int, hop: int, centred: bool) -> float:
    """The sum of the squared windows over each sample that synthesis keeps.

    Raises ValueError where it is not the same for all of them, so that one factor does not undo the windows.
    """
    squares = window(name, frame) ** 2
    if frame % hop:
        raise ValueError(f"the hop of {hop} does not divide the frame of {frame}")
    total = squares.reshape(-1, hop).sum(axis=0)
    edges = frame // 2 < frame - hop if centred else frame != hop
    if edges:
        raise ValueError(
            f"frames of {frame} every {hop} overlap less at the ends, so one factor does not undo the window; "
            f"use a hop of {frame // 2}" + (" and centred frames" if not centred else "")
        )
    if total.max() - total.min() > 1e-9 * total.max():
        raise ValueError(f"'{name}' windows of {frame} every {hop} do not add up to a constant; use sqrt-hann")
    return float(total[0])


def _check(frame: int, hop: int, layout: str) -> None:
    if frame < 2 or frame % 2 or not 1 <= hop <= frame:
        raise ValueError(f"a frame of {frame} and a hop of {hop} do not fit: give an even frame and 1 <= hop <= frame")
    if layout not in LAYOUTS:
        raise ValueError(f"there is no layout '{layout}'; use one of {', '.join(LAYOUTS)}")


def _sizes(layout: str, frame: int) -> list[int | str]:
    sizes: list[int | str] = [1, 2, frame // 2 + 1, "frames"]
    return [sizes[axis] for axis in LAYOUTS[layout]]


def analysis(
    frame: int = 512, hop: int = 256, window_name: str = "sqrt-hann", centred: bool = True,
    layout: str = "bins-frames-parts",
) -> onnx.ModelProto:  # fmt: skip
    """wav (1, samples) float32 → spectrum float32 in ``layout``, real and imaginary parts.

    centred: frame n is centred on sample n * hop and the ends are reflected (torch.stft's center=True), 1 + samples //
    hop frames of a recording of more than frame / 2 samples; else frame n starts at sample n * hop.
    Raises ValueError for sizes that do not fit.
    """
    _check(frame, hop, layout)
    basis = (fourier_basis(frame) * window(window_name, frame)).astype(np.float32)[:, None]
    constants: dict[str, NDArray[np.generic]] = {"basis": basis, "channel": np.array([1], np.int64)}
    nodes = [helper.make_node("Unsqueeze", ["wav", "channel"], ["mono"], "mono")]
    if centred:
        constants["ends"] = np.array([0, 0, frame // 2, 0, 0, frame // 2], np.int64)
        nodes.append(helper.make_node("Pad", ["mono", "ends"], ["reflected"], "reflected", mode="reflect"))
    nodes.append(
        helper.make_node("Conv", [nodes[-1].output[0], "basis"], ["rows"], "rows", kernel_shape=[frame], strides=[hop])
    )
    constants["parts"] = np.array([1, 2, frame // 2 + 1, -1], np.int64)
    nodes.append(helper.make_node("Reshape", ["rows", "parts"], ["split"], "split"))
    nodes.append(helper.make_node("Transpose", ["split"], ["spectrum"], "spectrum", perm=LAYOUTS[layout]))
    return _model("stft", nodes, constants, ("wav", [1, "samples"]), ("spectrum", _sizes(layout, frame)))


def synthesis(
    frame: int = 512, hop: int = 256, window_name: str = "sqrt-hann", centred: bool = True,
    layout: str = "bins-frames-parts",
) -> onnx.ModelProto:  # fmt: skip
    """spectrum float32 in ``layout`` → wav (1, samples) float32: overlap-add of the windowed inverse transforms.

    centred: half a frame is cut off both ends, which leaves (frames - 1) * hop samples for hop = frame / 2 (torch.istft
    without a length). Raises ValueError for sizes that do not fit, or whose windows do not add up to a constant.
    """
    _check(frame, hop, layout)
    gain = overlap_gain(window_name, frame, hop, centred)
    weight = np.full(frame // 2 + 1, 2.0)
    weight[[0, -1]] = 1.0
    scale = np.concatenate([weight, weight])[:, None] / (frame * gain)
    basis = (fourier_basis(frame) * scale * window(window_name, frame)).astype(np.float32)[:, None]
    permuted = LAYOUTS[layout]
    nodes = [
        helper.make_node("Transpose", ["spectrum"], ["split"], "split", perm=[permuted.index(i) for i in range(4)]),
        helper.make_node("Reshape", ["split", "rows.shape"], ["rows"], "rows"),
        helper.make_node(
            "ConvTranspose", ["rows", "basis"], ["mono"], "mono", kernel_shape=[frame], strides=[hop],
            pads=[frame // 2 * centred] * 2,
        ),
        helper.make_node("Squeeze", ["mono", "channel"], ["wav"], "wav"),
    ]  # fmt: skip
    constants: dict[str, NDArray[np.generic]] = {
        "basis": basis, "rows.shape": np.array([1, frame + 2, -1], np.int64), "channel": np.array([1], np.int64),
    }  # fmt: skip
    return _model("istft", nodes, constants, ("spectrum", _sizes(layout, frame)), ("wav", [1, "samples"]))


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, NDArray[np.generic]],
    source: tuple[str, list[int | str]],
    result: tuple[str, list[int | str]],
) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(port, TensorProto.FLOAT, shape) for port, shape in (source, result)]
    stored = [numpy_helper.from_array(np.ascontiguousarray(value), key) for key, value in constants.items()]
    graph = helper.make_graph(nodes, name, ports[:1], ports[1:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "runnel"
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frame", type=int, default=512, help="samples of a frame (default: 512)")
    parser.add_argument("--hop", type=int, default=256, help="samples from one frame to the next (default: 256)")
    parser.add_argument("--window", choices=WINDOWS, default="sqrt-hann", help="default: sqrt-hann")
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="bins-frames-parts", help="axes of the spectrum")
    parser.add_argument("--uncentred", action="store_true", help="frames start at sample n * hop; nothing is reflected")
    parser.add_argument("--out", type=Path, default=Path("build/stft"), help="the folder (default: build/stft)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for make in (analysis, synthesis):
        try:
            model = make(args.frame, args.hop, args.window, not args.uncentred, args.layout)
        except ValueError as error:
            parser.error(str(error))
        path = args.out / f"{model.graph.name}.onnx"
        onnx.save(model, path)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
