"""Random offline models as recipes: lists of steps that stay valid when any step is taken out, so that failures shrink.

A step is (kind, source, parameters); source picks one of the tensors made so far, counted from the newest. Every tensor
is [1, channels, time]; its length for each input length is followed along, so that joins are of equal length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from masks import attend_channels
from nets import TIME, Net, Turn

Step = tuple[str, int, dict[str, Any]]
Recipe = list[Step]
SPAN = np.arange(0, 400)
END = 1 << 62


@dataclass(frozen=True)
class Tensor:
    """lengths: for an input of 0, 1, 2 … frames."""

    name: str
    channels: int
    lengths: np.ndarray


class Builder:
    """Builds the model of a recipe; a step that does not fit its source is left out."""

    def __init__(self, recipe: Recipe, seed: int = 0) -> None:
        self.net = Net(seed)
        self.tensors = [Tensor(self.net.input([1, 3, TIME]), 3, SPAN)]
        self.tails: list[str] = []
        self.outputs: list[Tensor] = []
        for kind, source, parameters in recipe:
            x = self.tensors[-1 - source % len(self.tensors)]
            made = KINDS[kind](self, x, **parameters)
            if made is not None and made.lengths[-1] > 40 and made.lengths[-1] < 3000:
                self.tensors.append(made)

    def model(self) -> bytes:
        outputs = {t.name: t for t in [*self.outputs, self.tensors[-1]]}
        names = [n if n != "x" else self.net.op("Identity", n) for n in outputs]
        self._drop_unread({*names, *self.tails})
        return self.net.model(*names, *self.tails)

    def _drop_unread(self, needed: set[str]) -> None:
        """Onnxruntime runs, and fails in, nodes that nothing reads."""
        kept = []
        for node in reversed(self.net.nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(node.input)
        self.net.nodes = kept[::-1]

    # One method a kind. None: does not fit. ---------------------------------------------------------------------------

    def conv(self, x: Tensor, k: int, d: int, s: int, left: int, right: int, group: int = 1, wide: int = 0) -> Tensor:
        cout = 4 if wide else 3
        if group > 1:
            group, cout = x.channels, x.channels
        h = self.net.conv(x.name, x.channels, cout, k, dilations=[d], strides=[s], pads=[left, right], group=group)
        return Tensor(h, cout, np.maximum(0, (x.lengths + left + right - (k - 1) * d - 1) // s + 1))

    def plane(self, x: Tensor, k: int, f: int, left: int, right: int, s: int = 1) -> Tensor:
        """A 2-D convolution over channels (as bins) and time."""
        h = self.net.op("Unsqueeze", x.name, self.net.const([1]))
        pads = [f // 2, left, f // 2, right]
        h = self.net.conv(h, 1, 2, [f, k], pads=pads, strides=[1, s])
        bins = x.channels + 2 * (f // 2) - f + 1
        h = self.net.op("Reshape", h, self.net.const([1, 2 * bins, -1]))
        lengths = np.maximum(0, (x.lengths + left + right - k) // s + 1)
        return self._narrow(Tensor(h, 2 * bins, lengths))

    def _narrow(self, x: Tensor) -> Tensor:
        return x if x.channels <= 6 else Tensor(self.net.conv(x.name, x.channels, 3, 1), 3, x.lengths)

    def up(self, x: Tensor, k: int, d: int, s: int, left: int, right: int, extra: int = 0) -> Tensor:
        extra = min(extra, max(s, d) - 1)
        h = self.net.conv_transpose(
            x.name, x.channels, 3, k, strides=[s], dilations=[d], pads=[left, right], output_padding=[extra]
        )
        return Tensor(h, 3, np.maximum(0, s * (x.lengths - 1) + (k - 1) * d + 1 - left - right + extra))

    def pool(self, x: Tensor, k: int, s: int, left: int, right: int, average: int = 0,
             ceil: int = 0) -> Tensor | None:  # fmt: skip
        """average: 1 counts the padding, 2 does not."""
        left, right = min(left, k - 1), min(right, k - 1)
        attrs: dict[str, Any] = {"kernel_shape": [k], "strides": [s], "pads": [left, right], "ceil_mode": ceil}
        if average == 1:
            attrs["count_include_pad"] = 1
        h = self.net.op("AveragePool" if average else "MaxPool", x.name, **attrs)
        lengths = (x.lengths + left + right - k + (s - 1) * ceil) // s + 1
        if ceil:
            lengths = np.minimum(lengths, (x.lengths + left - 1) // s + 1)
        return Tensor(h, x.channels, np.maximum(0, lengths))

    def resize(self, x: Tensor, up: int, down: int, mode: str, places: str, rounding: str) -> Tensor:
        scales = self.net.const(np.array([1.0, 1.0, up / down]))
        attrs = {"nearest_mode": rounding} if mode == "nearest" else {}
        h = self.net.op("Resize", x.name, "", scales, mode=mode, coordinate_transformation_mode=places, **attrs)
        return Tensor(h, x.channels, x.lengths * up // down)

    def every(self, x: Tensor, first: int, step: int) -> Tensor:
        """Every step-th frame."""
        n = self.net
        h = n.op("Slice", x.name, n.const([first]), n.const([END]), n.const([2]), n.const([step]))
        return Tensor(h, x.channels, np.maximum(0, -(-(x.lengths - first) // step)))

    def shuffle(self, x: Tensor, of: int) -> Tensor:
        """Parts of a frame's channels as frames."""
        n = self.net
        h = n.op("Reshape", n.conv(x.name, x.channels, 3 * of, 1), n.const([1, 3, of, -1]))
        h = n.op("Reshape", n.op("Transpose", h, perm=[0, 1, 3, 2]), n.const([1, 3, -1]))
        return Tensor(h, 3, x.lengths * of)

    def stack(self, x: Tensor, of: int) -> Tensor:
        """Padded to a multiple, and that many frames as one."""
        x = self.multiple(x, of)
        n, c = self.net, x.channels
        h = n.op("Transpose", n.op("Reshape", x.name, n.const([1, c, -1, of])), perm=[0, 1, 3, 2])
        h = n.op("Reshape", h, n.const([1, c * of, -1]))
        return self._narrow(Tensor(h, c * of, x.lengths // of))

    def act(self, x: Tensor, op: str) -> Tensor:
        return Tensor(self.net.op(op, x.name), x.channels, x.lengths)

    def affine(self, x: Tensor, high: int = 0) -> Tensor:
        shape = (1, x.channels, 1) if high else (x.channels, 1)
        h = self.net.op(
            "Add", self.net.op("Mul", x.name, self.net.weight(*shape, scale=1.0)), self.net.weight(*shape, scale=0.5)
        )
        return Tensor(h, x.channels, x.lengths)

    def norm(self, x: Tensor, kind: int) -> Tensor:
        net, c = self.net, x.channels
        if kind == 0:
            parameters = [net.const(net.rng.uniform(0.5, 1.5, c)) for _ in range(4)]
            return Tensor(net.op("BatchNormalization", x.name, *parameters), c, x.lengths)
        t = net.op("Transpose", x.name, perm=[0, 2, 1])
        if kind == 1:
            h = net.op(
                "LayerNormalization", t, net.weight(c, scale=1.0), net.weight(c, scale=1.0), axis=-1, epsilon=0.1
            )
        else:
            h = net.op("Softmax", t, axis=-1)
        return Tensor(net.op("Transpose", h, perm=[0, 2, 1]), c, x.lengths)

    def linear(self, x: Tensor) -> Tensor:
        t = self.net.op(
            "MatMul", self.net.op("Transpose", x.name, perm=[0, 2, 1]), self.net.weight(x.channels, 4, scale=0.5)
        )
        return Tensor(self.net.op("Transpose", t, perm=[0, 2, 1]), 4, x.lengths)

    def gate(self, x: Tensor) -> Tensor:
        """Each frame times its own mean over channels."""
        return Tensor(self.net.op("Mul", x.name, self.net.op("ReduceMean", x.name, axes=[1])), x.channels, x.lengths)

    def mask(self, x: Tensor) -> Tensor:
        flag = self.net.op("Less", x.name, self.net.const(5.0))
        return Tensor(self.net.op("Where", flag, x.name, self.net.const(0.25)), x.channels, x.lengths)

    def split(self, x: Tensor) -> Tensor | None:
        if x.channels < 2:
            return None
        a, b = self.net.op("Split", x.name, self.net.const([1, x.channels - 1]), outputs=2, axis=1)
        return Tensor(self.net.op("Concat", b, a, axis=1), x.channels, x.lengths)

    def cut(self, x: Tensor, first: int, last: int) -> Tensor:
        h = self.net.op(
            "Slice", x.name, self.net.const([first]), self.net.const([-last if last else END]), self.net.const([2])
        )
        return Tensor(h, x.channels, np.maximum(0, x.lengths - first - last))

    def pad(self, x: Tensor, left: int, right: int, mode: str, value: float = 0.0) -> Tensor | None:
        extra = [self.net.const(value)] if mode == "constant" else []
        h = self.net.op("Pad", x.name, self.net.const([0, 0, left, 0, 0, right]), *extra, mode=mode)
        return Tensor(h, x.channels, x.lengths + left + right)

    def behind(self, x: Tensor, left: int, right: int, value: float) -> Tensor:
        """Constant frames joined before and after."""
        parts = [self.net.const(np.full((1, x.channels, n), value)) if n else "" for n in (left, right)]
        h = self.net.op("Concat", *(p for p in (parts[0], x.name, parts[1]) if p), axis=2)
        return Tensor(h, x.channels, x.lengths + left + right)

    def multiple(self, x: Tensor, of: int) -> Tensor:
        """Padded at the end to a multiple, by shape arithmetic."""
        n = self.net
        missing = n.op(
            "Mod", n.op("Sub", n.const([of]), n.op("Mod", n.length(x.name, 2), n.const([of]))), n.const([of])
        )
        h = n.op("Pad", x.name, n.op("Concat", n.const([0] * 5), missing, axis=0))
        return Tensor(h, x.channels, -(-x.lengths // of) * of)

    def rnn(self, x: Tensor, op: str, initial: int, last: int = 0, linear: int = 0) -> Tensor:
        t = self.net.op("Transpose", x.name, perm=[2, 0, 1])
        attrs = {"linear_before_reset": linear} if op == "GRU" else {}
        y = self.net.recurrent(op, t, x.channels, 3, initial=bool(initial), outputs=2 if last else 1, **attrs)
        if last:
            y, end = y
            self.tails.append(end)
        return Tensor(
            self.net.op("Transpose", self.net.op("Squeeze", y, self.net.const([1])), perm=[1, 2, 0]), 3, x.lengths
        )

    def attend(self, x: Tensor, mask: str) -> Tensor:
        return Tensor(attend_channels(self.net, x.name, x.channels, mask), x.channels, x.lengths)

    def bins(self, x: Tensor) -> Tensor:
        """A recurrence over channels with time as its batch."""
        t = self.net.op(
            "Reshape", self.net.op("Transpose", x.name, perm=[1, 2, 0]), self.net.const([x.channels, -1, 1])
        )
        y = self.net.op("Squeeze", self.net.recurrent("GRU", t, 1, 1), self.net.const([1, 3]))
        return Tensor(self.net.op("Unsqueeze", y, self.net.const([0])), x.channels, x.lengths)

    def scan(self, x: Tensor, initial: int, last: int) -> Tensor:
        """A loop over time with a state and the state before it."""
        n, turn, shape = self.net, Turn(), (1, x.channels)
        state, old, frame = (turn.input(name, *shape) for name in ("state", "old", "frame"))
        kept = turn.op("Sub", turn.op("Mul", state, n.const(0.6)), turn.op("Mul", old, n.const(0.3)))
        after = turn.op("Tanh", turn.op("Add", turn.op("Mul", frame, n.weight(x.channels)), kept))
        body = turn.graph(after, turn.op("Identity", state), turn.op("Add", after, old))
        first = [n.weight(*shape) if initial else n.const(np.zeros(shape)) for _ in range(2)]
        end, _, y = n.op("Scan", *first, x.name, body=body, num_scan_inputs=1, scan_input_axes=[2],
                         scan_output_axes=[2], outputs=3)  # fmt: skip
        if last:
            self.tails.append(n.op("Neg", end))
        return Tensor(y, x.channels, x.lengths)

    def join(self, x: Tensor, with_: int, op: str, front: int = 0) -> Tensor | None:
        """With another tensor, cut or padded to the same length where that can be done."""
        y = self._aligned(self.tensors[with_ % len(self.tensors)], x, front)
        if y is None:
            return None
        if op == "Concat":
            return self._narrow(
                Tensor(self.net.op("Concat", x.name, y.name, axis=1), x.channels + y.channels, x.lengths)
            )
        if x.channels != y.channels:
            y = Tensor(self.net.conv(y.name, y.channels, x.channels, 1), x.channels, y.lengths)
        return Tensor(self.net.op(op, x.name, self.net.op("Tanh", y.name)), x.channels, x.lengths)

    def _aligned(self, y: Tensor, x: Tensor, front: int) -> Tensor | None:
        difference = (y.lengths - x.lengths)[(x.lengths > 0) & (y.lengths > 0)]
        if (difference == difference[0]).all():
            n = int(difference[0])
            if n == 0:
                return Tensor(y.name, y.channels, x.lengths)
            return (
                self.cut(y, n * front, n * (1 - front))
                if n > 0
                else self.pad(y, -n * front, -n * (1 - front), "constant")
            )
        if (difference >= 0).all():
            h = self.net.op("Slice", y.name, self.net.const([0]), self.net.length(x.name, 2), self.net.const([2]))
            return Tensor(h, y.channels, x.lengths)
        return None

    def position(self, x: Tensor, kind: int) -> Tensor:
        """With the number of each frame: a table by position, a sine of it, or a mask from it."""
        n = self.net
        if kind == 0:
            rows = n.op("Slice", n.weight(1, x.channels, 900), n.const([0]), n.length(x.name, 2), n.const([2]))
            return Tensor(n.op("Add", x.name, rows), x.channels, x.lengths)
        size = n.op("Squeeze", n.length(x.name, 2))
        numbers = n.op("Unsqueeze", n.op("Range", n.const(0), size, n.const(1)), n.const([0, 1]))
        if kind == 1:
            wave = n.op("Sin", n.op("Mul", n.op("Cast", numbers, to=1), n.weight(x.channels, 1)))
            return Tensor(n.op("Add", x.name, wave), x.channels, x.lengths)
        third = n.op("Equal", n.op("Mod", numbers, n.const(3)), n.const(1))
        return Tensor(n.op("Where", third, x.name, n.const(0.25)), x.channels, x.lengths)

    def frames(self, x: Tensor, k: int, d: int, s: int) -> Tensor:
        """Frames of frames by a matrix of indices, then fewer channels."""
        n, span = self.net, (k - 1) * d + 1
        room = n.op("Add", n.op("Squeeze", n.length(x.name, 2)), n.const(s - span))
        starts = n.op("Mul", n.op("Range", n.const(0), n.op("Div", room, n.const(s)), n.const(1)), n.const(s))
        places = n.op("Add", n.op("Unsqueeze", starts, n.const([0])), n.const(np.arange(k)[:, None] * d))
        h = n.op("Gather", x.name, places, axis=2)  # [1, C, k, frames]
        h = n.op("Reshape", h, n.const([1, x.channels * k, -1]))
        return self._narrow(Tensor(h, x.channels * k, np.maximum(0, (x.lengths - span) // s + 1)))

    def output(self, x: Tensor) -> None:
        self.outputs.append(x)

    def tail(self, x: Tensor, start: int, stop: int) -> None:
        """The last frames, as an output."""
        n = self.net
        self.tails.append(
            n.op("Slice", x.name, n.const([-start - stop]), n.const([-stop if stop else END]), n.const([2]))
        )

    def ending(self, x: Tensor, most: int, dense: int) -> None:
        """A classifier: pooled over all of time, with a dense layer."""
        pooled = self.net.op("GlobalMaxPool" if most else "GlobalAveragePool", x.name)
        h = self.net.op("Flatten", pooled)
        h = self.net.op("MatMul", h, self.net.weight(x.channels, 4)) if dense else h
        self.tails.append(self.net.op("Tanh", h))


KINDS: dict[str, Callable[..., Tensor | None]] = {
    n: getattr(Builder, n)
    for n in ("conv", "plane", "up", "pool", "act", "affine", "norm", "linear", "gate", "mask", "split", "cut", "pad",
              "resize", "every", "shuffle", "stack",
              "behind", "multiple", "rnn", "bins", "scan", "join", "position", "attend", "frames", "output", "tail",
              "ending")
}  # fmt: skip


def random_recipe(rng: np.random.Generator) -> Recipe:
    """Between one and nine steps."""

    def i(low: int, high: int) -> int:
        return int(rng.integers(low, high + 1))

    def pick(*values: Any) -> Any:
        return values[i(0, len(values) - 1)]

    def conv() -> dict[str, Any]:
        k, d = i(1, 5), pick(1, 1, 1, 2, 3)
        span = (k - 1) * d
        left, right = pick(
            (span // 2, span - span // 2), (span, 0), (0, span), (0, 0), (span, span), (i(0, 9), i(0, 9))
        )
        return {"k": k, "d": d, "s": pick(1, 1, 1, 2, 2, 3), "left": left, "right": right}

    def up() -> dict[str, Any]:
        k, s, d = i(1, 6), pick(1, 2, 2, 3), pick(1, 1, 1, 2)
        left, right = pick((0, 0), (0, max(0, k - s)), (max(0, k - s), 0), (i(0, 3), i(0, 3)))
        return {"k": k, "d": d, "s": s, "left": left, "right": right, "extra": pick(0, 0, 1, 2)}

    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "conv": lambda: {**conv(), "group": pick(1, 1, 2), "wide": i(0, 1)},
        "plane": lambda: {"k": i(1, 4), "f": i(1, 3), "left": i(0, 3), "right": i(0, 3), "s": pick(1, 1, 2)},
        "up": up,
        "pool": lambda: {"k": i(1, 4), "s": i(1, 3), "left": i(0, 2), "right": i(0, 2), "average": i(0, 2),
                         "ceil": i(0, 1)},
        "resize": lambda: {"up": pick(2, 2, 3, 1, 1, 3), "down": pick(1, 1, 1, 2, 4),
                           "mode": pick("nearest", "linear"), "places": pick("half_pixel", "asymmetric"),
                           "rounding": pick("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")},
        "every": lambda: {"first": i(0, 3), "step": i(2, 4)},
        "shuffle": lambda: {"of": i(2, 3)},
        "stack": lambda: {"of": i(2, 3)},
        "act": lambda: {"op": pick("Sigmoid", "Tanh", "Relu", "Exp", "Softplus", "Cos")},
        "affine": lambda: {"high": i(0, 1)},
        "norm": lambda: {"kind": i(0, 2)},
        "linear": dict,
        "gate": dict,
        "mask": dict,
        "split": dict,
        "cut": lambda: {"first": pick(0, 0, i(1, 4)), "last": pick(0, 0, i(1, 4))},
        "pad": lambda: {"left": i(0, 4), "right": i(0, 4), "value": pick(0.0, -1.5),
                        "mode": pick("constant", "constant", "reflect", "edge")},
        "behind": lambda: {"left": i(0, 3), "right": i(0, 3), "value": pick(0.0, 0.7)},
        "multiple": lambda: {"of": i(2, 6)},
        "rnn": lambda: {"op": pick("GRU", "LSTM", "RNN"), "initial": i(0, 1), "linear": i(0, 1),
                        "last": pick(0, 0, 0, 1)},
        "attend": lambda: {"mask": pick("window", "sliding", "chunked", "chunked_left", "only_ahead", "itself")},
        "bins": dict,
        "scan": lambda: {"initial": i(0, 1), "last": pick(0, 0, 1)},
        "join": lambda: {"with_": i(0, 8), "op": pick("Add", "Mul", "Sub", "Max", "Concat"), "front": i(0, 1)},
        "position": lambda: {"kind": i(0, 2)},
        "frames": lambda: {"k": i(1, 5), "d": pick(1, 1, 2), "s": i(1, 3)},
        "output": dict,
        "tail": lambda: {"start": i(1, 4), "stop": pick(0, 0, 1, 2)},
        "ending": lambda: {"most": i(0, 1), "dense": i(0, 1)},
    }  # fmt: skip
    kinds = ["conv"] * 6 + ["join"] * 6 + ["up", "act", "cut", "pad", "rnn"] * 2 + list(makers)
    recipe: Recipe = []
    for _ in range(i(1, 9)):
        kind = pick(*kinds)
        recipe.append((kind, pick(0, 0, 0, 1, 2, 3), makers[kind]()))
    return recipe


def simpler(recipe: Recipe) -> Iterator[Recipe]:
    """Recipes one change away: a step less, or one parameter smaller."""
    for i in range(len(recipe)):
        yield recipe[:i] + recipe[i + 1 :]
    for i, (kind, source, parameters) in enumerate(recipe):
        if source:
            yield [*recipe[:i], (kind, 0, parameters), *recipe[i + 1 :]]
        for key, value in parameters.items():
            floor = 1 if key in ("k", "d", "s", "up", "down", "step", "of", "f", "start", "group") else 0
            options = [v for v in (floor, value - 1) if floor <= v < value] if isinstance(value, int) else []
            for option in options:
                yield [*recipe[:i], (kind, source, {**parameters, key: option}), *recipe[i + 1 :]]
