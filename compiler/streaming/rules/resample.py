"""Resize and Upsample: frame n of the result lies at a fixed place between frames of the input, period by period."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from runnel.compiler.graph.fold import session
from runnel.compiler.streaming.count import Count
from runnel.compiler.streaming.ir import Operand, Stream
from runnel.compiler.streaming.kinds.geometry import Resample, blocks
from runnel.compiler.streaming.registry import Refusal, rule
from runnel.compiler.streaming.rules.time import pad_time

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Node
    from runnel.compiler.streaming.analysis import Analysis, Value

MOST_FRAMES = 512
ROUND: dict[str, Callable[[Fraction], int]] = {
    "round_prefer_floor": lambda q: ceil(q - Fraction(1, 2)),
    "round_prefer_ceil": lambda q: floor(q + Fraction(1, 2)),
    "floor": floor,
    "ceil": ceil,
}


@dataclass(frozen=True)
class Scheme:
    """How a place in the output maps to the input: ONNX's names. rounding: None for linear."""

    places: str
    rounding: str | None

    def place(self, n: int, factor: Fraction) -> Fraction:
        """Where frame n lies among the frames of the input."""
        half = Fraction(1, 2)
        if self.places in ("half_pixel", "pytorch_half_pixel", "half_pixel_symmetric"):
            return (n + half) / factor - half
        if self.places == "tf_half_pixel_for_nn":
            return (n + half) / factor
        return n / factor

    def taps(self, n: int, factor: Fraction) -> tuple[int, tuple[float, ...]]:
        """The first input frame that frame n reads, and the weights from there on."""
        q = self.place(n, factor)
        if self.rounding is not None:
            return ROUND[self.rounding](q), (1.0,)
        below = floor(q)
        if q == below:  # the frame itself; read as the later of two, so that it waits for none behind it
            return below - 1, (0.0, 1.0)
        return below, (float(below + 1 - q), float(q - below))


@rule("Resize")
def resize(a: Analysis, node: Node) -> list[Value]:
    x = a.stream(node)
    rank = len(x.shape)
    axes = [int(v) % rank for v in node.attrs.get("axes", range(rank))]
    scales = _listed(a.constant(node, 2, "list of scales"))
    sizes = _listed(a.value(node.inputs[3]) if len(node.inputs) > 3 else None)
    given = scales or sizes
    if len(given) != len(axes):
        raise Refusal("takes its sizes from data", "export the model with constant scales")
    if node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Refusal("cuts out a region by its share of the length (tf_crop_and_resize)", "slice first")
    if node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Refusal("keeps an aspect ratio that depends on the length", "give a scale for each axis")
    wanted, _ = a.shapes[node.outputs[0]]
    others = [
        i
        for i, d in enumerate(x.shape)
        if d is not None and i in axes and given[axes.index(i)] != (1.0 if scales else d)
    ]
    if x.axis in axes and (factor := given[axes.index(x.axis)]) != (1 if scales else x.fact.length):
        x = _resize_time(a, node, x, factor, bool(scales), "/time" if others else "")
    elif not others:
        return [a.pointwise(node, [x], x.axis, attrs={}, op="Identity")]
    for i in others:
        scale = float(given[axes.index(i)]) if scales else None
        weights = _weights(node.attrs, int(x.shape[i] or 0), wanted[i], scale)
        x = _weigh(a, node, x, i, weights, "" if i == others[-1] else f"/axis{i}")
    return [x]


def _weights(attrs: dict[str, Any], size: int, wanted: int, scale: float | None) -> np.ndarray:
    """(wanted, size): what each element of a resized axis takes of each element of the axis, as onnxruntime has it."""
    kept = {k: v for k, v in attrs.items() if k not in ("axes", "keep_aspect_ratio_policy")}
    inputs = ["x", "", "scales"] if scale is not None else ["x", "", "", "sizes"]
    numbers = np.array([1.0, 1.0, scale, 1.0], np.float32) if scale is not None else np.array([1, 1, wanted, size])
    graph = helper.make_graph(
        [helper.make_node("Resize", inputs, ["y"], **kept)], "resize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, size, size])],
        [helper.make_empty_tensor_value_info("y")], [numpy_helper.from_array(numbers, inputs[-1])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=8)
    (weights,) = session(model).run(None, {"x": np.eye(size, dtype=np.float32)[None, None]})
    return np.asarray(weights)[0, 0]


def _weigh(a: Analysis, node: Node, x: Stream, axis: int, weights: np.ndarray, suffix: str) -> Stream:
    """Sums along an axis other than time: elements picked, sums of two, or a product with a matrix."""
    shape = tuple(len(weights) if i == axis else d for i, d in enumerate(x.shape))
    most = int(np.count_nonzero(weights, axis=1).max())
    places = np.argsort(weights == 0, axis=1, kind="stable")

    def emit(op: str, inputs: list[Operand], name: str, shape: tuple[int | None, ...], **attrs: Any) -> Stream:
        time = shape.index(None)
        return a.pointwise(node, inputs, time, attrs=attrs, op=op, suffix=name or suffix, shape=shape)

    if most == 1 and (weights.max(axis=1) == 1).all():
        return emit("Gather", [x, places[:, 0]], "", shape, axis=axis)
    if most > 2:
        rank = len(x.shape)
        perm = [i for i in range(rank) if i != axis] + [axis]
        turned = emit("Transpose", [x], f"/turned{axis}", tuple(x.shape[i] for i in perm), perm=perm)
        product = emit("MatMul", [turned, weights.T], f"/product{axis}", tuple(shape[i] for i in perm))
        return emit("Transpose", [product], "", shape, perm=[perm.index(i) for i in range(rank)])
    terms = []
    for k in range(most):
        picked = emit("Gather", [x, places[:, k]], f"/picked{axis}.{k}", shape, axis=axis)
        along = np.take_along_axis(weights, places[:, k : k + 1], 1).reshape(
            [-1 if i == axis else 1 for i in range(len(shape))]
        )
        terms.append(emit("Mul", [picked, along.astype(np.float32)], f"/weighed{axis}.{k}" if most > 1 else "", shape))
    return terms[0] if most == 1 else emit("Add", list(terms), "", shape)


def _listed(value: Any) -> list[Any]:
    return list(value.reshape(-1)) if isinstance(value, np.ndarray) else []


def _resize_time(a: Analysis, node: Node, x: Stream, given: Any, scaled: bool, suffix: str) -> Stream:
    """given: the scale of time, or its size."""
    scheme = _scheme(node)
    before = x.fact.length
    if scaled:
        factor = Fraction(float(given))
        if max(factor.numerator, factor.denominator) > MOST_FRAMES:
            raise Refusal(
                f"resizes time by {float(given):.9g}, which is no simple ratio, so that rounding decides what it reads",
                "use a scale such as 2, 1.5 or 0.25, or give sizes",
            )
        length = before.affine(factor.numerator, 0, factor.denominator)
        excess: Count | int = before * factor.numerator - length * factor.denominator
    else:
        length = Count.of(given)
        factor = length.rate / before.rate
        if not factor:
            raise Refusal(f"resizes time to {length} frames, however long it is", "resize by a factor")
        if max(factor.numerator, factor.denominator) > MOST_FRAMES:
            raise Refusal(f"resizes time by {factor}, whose pattern is too long", "use a simpler ratio")
        excess = before * factor.numerator - length * factor.denominator
    excess = Count.of(excess).later(before.first(0))
    _check_decidable(scheme, factor, excess, scaled)
    if scheme.rounding is None and factor.numerator == 1 and scheme.place(0, factor).denominator == 1:
        scheme = Scheme(scheme.places, "floor")  # between frames lies none
    left, right = _reach(scheme, factor)
    if left or right:
        x = pad_time(a, node, x, left, right, 0.0, "edge", "/edges", beside=True)
    up = factor.numerator
    taps = {crop: [scheme.taps(p - crop, factor) for p in range(up)] for crop in range(up)}
    spans = {crop: max(f for f, _ in t) - min(f for f, _ in t) for crop, t in taps.items()}
    crop = min(spans, key=lambda c: (spans[c], c))
    first = tuple(f + left for f, _ in taps[crop])
    weights = None if scheme.rounding else np.array([w for _, w in taps[crop]], np.float32)
    down, width = factor.denominator, 1 if weights is None else 2
    final = blocks(x.fact.made, down, max(first) + width).affine(up, -crop)
    y = a.emit(
        node, Resample, [x], x.axis, final, length, shape=x.shape, suffix=suffix, up=up, down=down, crop=crop,
        first=first, weights=weights,
    )  # fmt: skip
    if scheme.places == "pytorch_half_pixel" and scheme.taps(0, factor) not in ((0, (1.0,)), (-1, (0.0, 1.0))):
        a.shortest = max(a.shortest, length.first(1))  # a frame that is alone would be taken from another place
    return y


def _scheme(node: Node) -> Scheme:
    places = node.attrs.get("coordinate_transformation_mode", "half_pixel")
    mode = node.attrs.get("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise Refusal(f"resizes time by {mode} interpolation", "use linear or nearest")
    if places == "align_corners":
        raise Refusal(
            "maps the last frame to the last (align_corners), so that every frame depends on the length",
            "use half_pixel or asymmetric",
        )
    if node.attrs.get("antialias") and mode == "linear":
        raise Refusal("filters over time before it resizes (antialias)", "use antialias=0, or a convolution")
    if mode == "nearest":
        rounding = node.attrs.get("nearest_mode", "round_prefer_floor")
        if rounding not in ROUND:
            raise Refusal(f"rounds by '{rounding}'", "use one of the standard's nearest modes")
        return Scheme(places, rounding)
    return Scheme(places, None)


def _check_decidable(scheme: Scheme, factor: Fraction, excess: Count, scaled: bool) -> None:
    """Refuse where the place of a frame depends on the whole length.

    excess: up · frames before - down · frames after. A size that is not the factor's makes each place depend on it.
    Asymmetric places, rounded down, stay the same while it is below 2: n·before/after = (n·down + n·excess/after)/up.
    """
    if scaled and scheme.places != "half_pixel_symmetric":
        return
    if excess == 0:
        return
    low, high = excess.minimum, excess.largest()
    if scheme.places == "asymmetric" and scheme.rounding == "floor" and low >= 0 and high is not None and high <= 1:
        return
    raise Refusal(
        f"resizes time by a factor that is not quite {factor} for every length, so that frames depend on the length",
        "pad the input so that the lengths divide, or use nearest with asymmetric places, rounded down",
    )


def _reach(scheme: Scheme, factor: Fraction) -> tuple[int, int]:
    """How many frames before the start and behind the end the result reads: these are the first and the last."""
    up, down = factor.numerator, factor.denominator
    left = max(0, *(-scheme.taps(n, factor)[0] for n in range(2 * up + 2)))
    right = 0
    for frames in range(1, 3 * down + 3):
        last = frames * up // down - 1
        if last >= 0:
            first, weights = scheme.taps(last, factor)
            right = max(right, first + len(weights) - frames)
    return left, right
