"""How each ONNX op becomes operators of TensorFlow Lite; importing this registers them with tflite.RULES."""

from __future__ import annotations

from typing import Any

import numpy as np

from runnel.tools.benchmark.tflite import CHANNELS_LAST, PAIRS, PLAIN, Unsupported, Value, Writer, natural, rule
from runnel.tools.benchmark.tflite_moves import part

SAME, VALID = 0, 1


@rule("Conv")
def conv(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """Over one or two axes of space; a filter a channel or dense."""
    weight = w.constants[node.input[1]]
    x = w.of(node.input[0], coded=True)
    asked = w.asked(node.output[0])
    whole = x.codes is not None and asked is not None and node.input[1] in w.coded
    x = x if whole else w.real(x)
    if weight.ndim not in (3, 4):
        raise Unsupported("Conv over three axes")
    if weight.ndim == 3:
        weight = weight[:, :, None]
    x = w.put(x, CHANNELS_LAST[len(x.shape)])
    flat = len(x.shape) == 3
    spatial = [1, x.shape[2]] if flat else list(x.shape[2:])
    strides, dilations = (_two(attrs.get(k), flat, 1) for k in ("strides", "dilations"))
    pads = list(attrs.get("pads", [0] * 4 if not flat else [0] * 2))
    pads = [0, pads[0], 0, pads[1]] if flat else pads
    outside, inside, *kernel = weight.shape
    group = attrs.get("group", 1)
    mode, index = padded(w, x, spatial, kernel, strides, dilations, pads)
    if any(pads) and mode == VALID:
        spatial = [s + pads[i] + pads[i + 2] for i, s in enumerate(spatial)]
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    made = [(-(-s // t)) if mode == SAME else (s - r) // t + 1 for s, r, t in zip(spatial, reach, strides)]
    bias = w.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(outside, np.float32)
    relu, name = w.activation(node.output[0])
    facts: dict[str, Any] = {
        "padding": mode, "strideH": strides[0], "strideW": strides[1], "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1], "fusedActivationFunction": relu,
    }  # fmt: skip
    shape = (1, outside, made[1]) if flat else (1, outside, *made)
    stored = w.stored(shape, x.order)
    dense = group == 1 or inside != 1 or group != x.shape[1]
    sides = ([outside, *kernel, inside], (0, 2, 3, 1)) if dense else ([1, *kernel, outside], (1, 2, 3, 0))
    code, options = ("CONV_2D", "Conv2DOptions") if dense else ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions")
    if not dense:
        facts["depthMultiplier"] = outside // group
    if whole and x.codes is not None and asked is not None:
        filters, shifts = integers(w, node, x.codes, weight.shape, sides, 0 if dense else 3)
        facts["fusedActivationFunction"] = asked[2]
        y = w.emit(code, [index, filters, shifts], stored, options, asked[0], **facts)
        w.claim(node, asked, Value(y, shape, x.order, asked[0]))
        return
    filters = w.tensor(sides[0], weight.transpose(sides[1]))
    y = w.emit(code, [index, filters, w.tensor([outside], bias)], stored, options, **facts)
    w.values[name] = Value(y, shape, x.order)


def integers(
    w: Writer, node: Any, codes: tuple[float, int], shape: tuple[int, ...], sides: tuple[Any, Any], along: int
) -> tuple[int, int]:
    """Weights as codes, and the bias in steps of their products."""
    weight, scales, _ = w.coded[node.input[1]]
    filters = w.tensor(sides[0], weight.reshape(shape).transpose(sides[1]), scales=scales, along=along)
    count = sides[0][along]
    name = node.input[2] if len(node.input) > 2 else ""
    bias = w.constants[name] if name else np.zeros(count, np.float32)
    steps = np.broadcast_to(scales, count).astype(np.float64) * codes[0]
    return filters, w.tensor([count], np.rint(bias / steps).astype(np.int32), scales=steps)


@rule("ConvTranspose")
def conv_transpose(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """Without a stride it is a convolution with the filter turned around."""
    from onnx import helper

    weight, group = w.constants[node.input[1]], attrs.get("group", 1)
    axes = weight.ndim - 2
    strides, dilations = (list(attrs.get(k) or [1] * axes) for k in ("strides", "dilations"))
    pads, more = list(attrs.get("pads") or [0] * 2 * axes), list(attrs.get("output_padding") or [0] * axes)
    if attrs.get("auto_pad", b"NOTSET") != b"NOTSET" or attrs.get("output_shape"):
        raise Unsupported("ConvTranspose with computed padding")
    if max(strides) == 1 and not any(more):
        reach = [(k - 1) * d for k, d in zip(weight.shape[2:], dilations)] * 2
        groups = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:]).swapaxes(1, 2)
        turned = np.flip(groups, tuple(range(3, groups.ndim)))
        name = f"{node.input[1]} turned"
        w.constants[name] = turned.reshape(group * weight.shape[1], -1, *weight.shape[2:])
        facts = {"dilations": dilations, "pads": [r - p for r, p in zip(reach, pads)], "group": group}
        if min(facts["pads"]) < 0:
            raise Unsupported("ConvTranspose with more padding than its filter")
        conv(w, helper.make_node("Conv", [node.input[0], name, *node.input[2:]], node.output), facts)
        return
    if max(dilations) > 1 or axes > 2:
        raise Unsupported("ConvTranspose with strides and dilations")
    x = w.of(node.input[0])
    if axes == 1 and group == 1 and not any(more) and weight.shape[2] % strides[0] == 0:
        overlapped(w, node, x, strides[0], pads)
        return
    x = w.put(x, CHANNELS_LAST[len(x.shape)])
    flat = axes == 1
    weight = weight[:, :, None] if flat else weight
    spatial, strides = ([1, x.shape[2]], [1, *strides]) if flat else (list(x.shape[2:]), strides)
    pads, more = ([0, pads[0], 0, pads[1]], [0, *more]) if flat else (pads, more)
    made = [(s - 1) * t + k for s, t, k in zip(spatial, strides, weight.shape[2:])]
    left = [m - pads[i] - pads[i + 2] + o for i, (m, o) in enumerate(zip(made, more))]
    if any(o > pads[i + 2] for i, o in enumerate(more)):
        raise Unsupported("ConvTranspose with more output than its filter makes")
    inside, outside = weight.shape[0] // group, weight.shape[1]
    bias = w.constants[node.input[2]] if len(node.input) > 2 else np.zeros(group * outside, np.float32)
    parts, stored = [], w.stored(x.shape, x.order)
    for g in range(group):
        part = x.index
        if group > 1:
            sides = [*stored[:-1], inside]
            part = w.emit("SLICE", [part, w.ints(0, 0, 0, g * inside), w.ints(*sides)], sides, "SliceOptions")
        filters = weight[g * inside : (g + 1) * inside].transpose(1, 2, 3, 0)
        sides = [1, *made, outside]
        inputs = [w.ints(*sides), w.tensor(filters.shape, filters), part]
        inputs.append(w.tensor([outside], bias[g * outside : (g + 1) * outside]))
        facts = {"padding": VALID, "strideH": strides[0], "strideW": strides[1]}
        parts.append(w.emit("TRANSPOSE_CONV", inputs, sides, "TransposeConvOptions", **facts))
    sides = [1, *made, group * outside]
    y = parts[0]
    if group > 1:
        y = w.emit("CONCATENATION", parts, sides, "ConcatenationOptions", axis=3, fusedActivationFunction=0)
    if left != made:
        sides = [1, *left, group * outside]
        y = w.emit("SLICE", [y, w.ints(0, *pads[:2], 0), w.ints(*sides)], sides, "SliceOptions")
    w.values[node.output[0]] = Value(y, (1, group * outside, *(left[1:] if flat else left)), x.order)


def overlapped(w: Writer, node: Any, x: Value, stride: int, pads: list[int]) -> None:
    """Frames of the filter's length by one product, added where they overlap: several times as fast as the operator."""
    weight = w.constants[node.input[1]]
    inside, outside, kernel = weight.shape
    frames, turns = x.shape[2], kernel // stride
    x = w.put(x, (0, 2, 1))
    matrix = w.tensor([kernel * outside, inside], weight.transpose(2, 1, 0).reshape(kernel * outside, inside))
    none = w.tensor([kernel * outside], np.zeros(kernel * outside, np.float32))
    facts: dict[str, Any] = {"fusedActivationFunction": 0, "keepNumDims": True}
    size = stride * outside
    y = w.emit("FULLY_CONNECTED", [x.index, matrix, none], [1, frames, turns * size], "FullyConnectedOptions", **facts)
    total, sides = -1, [1, frames + turns - 1, size]
    for k in range(turns):
        each = [1, frames, size]
        term = w.emit("SLICE", [y, w.ints(0, 0, k * size), w.ints(*each)], each, "SliceOptions")
        edges = w.tensor([3, 2], np.array([[0, 0], [k, turns - 1 - k], [0, 0]], np.int32))
        term = w.emit("PAD", [term, edges], sides, "PadOptions") if turns > 1 else term
        total = w.emit("ADD", [total, term], sides, "AddOptions", fusedActivationFunction=0) if k else term
    length = (frames + turns - 1) * stride
    value = Value(w.reshape(total, [1, length, outside]), (1, outside, length), (0, 2, 1))
    value = part(w, value, 2, pads[0], length - pads[0] - pads[1])
    if len(node.input) > 2:
        shifts = w.tensor([1, 1, outside], w.constants[node.input[2]].reshape(1, 1, -1))
        stored = w.stored(value.shape, value.order)
        index = w.emit("ADD", [value.index, shifts], stored, "AddOptions", fusedActivationFunction=0)
        value = Value(index, value.shape, value.order)
    w.values[node.output[0]] = value


def _two(given: Any, flat: bool, default: int) -> list[int]:
    values = list(given or [default] * (1 if flat else 2))
    return [1, *values] if flat else values


def padded(
    w: Writer,
    x: Value,
    spatial: list[int],
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    pads: list[int],
) -> tuple[int, int]:
    """The padding mode that an operator takes, and its input, padded before where no mode fits."""
    if not any(pads):
        return VALID, x.index
    needed = [
        max(0, (-(-s // t) - 1) * t + (k - 1) * d + 1 - s) for s, k, t, d in zip(spatial, kernel, strides, dilations)
    ]
    if [n // 2 for n in needed] == pads[:2] and [n - n // 2 for n in needed] == pads[2:]:
        return SAME, x.index
    edges = [[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]]
    stored = w.stored(x.shape, x.order)
    table = w.tensor([4, 2], np.array(edges, np.int32))
    return VALID, w.emit("PAD", [x.index, table], [n + sum(e) for n, e in zip(stored, edges)], "PadOptions", x.codes)


@rule("AveragePool", "GlobalAveragePool")
def pool(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0])
    if len(x.shape) != 4 or any(attrs.get("pads", [])):
        raise Unsupported("pools with padding")
    x = w.put(x, CHANNELS_LAST[4])
    kernel = list(attrs.get("kernel_shape", x.shape[2:]))
    strides = list(attrs.get("strides", [1, 1]))
    shape = (*x.shape[:2], *((s - k) // t + 1 for s, k, t in zip(x.shape[2:], kernel, strides)))
    facts = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": strides[0], "strideW": strides[1]}
    y = w.emit("AVERAGE_POOL_2D", [x.index], w.stored(shape, x.order), "Pool2DOptions", padding=VALID, **facts)
    w.values[node.output[0]] = Value(y, shape, x.order)


@rule(*PLAIN)
def plain(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0], coded=node.op_type == "Relu")
    y = w.emit(PLAIN[node.op_type], [x.index], w.stored(x.shape, x.order), codes=x.codes)
    w.values[node.output[0]] = Value(y, x.shape, x.order, x.codes)


@rule("HardSigmoid")
def hard_sigmoid(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0])
    stored = w.stored(x.shape, x.order)
    numbers = [w.tensor([1], np.array([attrs.get(k, d)], np.float32)) for k, d in (("alpha", 0.2), ("beta", 0.5))]
    y = w.emit("MUL", [x.index, numbers[0]], stored, "MulOptions")
    y = w.emit("ADD", [y, numbers[1]], stored, "AddOptions")
    w.values[node.output[0]] = Value(w.emit("RELU_0_TO_1", [y], stored), x.shape, x.order)


@rule("PRelu")
def prelu(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """The slope gets a number for each place of the innermost axis, which is the form that is fast."""
    x = w.of(node.input[0])
    name, slope, inner = node.input[1], w.constants[node.input[1]], x.order[-1]
    if slope.size == 1 and inner >= 0:
        sides = [n if a == inner else 1 for a, n in enumerate(x.shape)]
        name = f"{name} of {node.output[0]}"
        w.constants[name] = np.full(sides, slope.reshape(-1)[0], np.float32)
    y = w.emit("PRELU", [x.index, w.constant(name, x)], w.stored(x.shape, x.order))
    w.values[node.output[0]] = Value(y, x.shape, x.order)


@rule(*PAIRS)
def pair(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    names = list(node.input)
    asked = w.asked(node.output[0])
    if node.op_type == "Add" and asked is not None and not any(n in w.constants for n in names):
        both = [w.of(n, coded=True) for n in names]
        if all(v.codes is not None and v.shape == both[0].shape for v in both):
            first = both[0]
            indices = [w.put(v, first.order).index for v in both]
            facts: dict[str, Any] = {"fusedActivationFunction": asked[2]}
            y = w.emit("ADD", indices, w.stored(first.shape, first.order), "AddOptions", asked[0], **facts)
            w.claim(node, asked, Value(y, first.shape, first.order, asked[0]))
            return
    changing = [n for n in names if n not in w.constants]
    if not changing:
        raise Unsupported(f"{node.op_type} of constants")
    values = {n: w.of(n) for n in changing}
    rank = max(len(values[n].shape) for n in changing)
    values = {n: w.of_rank(v, rank) for n, v in values.items()}
    if node.op_type == "Pow" and names[1] in w.constants and np.all(w.constants[names[1]] == 2):
        x = values[names[0]]
        y = w.emit("SQUARE", [x.index], w.stored(x.shape, x.order))
        w.values[node.output[0]] = Value(y, x.shape, x.order)
        return
    order = max(values.values(), key=lambda v: (int(np.prod(v.shape)), v.order != natural(rank))).order
    values = {n: w.put(v, order) for n, v in values.items()}
    like = values[changing[0]]
    indices = [values[n].index if n in values else w.constant(n, like) for n in names]
    shape = np.broadcast_shapes(*(values[n].shape if n in values else w.constants[n].shape for n in names))
    relu, name = w.activation(node.output[0])
    code = PAIRS[node.op_type]
    facts = {} if code == "POW" else {"fusedActivationFunction": relu}
    y = w.emit(code, indices, w.stored(shape, order), f"{code.capitalize()}Options", **facts)
    w.values[name if facts else node.output[0]] = Value(y, tuple(shape), order)


@rule("MatMul", "Gemm")
def product(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """With a constant matrix, and the bias that is added behind it."""
    if node.input[1] not in w.constants or attrs.get("transA"):
        raise Unsupported("MatMul of two values")
    matrix = w.constants[node.input[1]]
    matrix = matrix if attrs.get("transB") else matrix.T
    x = w.of(node.input[0])
    x = w.put(x, natural(len(x.shape)))
    name, bias = node.output[0], w.constants[node.input[2]] if len(node.input) > 2 else None
    readers = w.readers.get(name, [])
    if bias is None and len(readers) == 1 and readers[0].op_type == "Add":
        other = next(n for n in readers[0].input if n != name)
        if other in w.constants and w.constants[other].size == len(matrix):
            bias, name = w.constants[other].reshape(-1), readers[0].output[0]
            w.done.add(name)
    relu, name = w.activation(name)
    shape = (*x.shape[:-1], len(matrix))
    inputs = [x.index, w.tensor(matrix.shape, matrix)]
    inputs.append(w.tensor([len(matrix)], np.zeros(len(matrix), np.float32) if bias is None else bias))
    facts: dict[str, Any] = {"fusedActivationFunction": relu, "keepNumDims": True}
    y = w.emit("FULLY_CONNECTED", inputs, shape, "FullyConnectedOptions", **facts)
    w.values[name] = Value(y, shape, natural(len(shape)))


@rule("Softmax")
def softmax(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0])
    if attrs.get("axis", -1) % len(x.shape) != len(x.shape) - 1:
        raise Unsupported("Softmax over another axis than the last")
    x = w.put(x, natural(len(x.shape)))
    y = w.emit("SOFTMAX", [x.index], x.shape, "SoftmaxOptions", beta=1.0)
    w.values[node.output[0]] = Value(y, x.shape, x.order)


@rule("BatchNormalization")
def batch_norm(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0])
    scale, shift, mean, variance = (w.constants[n].astype(np.float64) for n in node.input[1:5])
    factor = scale / np.sqrt(variance + attrs.get("epsilon", 1e-5))
    sides = [x.shape[1] if a == 1 else 1 for a in x.order]
    stored = w.stored(x.shape, x.order)
    factors, shifts = (w.tensor(sides, v.reshape(sides).astype(np.float32)) for v in (factor, shift - mean * factor))
    y = w.emit("MUL", [x.index, factors], stored, "MulOptions")
    relu, name = w.activation(node.output[0])
    y = w.emit("ADD", [y, shifts], stored, "AddOptions", fusedActivationFunction=relu)
    w.values[name] = Value(y, x.shape, x.order)


@rule("ReduceMean")
def mean(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0])
    given = w.constants[node.input[1]].tolist() if len(node.input) > 1 else attrs.get("axes", range(len(x.shape)))
    axes = [a % len(x.shape) for a in given]
    y = averaged(w, x, axes)
    w.values[node.output[0]] = y if attrs.get("keepdims", 1) else w.without(y, axes)


def averaged(w: Writer, x: Value, axes: list[int]) -> Value:
    """The mean over axes, which stay with size 1."""
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    places = w.ints(*(x.order.index(a) for a in axes))
    return Value(
        w.emit("MEAN", [x.index, places], w.stored(shape, x.order), "ReducerOptions", keepDims=True), shape, x.order
    )


@rule("LayerNormalization")
def layer_norm(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """Over the last axis, wherever it lies in memory."""
    x = w.of(node.input[0])
    last = len(x.shape) - 1
    if attrs.get("axis", -1) % len(x.shape) != last or any(node.output[1:]):
        raise Unsupported("LayerNormalization over several axes")
    stored, one = w.stored(x.shape, x.order), w.stored((*x.shape[:-1], 1), x.order)
    least = w.tensor([1], np.array([attrs.get("epsilon", 1e-5)], np.float32))
    middle = averaged(w, x, [last])
    apart = w.emit("SUB", [x.index, middle.index], stored, "SubOptions")
    squares = Value(w.emit("SQUARE", [apart], stored), x.shape, x.order)
    spread = w.emit("ADD", [averaged(w, squares, [last]).index, least], one, "AddOptions")
    y = w.emit("MUL", [apart, w.emit("RSQRT", [spread], one)], stored, "MulOptions")
    y = w.emit("MUL", [y, w.constant(node.input[1], x)], stored, "MulOptions")
    if len(node.input) > 2:
        y = w.emit("ADD", [y, w.constant(node.input[2], x)], stored, "AddOptions")
    w.values[node.output[0]] = Value(y, x.shape, x.order)


@rule("QuantizeLinear")
def quantise(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """Moves keep codes, so that quantising behind them is nothing."""
    w.values[node.output[0]] = w.as_codes(w.of(node.input[0], coded=True), w.scale_of(node))


@rule("DequantizeLinear")
def dequantise(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """Of values, which stay codes until somebody needs more; of constants, which are known as both."""
    if node.input[0] in w.values:
        w.values[node.output[0]] = w.of(node.input[0], coded=True)
        return
    codes, scale, *zero = (w.constants[n] for n in node.input if n)
    axis = attrs.get("axis", 1) % max(codes.ndim, 1)
    sides = [-1 if i == axis else 1 for i in range(codes.ndim)] if scale.size > 1 else [1] * codes.ndim
    less = zero[0].astype(np.float32) if zero else np.zeros(1, np.float32)
    real = (codes.astype(np.float32) - (less.reshape(sides) if less.size > 1 else less)) * scale.reshape(sides)
    w.constants[node.output[0]] = real
    if codes.dtype == np.int8 and not less.any() and (scale.size == 1 or axis == 0):
        w.coded[node.output[0]] = codes, scale.reshape(-1), axis
