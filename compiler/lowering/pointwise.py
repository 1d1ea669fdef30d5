"""Frame-local ONNX ops as frame nodes: shapes and attributes with the time axis taken out. One function a family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper

from runnel.compiler.lowering import transforms
from runnel.compiler.lowering.signals import NoKernel, View
from runnel.compiler.streaming.ir import STACKED, Pointwise, Stream

if TYPE_CHECKING:
    from runnel.compiler.lowering.lower import Lowering

Handler = Callable[["Lowering", Pointwise], View]
HANDLERS: dict[str, Handler] = {}

UNARY = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Neg": "neg",
    "Abs": "abs",
    "Reciprocal": "reciprocal", "Erf": "erf", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sign": "sign",
    "Softplus": "softplus", "Softsign": "softsign", "HardSwish": "hard_swish", "Not": "not",
    "Sin": "sin", "Cos": "cos", "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh",
    "Cosh": "cosh", "IsNaN": "is_nan",
}  # fmt: skip
WITH_ATTRS: dict[str, tuple[str, dict[str, Any]]] = {
    "LeakyRelu": ("leaky_relu", {"alpha": 0.01}),
    "Elu": ("elu", {"alpha": 1.0}),
    "Selu": ("selu", {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875}),
    "HardSigmoid": ("hard_sigmoid", {"alpha": 0.2, "beta": 0.5}),
    "Gelu": ("gelu", {"approximate": "none"}),
    "IsInf": ("is_inf", {"detect_negative": 1, "detect_positive": 1}),
}
BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Pow": "pow", "Equal": "equal", "Greater": "greater",
    "Less": "less",
    "GreaterOrEqual": "greater_equal", "LessOrEqual": "less_equal", "And": "and", "Or": "or", "Xor": "xor",
    "PRelu": "prelu",
    "Where": "where",
}  # fmt: skip
VARIADIC = {"Sum": "add", "Mean": "add", "Min": "min", "Max": "max"}
REDUCE = {
    "ReduceSum": "reduce_sum", "ReduceMean": "reduce_mean", "ReduceMax": "reduce_max", "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod", "ReduceL2": "reduce_l2",
}  # fmt: skip


def handler(*ops: str) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(ops, function))
        return function

    return register


def without_time(node: Pointwise, value: np.ndarray) -> np.ndarray:
    """A constant that is broadcast against the node's output, with the time axis taken out."""
    if node.output.axis == STACKED:
        return value
    at = node.output.axis - (len(node.output.shape) - value.ndim)
    return value.squeeze(at) if at >= 0 else value


def frame_axis(x: Stream, axis: int) -> int:
    """An axis of a tensor as an axis of its frame."""
    axis %= len(x.shape)
    return axis - (x.axis != STACKED and axis > x.axis)


def operands(low: Lowering, node: Pointwise) -> list[View | np.ndarray]:
    return [low.view(x) if isinstance(x, Stream) else without_time(node, x) for x in node.inputs if x is not None]


@handler(*UNARY, *WITH_ATTRS)
def unary(low: Lowering, node: Pointwise) -> View:
    if node.op in UNARY:
        return low.elementwise(node, UNARY[node.op], [low.view(node.streams[0])], {})
    op, defaults = WITH_ATTRS[node.op]
    return low.elementwise(
        node, op, [low.view(node.streams[0])], defaults | {k: node.attrs[k] for k in defaults if k in node.attrs}
    )


@handler("Identity", "Dropout")
def identity(low: Lowering, node: Pointwise) -> View:
    return low.view(node.streams[0])


@handler("Cast")
def cast(low: Lowering, node: Pointwise) -> View:
    to = helper.tensor_dtype_to_np_dtype(node.attrs["to"]).name
    if node.streams[0].dtype == "float16" and to == "float32" and low.graph.modes.get("activations") == "fp16":
        return low.view(node.streams[0])  # products take it as it is
    return low.elementwise(node, "cast", [low.view(node.streams[0])], {"to": to})


@handler("Clip")
def clip(low: Lowering, node: Pointwise) -> View:
    bounds: list[float | None] = [node.attrs.get("min"), node.attrs.get("max")]
    for i, x in enumerate(node.inputs[1:3]):
        if isinstance(x, np.ndarray):
            bounds[i] = float(x.reshape(-1)[0])
    return low.elementwise(node, "clip", [low.view(node.streams[0])], {"min": bounds[0], "max": bounds[1]})


@handler(*BINARY)
def binary(low: Lowering, node: Pointwise) -> View:
    return low.elementwise(node, BINARY[node.op], operands(low, node), {})


@handler("Mod")
def mod(low: Lowering, node: Pointwise) -> View:
    return low.elementwise(node, "fmod" if node.attrs.get("fmod") else "mod", operands(low, node), {})


@handler(*VARIADIC)
def variadic(low: Lowering, node: Pointwise) -> View:
    values = operands(low, node)
    result = values[0]
    for other in values[1:]:
        result = low.elementwise(node, VARIADIC[node.op], [result, other], {})
    if node.op == "Mean":
        result = low.elementwise(node, "mul", [result, np.array(1 / len(values), np.float32)], {})
    assert isinstance(result, View)
    return result


@handler("BatchNormalization")
def batch_normalization(low: Lowering, node: Pointwise) -> View:
    scale, bias, mean, variance = (np.asarray(v, np.float64) for v in node.inputs[1:5])
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    shape = [-1 if i == 1 else 1 for i in range(len(node.output.shape))]
    parts = [without_time(node, v.astype(np.float32).reshape(shape)) for v in (factor, bias - mean * factor)]
    scaled = low.elementwise(node, "mul", [low.view(node.streams[0]), parts[0]], {})
    return low.elementwise(node, "add", [scaled, parts[1]], {})


@handler("LayerNormalization", "RMSNormalization")
def layer_normalization(low: Lowering, node: Pointwise) -> View:
    x = low.view(node.streams[0])
    rank = len(node.output.shape)
    first = int(node.attrs.get("axis", -1)) % rank
    axes = tuple(frame_axis(node.streams[0], v) for v in range(first, rank))
    x = _standardised(low, node, x, axes, node.op == "LayerNormalization")
    for op, value in zip(("mul", "add"), node.inputs[1:3], strict=False):
        if isinstance(value, np.ndarray):
            x = low.elementwise(node, op, [x, without_time(node, value)], {})
    return x


def _standardised(low: Lowering, node: Pointwise, x: View, axes: tuple[int, ...], centred: bool = True) -> View:
    """x less its mean over the axes of a frame, divided by its deviation."""
    attrs = {"axes": axes, "keepdims": True}
    if centred:
        x = low.elementwise(node, "sub", [x, low.reduce(node, "reduce_mean", x, attrs)], {})
    variance = low.reduce(node, "reduce_mean", low.elementwise(node, "mul", [x, x], {}), attrs)
    epsilon = np.array(node.attrs.get("epsilon", 1e-5), np.float32)
    root = low.elementwise(node, "sqrt", [low.elementwise(node, "add", [variance, epsilon], {})], {})
    return low.elementwise(node, "div", [x, root], {})


@handler("InstanceNormalization", "GroupNormalization")
def norm_of_groups(low: Lowering, node: Pointwise) -> View:
    x, shape = low.view(node.streams[0]), node.streams[0].frame_shape
    lead = shape[:1] if node.output.axis == STACKED else ()  # else time is the batch
    channels, *rest = shape[len(lead) :]
    groups = int(node.attrs.get("num_groups", channels))
    x = x.reshaped((*lead, groups, channels // groups, *rest))
    at = len(lead)
    x = _standardised(low, node, x, tuple(range(at + 1, at + 2 + len(rest)))).reshaped(shape)
    for op, value in zip(("mul", "add"), node.inputs[1:3], strict=True):
        assert isinstance(value, np.ndarray)
        x = low.elementwise(node, op, [x, value.reshape(channels, *(1 for _ in rest))], {})
    return x


@handler("Softmax", "LogSoftmax")
def softmax(low: Lowering, node: Pointwise) -> View:
    op = "softmax" if node.op == "Softmax" else "log_softmax"
    x = node.streams[0]
    return low.step(node, op, [low.view(x)], x.frame_shape, {"axis": frame_axis(x, int(node.attrs.get("axis", -1)))})


@handler("Mish")
def mish(low: Lowering, node: Pointwise) -> View:
    x = low.view(node.streams[0])
    soft = low.elementwise(node, "softplus", [x], {})
    return low.elementwise(node, "mul", [x, low.elementwise(node, "tanh", [soft], {})], {})


@handler("Celu")
def celu(low: Lowering, node: Pointwise) -> View:
    x = low.view(node.streams[0])
    alpha = np.array(node.attrs.get("alpha", 1.0), np.float32)
    below = low.elementwise(node, "elu", [low.elementwise(node, "div", [x, alpha], {})], {"alpha": float(alpha)})
    above = low.elementwise(node, "max", [x, np.array(0, np.float32)], {})
    return low.elementwise(node, "add", [above, low.elementwise(node, "min", [below, np.array(0, np.float32)], {})], {})


@handler("ThresholdedRelu")
def thresholded_relu(low: Lowering, node: Pointwise) -> View:
    x = low.view(node.streams[0])
    above = low.elementwise(node, "greater", [x, np.array(node.attrs.get("alpha", 1.0), np.float32)], {})
    return low.elementwise(node, "where", [above, x, np.array(0, np.float32)], {})


@handler("GlobalAveragePool", "GlobalMaxPool")
def global_pool(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    op = "reduce_mean" if node.op == "GlobalAveragePool" else "reduce_max"
    axes = tuple(frame_axis(x, v) for v in range(2, len(x.shape)))
    return low.reduce(node, op, low.view(x), {"axes": axes, "keepdims": True})


@handler(*REDUCE, "ReduceL1", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp")
def reduction(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    listed = node.attrs.get("axes", node.inputs[1] if len(node.inputs) > 1 else None)
    axes = [int(v) for v in np.asarray(listed).reshape(-1)] if listed is not None else list(range(len(x.shape)))
    attrs = {"axes": tuple(frame_axis(x, v) for v in axes), "keepdims": True}
    view = low.view(x)
    if node.op in REDUCE:
        return low.reduce(node, REDUCE[node.op], view, attrs).reshaped(node.output.frame_shape)
    if node.op == "ReduceL1":
        view = low.elementwise(node, "abs", [view], {})
    elif node.op == "ReduceSumSquare":
        view = low.elementwise(node, "mul", [view, view], {})
    elif node.op == "ReduceLogSumExp":
        top = low.reduce(node, "reduce_max", view, attrs)
        view = low.elementwise(node, "exp", [low.elementwise(node, "sub", [view, top], {})], {})
    total = low.reduce(node, "reduce_sum", view, attrs)
    if node.op.startswith("ReduceLog"):
        total = low.elementwise(node, "log", [total], {})
    if node.op == "ReduceLogSumExp":
        total = low.elementwise(node, "add", [total, top], {})
    return total.reshaped(node.output.frame_shape)


@handler("MatMul")
def matmul(low: Lowering, node: Pointwise) -> View:
    left, right = node.inputs
    if isinstance(left, Stream) and isinstance(right, Stream):
        return low.step(node, "matmul", [low.view(left), low.view(right)], node.output.frame_shape, {})
    if isinstance(left, Stream) and isinstance(right, np.ndarray):
        x, weight = left, right
    else:
        assert isinstance(right, Stream) and isinstance(left, np.ndarray)
        if right.axis != len(right.shape) - 1:
            raise NoKernel("multiplies a constant by a matrix inside a frame")
        x, weight = right, np.swapaxes(left, -1, -2)
    if weight.size != np.prod(weight.shape[-2:]) or weight.ndim < 2:
        raise NoKernel("multiplies by a batch of constant matrices")
    return low.linear(node, low.view(x), weight.reshape(weight.shape[-2:]), None, node.output.frame_shape)


@handler("Gemm")
def gemm(low: Lowering, node: Pointwise) -> View:
    weight = np.asarray(node.inputs[1], np.float32)
    weight = weight.T if node.attrs.get("transB") else weight
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    scaled = None
    if isinstance(bias, np.ndarray):
        scaled = np.broadcast_to(bias.reshape(-1) * np.float32(node.attrs.get("beta", 1.0)), (weight.shape[1],))
    weight = weight * np.float32(node.attrs.get("alpha", 1.0))
    return low.linear(node, low.view(node.streams[0]), weight, scaled, node.output.frame_shape)


@handler("Conv", "ConvInteger", "ConvTranspose")
def conv(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    view = low.view(x).reshaped((1, *x.frame_shape) if x.axis != STACKED else x.frame_shape)
    if view.shape[0] != 1 and node.op == "ConvInteger":
        raise NoKernel("convolves a batch of codes inside a frame")
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    more: dict[str, Any] = {}
    if node.op == "ConvInteger":
        from runnel.compiler.lowering.quantised import integer_conv

        weight, bias, more = integer_conv(node)
    assert isinstance(weight, np.ndarray) and not isinstance(bias, Stream)
    rank = weight.ndim - 2
    attrs = conv_attrs(node.attrs, rank) | more
    out = node.output.frame_shape if node.output.axis == STACKED else (1, *node.output.frame_shape)
    if view.shape[0] != 1:
        view, weight, bias, attrs["group"] = batch_as_groups(view, weight, bias, attrs["group"])
        out = (1, out[0] * out[1], *out[2:])
    if node.op == "ConvTranspose":
        attrs["output_padding"] = list(node.attrs.get("output_padding", [0] * rank))
        made = low.step(node, "conv_transpose", [view, weight, bias], out, attrs)
    else:
        if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise NoKernel("uses auto_pad inside a frame")
        if all(d == 1 for d in (*view.shape[2:], *out[2:], *weight.shape[2:])):
            attrs |= {"strides": [], "pads": [], "dilations": []}
            view, weight, out = view.reshaped(view.shape[:2]), weight.reshape(weight.shape[:2]), out[:2]
        elif node.op == "Conv":
            found = transforms.inside(low, node, view, weight, bias, attrs, out)
            if found is not None:
                return found.reshaped(node.output.frame_shape)
        made = low.step(node, "conv", [view, weight[:, :, None], bias], out, attrs, node.output.dtype)
    return made.reshaped(node.output.frame_shape)


@handler("MaxPool", "AveragePool")
def pool(low: Lowering, node: Pointwise) -> View:
    x = node.streams[0]
    shape, out = x.frame_shape, node.output.frame_shape
    if x.axis != STACKED:
        shape, out = (1, *shape), (1, *out)
    if node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NoKernel("pools inside a frame with auto_pad")
    shape, out = ((1, s[0] * s[1], *s[2:]) for s in (shape, out))
    if node.attrs.get("ceil_mode") and node.attrs.get("count_include_pad"):
        raise NoKernel("counts padding but not what lies behind it (ceil_mode)")
    attrs = conv_attrs(node.attrs, len(shape) - 2) | {"kernel": list(node.attrs["kernel_shape"])}
    op = "max_pool"
    if node.op == "AveragePool":
        op, attrs["count_include_pad"] = "avg_pool", bool(node.attrs.get("count_include_pad", 0))
    return low.step(node, op, [low.view(x).reshaped(shape)], out, attrs).reshaped(node.output.frame_shape)


def batch_as_groups(
    view: View, weight: np.ndarray, bias: np.ndarray | None, group: int
) -> tuple[View, np.ndarray, np.ndarray | None, int]:
    """A convolution of a batch as one with a group of channels for each element: its view, weights, biases, groups."""
    batch, channels, *rest = view.shape
    weight = np.tile(weight, (batch, *(1 for _ in weight.shape[1:])))
    bias = None if bias is None else np.tile(bias.reshape(-1), batch)
    return view.reshaped((1, batch * channels, *rest)), weight, bias, group * batch


def conv_attrs(attrs: dict[str, Any], rank: int, without: int | None = None) -> dict[str, Any]:
    """group, strides, pads and dilations of the spatial axes, without the time axis if given."""
    keep = [i for i in range(rank) if i != without]
    strides, dilations = (attrs.get(k, [1] * rank) for k in ("strides", "dilations"))
    pads = attrs.get("pads", [0] * (2 * rank))
    return {
        "group": int(attrs.get("group", 1)), "strides": [int(strides[i]) for i in keep],
        "dilations": [int(dilations[i]) for i in keep],
        "pads": [int(pads[i]) for i in keep] + [int(pads[rank + i]) for i in keep],
    }  # fmt: skip


@handler("LSTM", "GRU", "RNN")
def static_recurrence(low: Lowering, node: Pointwise) -> View:
    from runnel.compiler.lowering.recurrence import inside_frame

    return inside_frame(low, node)
