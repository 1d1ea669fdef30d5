"""The options that inspect and compile share: how a model is read, and what is asked of its stream."""

from __future__ import annotations

import argparse
from typing import Any

from runnel.compiler.graph.rates import ticks
from runnel.errors import InputError
from runnel.tools.units import frame_count, named, named_axis, named_rate, named_shape, named_value


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="the ONNX model")
    parser.add_argument("--target", default="host", help="what it shall run on; see runnel targets (default: host)")
    parser.add_argument("--hop", metavar="N", help="the most frames of one step: frames, or a time such as 10ms")
    parser.add_argument(
        "--rate", type=named_rate, action="append", default=[], metavar="[INPUT:]HZ",
        help="frames a second of the input, for figures in time; with names, inputs of different rates",
    )  # fmt: skip
    parser.add_argument("--align", action="store_true", help="let outputs with different delays come out together")
    parser.add_argument(
        "--time-axis", type=named_axis, action="append", default=[], metavar="INPUT:AXIS",
        help="which axis is time, where that is not clear; may be repeated",
    )  # fmt: skip
    parser.add_argument("--window", metavar="W", help="window mode: the model's answer for the last W frames")
    parser.add_argument(
        "--mode", action="append", default=[], metavar="MODE",
        help="how windows share work (exact, reuse), or what a node that cannot be exact may do instead, such as "
        "norm=running; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--weights", metavar="KIND",
        help="round large weights, for steps that memory limits: int8, int4, fp16, or with a block size, int4:64 (the "
        "same as --mode weights=KIND)",
    )  # fmt: skip
    parser.add_argument(
        "--expert-bits", metavar="MEAN",
        help="round the experts of mixtures to so many bits a weight in the mean, such as 4.5, each by what it is "
        "worth on the --calibration recording (the same as --mode experts=MEAN)",
    )  # fmt: skip
    parser.add_argument(
        "--activations", metavar="KIND",
        help="round what is multiplied by weights of 4 or 8 bits (int8) or of float16 (fp16); the same as --mode "
        "activations=KIND",
    )  # fmt: skip
    parser.add_argument(
        "--sparse", metavar="KIND",
        help="read weights of feed-forward layers with Relu only where neurons are active: exact, or predicted=FILE "
        "(.npz, docs/sparse.md), which leaves out those that a predictor takes for idle",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", metavar="FILE",
        help="the recording on which a named mode's deviation is measured: .npy, .npz by input name, or .wav (default: "
        "noise)",
    )  # fmt: skip
    parser.add_argument(
        "--reuse-threshold", type=float, default=0.05, metavar="NRMSE",
        help="the largest deviation that --mode reuse may have on the calibration recording (default: 0.05)",
    )  # fmt: skip
    parser.add_argument(
        "--padding", default="zero", metavar="KIND",
        help="what --mode reuse reads where layers pad time: zero, or signal, the neighbours of the window, for models "
        "trained so (default: zero)",
    )  # fmt: skip
    parser.add_argument(
        "--max-frames", type=int, metavar="N", help="the most input frames of a stream, for what grows with it"
    )
    parser.add_argument(
        "--kv", metavar="POLICY",
        help="the most that the caches of a decoder keep, such as sink=4,window=512; full (default where the model has "
        "a past) keeps --max-frames tokens",
    )  # fmt: skip
    parser.add_argument(
        "--state", type=named, action="append", default=[], metavar="OUTPUT:INPUT",
        help="a state that the model brings itself; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--static", action="append", default=[], metavar="INPUT",
        help="an input that such a model reads at every step and that a stream is given once; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--bind", type=named_value, action="append", default=[], metavar="INPUT:VALUE",
        help="a fixed value for an input, a number or a .npy file; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--shape", type=named_shape, action="append", default=[], metavar="INPUT:SIZES",
        help="the shape of an input that leaves it open, such as state:2,1,128; may be repeated",
    )  # fmt: skip


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of runnel.compile and runnel.inspect for parsed arguments."""
    if "reuse" in args.mode and args.window is None:
        raise InputError("--mode reuse is about windows; give --window too.")
    rate, tick = _rates(args.rate)
    return {
        "target": args.target,
        "hop": None if args.hop is None else frame_count(args.hop, tick, "--hop"),
        "rate": rate,
        "align": args.align,
        "time_axis": dict(args.time_axis) or None,
        "window": None if args.window is None else frame_count(args.window, tick, "--window"),
        "mode": args.mode or "exact",
        "weights": args.weights,
        "activations": args.activations,
        "expert_bits": args.expert_bits,
        "sparse": args.sparse,
        "max_frames": args.max_frames,
        "reuse_threshold": args.reuse_threshold,
        "padding": args.padding,
        "kv": args.kv,
        "calibration": args.calibration,
        "state": dict(args.state) or None,
        "static": tuple(args.static),
        "bind": dict(args.bind) or None,
        "shape": dict(args.shape) or None,
    }


def _rates(given: list[tuple[str, float]]) -> tuple[float | dict[str, float] | None, float | None]:
    """The rates as asked for, and the rate of the frames (or ticks) that other options count in."""
    if not given:
        return None, None
    names = [name for name, _ in given]
    if names == [""]:
        return given[0][1], given[0][1]
    if "" in names or len(set(names)) < len(names):
        raise InputError("--rate is given once, or once for each input as INPUT:HZ.")
    return dict(given), float(ticks(dict(given))[1])
