"""How ONNX ops that move values become operators of TensorFlow Lite; importing this registers them."""

from __future__ import annotations

from typing import Any

import numpy as np

from runnel.tools.benchmark.tflite import Unsupported, Value, Writer, natural, rule


@rule("Concat")
def concat(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    asked = w.asked(node.output[0])
    values = [w.of(n, coded=True) for n in node.input]
    codes = values[0].codes
    if codes is None or any(v.codes != codes for v in values):
        coded = asked is not None and asked[2] == 0 and all(v.codes is not None for v in values)
        codes = asked[0] if coded and asked is not None else None
    values = [w.real(v) if codes is None else w.as_codes(v, codes) for v in values]
    order = max(values, key=lambda v: v.order != natural(len(v.shape))).order
    values = [w.put(v, order) for v in values]
    axis = attrs["axis"] % len(values[0].shape)
    shape = list(values[0].shape)
    shape[axis] = sum(v.shape[axis] for v in values)
    facts: dict[str, Any] = {"axis": order.index(axis), "fusedActivationFunction": 0}
    stored = w.stored(shape, order)
    y = w.emit("CONCATENATION", [v.index for v in values], stored, "ConcatenationOptions", codes, **facts)
    w.values[node.output[0]] = Value(y, tuple(shape), order, codes)


@rule("Slice")
def cut(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0], coded=True)
    given = [attrs[k] for k in ("starts", "ends", "axes") if k in attrs]  # before opset 10
    starts, ends, *rest = given or [w.constants[n].tolist() for n in node.input[1:] if n]
    axes, steps = (rest[0] if rest else range(len(starts))), rest[1:]
    if steps and any(s != 1 for s in steps[0]):
        raise Unsupported("slices in steps")
    first, shape = [0] * len(x.shape), list(x.shape)
    for start, end, axis in zip(starts, ends, axes):
        axis %= len(x.shape)
        begin, stop, _ = slice(start, end).indices(x.shape[axis])
        first[axis], shape[axis] = begin, stop - begin
    stored = w.stored(shape, x.order)
    begins = [0 if a < 0 else first[a] for a in x.order]
    y = w.emit("SLICE", [x.index, w.ints(*begins), w.ints(*stored)], stored, "SliceOptions", x.codes)
    w.values[node.output[0]] = Value(y, tuple(shape), x.order, x.codes)


@rule("Identity")
def same(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    w.values[node.output[0]] = w.of(node.input[0], coded=True)


@rule("Transpose")
def transpose(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """Nothing moves: the axes get other names."""
    x = w.of(node.input[0], coded=True)
    perm = attrs.get("perm", list(range(len(x.shape)))[::-1])
    order = tuple(perm.index(a) if a >= 0 else -1 for a in x.order)
    w.values[node.output[0]] = Value(x.index, tuple(x.shape[p] for p in perm), order, x.codes)


@rule("Squeeze", "Unsqueeze", "Reshape")
def reshape(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0], coded=True)
    asked = [int(v) for v in w.constants[node.input[1]].reshape(-1)] if len(node.input) > 1 else attrs.get("axes", [])
    rank = len(x.shape)
    if node.op_type == "Squeeze":
        w.values[node.output[0]] = w.without(
            x, [a % rank for a in asked] or [i for i, n in enumerate(x.shape) if n == 1]
        )
        return
    if node.op_type == "Unsqueeze":
        new = sorted(a % (rank + len(asked)) for a in asked)
        places = [i for i in range(rank + len(asked)) if i not in new]
        shape = [1] * (rank + len(asked))
        for place, size in zip(places, x.shape):
            shape[place] = size
    else:
        shape = [x.shape[i] if n == 0 else n for i, n in enumerate(asked)]
        if -1 in shape:
            shape[shape.index(-1)] = int(np.prod(x.shape)) // -int(np.prod(shape))
    y = w.reshape(w.put(x, natural(rank)).index, shape, x.codes)
    w.values[node.output[0]] = Value(y, tuple(shape), natural(len(shape)), x.codes)


@rule("Gather")
def gather(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """By constant numbers; one number is a slice."""
    if node.input[1] not in w.constants:
        raise Unsupported("Gather by computed numbers")
    x, places = w.of(node.input[0], coded=True), w.constants[node.input[1]]
    axis = attrs.get("axis", 0) % len(x.shape)
    places = np.where(places < 0, places + x.shape[axis], places)
    if places.size == 1:
        one = part(w, x, axis, int(places.reshape(-1)[0]), 1)
        shape = (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
        if places.ndim == 0:
            w.values[node.output[0]] = w.without(one, [axis])
        else:
            y = w.reshape(w.put(one, natural(len(x.shape))).index, shape, x.codes)
            w.values[node.output[0]] = Value(y, shape, natural(len(shape)), x.codes)
        return
    x = w.put(x, natural(len(x.shape)))
    shape = (*x.shape[:axis], *places.shape, *x.shape[axis + 1 :])
    table = w.tensor(places.shape, places.astype(np.int32))
    y = w.emit("GATHER", [x.index, table], shape, "GatherOptions", x.codes, axis=axis)
    w.values[node.output[0]] = Value(y, shape, natural(len(shape)), x.codes)


def part(w: Writer, x: Value, axis: int, first: int, count: int) -> Value:
    """Some places of an axis."""
    if count == x.shape[axis]:
        return x
    shape = (*x.shape[:axis], count, *x.shape[axis + 1 :])
    stored = w.stored(shape, x.order)
    begins = w.ints(*(first if a == axis else 0 for a in x.order))
    return Value(
        w.emit("SLICE", [x.index, begins, w.ints(*stored)], stored, "SliceOptions", x.codes), shape, x.order, x.codes
    )


@rule("Pad")
def pad(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    x = w.of(node.input[0])
    given = attrs.get("pads") or w.constants[node.input[1]].tolist()
    value = w.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(1, np.float32)
    mode = attrs.get("mode", b"constant").decode()
    if len(node.input) > 3 or min(given) < 0 or mode == "edge" or np.any(value):
        raise Unsupported(f"Pad ({mode})")
    rank = len(x.shape)
    edges = [[0, 0] if a < 0 else [given[a], given[a + rank]] for a in x.order]
    shape = tuple(n + given[i] + given[i + rank] for i, n in enumerate(x.shape))
    table, stored = w.tensor([len(edges), 2], np.array(edges, np.int32)), w.stored(shape, x.order)
    if mode == "constant":
        y = w.emit("PAD", [x.index, table], stored, "PadOptions")
    else:
        y = w.emit("MIRROR_PAD", [x.index, table], stored, "MirrorPadOptions", mode=0)
    w.values[node.output[0]] = Value(y, shape, x.order)


@rule("ScatterND")
def scatter(w: Writer, node: Any, attrs: dict[str, Any]) -> None:
    """Of whole places of one axis, next to each other: what comes before, what is written, what comes behind."""
    places = w.constants.get(node.input[1])
    if places is None or attrs.get("reduction", b"none") != b"none":
        raise Unsupported("ScatterND by computed numbers")
    x, new = w.of(node.input[0]), w.of(node.input[2])
    known = x.shape[: places.shape[-1]]
    box = places.reshape(-1, len(known))
    first, sides = box.min(0), box.max(0) - box.min(0) + 1
    whole = first + np.indices(sides).reshape(len(known), -1).T
    partial = [i for i, n in enumerate(known) if sides[i] < n]
    if len(partial) != 1 or not np.array_equal(whole, box):
        raise Unsupported("ScatterND of scattered places")
    axis = partial[0]
    rank = len(x.shape)
    x, new = w.put(x, natural(rank)), w.put(new, natural(len(new.shape)))
    shape = (*(int(n) for n in sides), *x.shape[len(known) :])
    begin, end = int(first[axis]), int(first[axis] + sides[axis])
    parts = [part(w, x, axis, 0, begin).index] if begin else []
    parts.append(w.reshape(new.index, shape))
    if end < x.shape[axis]:
        parts.append(part(w, x, axis, end, x.shape[axis] - end).index)
    facts: dict[str, Any] = {"axis": axis, "fusedActivationFunction": 0}
    y = w.emit("CONCATENATION", parts, x.shape, "ConcatenationOptions", **facts)
    w.values[node.output[0]] = Value(y, x.shape, x.order)
