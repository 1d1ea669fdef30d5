"""Ops that move, fold, split and join axes, with time on any of them."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
from nets import TIME, Net, stack
from oracle import Check

from runnel.errors import Refused

SHORT: dict[str, Any] = {"lengths": (1, 2, 5, 9, 14), "steps": (None, 4)}


@pytest.mark.parametrize("perm", [None, [0, 2, 1], [2, 0, 1], [2, 1, 0], [1, 2, 0]])
def test_transpose(check: Check, perm: list[int] | None) -> None:
    net, x = stack(3)
    check(net.model(net.op("Transpose", net.conv(x, 3, 3, 3, pads=[1, 1]), perm=perm)), **SHORT)


@pytest.mark.parametrize("axes", [[0], [1], [3], [-1], [0, -1], [0, 2]])
def test_unsqueeze_and_squeeze(check: Check, axes: list[int]) -> None:
    net, x = stack(3)
    wide = net.op("Unsqueeze", x, net.const(axes))
    check(net.model(wide, net.op("Squeeze", net.op("Neg", wide), net.const(axes))), **SHORT)


def test_squeeze_without_axes(check: Check) -> None:
    """Offline it would squeeze time away at a length of one; such a length is left out."""
    net = Net()
    x = net.input([1, 1, TIME, 3])
    check(net.model(net.op("Squeeze", x)), lengths=(2, 5, 9, 14))


RESHAPES: dict[str, tuple[list[int | str], list[int]]] = {
    "minus_one": ([1, 6, TIME], [1, 2, 3, -1]),
    "merge_bins": ([1, 2, 3, TIME], [1, 6, -1]),
    "zero_keeps": ([1, 6, TIME], [0, 6, 0]),
    "zero_and_split": ([1, TIME, 6], [0, 0, 2, 3]),
    "drop_batch": ([1, TIME, 6], [-1, 6]),
    "add_axes": ([TIME, 6], [1, -1, 1, 6]),
    "minus_one_elsewhere": ([1, TIME, 2, 3], [1, 0, -1]),
    "time_first": ([TIME, 1, 4], [-1, 2, 2]),
    "same": ([1, 6, TIME], [1, 6, -1]),
}


@pytest.mark.parametrize("case", RESHAPES)
def test_reshape(check: Check, case: str) -> None:
    shape, target = RESHAPES[case]
    net = Net()
    x = net.input(shape)
    check(net.model(net.op("Reshape", x, net.const(target))), **SHORT)


def test_reshape_by_the_shape_of_another_tensor(check: Check) -> None:
    net = Net()
    x = net.input([1, TIME, 6])
    split = net.op("Reshape", x, net.op("Concat", net.const([1]), net.length(x, 1), net.const([2, 3]), axis=0))
    back = net.op("Reshape", split, net.op("Shape", x))
    check(net.model(net.op("Add", back, x), split), **SHORT)


def test_reshape_where_the_length_equals_a_channel_count(check: Check) -> None:
    """Sizes must not be taken for time because they are equal at one length."""
    net = Net()
    x = net.input([1, 64, TIME])
    y = net.op("Reshape", x, net.op("Concat", net.const([64]), net.length(x, 2), axis=0))
    check(net.model(net.op("Transpose", y, perm=[1, 0])), lengths=(1, 2, 63, 64, 65), steps=(None, 4))


@pytest.mark.parametrize(
    ("shape", "axis"), [([1, TIME, 4, 2], 2), ([TIME, 4, 2], 1), ([TIME, 4, 2], -2), ([1, 1, TIME], 2)]
)
def test_flatten(check: Check, shape: list[int | str], axis: int) -> None:
    net = Net()
    x = net.input(shape)
    check(net.model(net.op("Flatten", x, axis=axis)), **SHORT)


@pytest.mark.parametrize(
    ("shape", "target"),
    [([1, 6, TIME], [2, -1, 6]), ([1, 6, TIME], [1, -1]), ([1, TIME, 6], [2, -1, 3]), ([1, 6, TIME], [-1, 6])],
)
def test_folding_time_with_other_axes_is_refused(shape: list[int | str], target: list[int]) -> None:
    net = Net()
    x = net.input(shape)
    with pytest.raises(Refused, match="folds time"):
        oracle.check(net.model(net.op("Reshape", x, net.const(target))))


@pytest.mark.parametrize("sizes", [[1, 5], [2, 2, 2], [3, 1, 2], None])
def test_split(check: Check, sizes: list[int] | None) -> None:
    net, x = stack(6)
    extra = [net.const(sizes)] if sizes else []
    parts = net.op("Split", x, *extra, outputs=len(sizes or [0, 0]), axis=1)
    check(net.model(*parts, net.op("Concat", *parts[::-1], axis=-2)), **SHORT)


def test_split_uneven_at_opset_18(check: Check) -> None:
    net, x = stack(5, opset=18)
    check(net.model(*net.op("Split", x, outputs=3, axis=1, num_outputs=3)), **SHORT)


def test_glu(check: Check) -> None:
    net, x = stack(4)
    a, b = net.op("Split", net.conv(x, 4, 4, 5, pads=[2, 2]), outputs=2, axis=1)
    check(net.model(net.op("Mul", a, net.op("Sigmoid", b))))


@pytest.mark.parametrize("axis", [1, -1])
def test_concat_of_different_delays(check: Check, axis: int) -> None:
    net = Net()
    x = net.input([1, 3, TIME])
    late = net.conv(x, 3, 2, 7, pads=[3, 3])
    if axis == -1:
        x, late = (net.op("Transpose", t, perm=[0, 2, 1]) for t in (x, late))
    check(net.model(net.op("Concat", x, late, axis=axis)))


@pytest.mark.parametrize("indices", [0, -1, [2, 0], [[0, 1], [2, 2]]])
@pytest.mark.parametrize("axis", [1, -2])
def test_gather_channels(check: Check, indices: Any, axis: int) -> None:
    net, x = stack(3)
    check(net.model(net.op("Gather", x, net.const(indices), axis=axis)), **SHORT)


def test_gather_behind_time(check: Check) -> None:
    net = Net()
    x = net.input([TIME, 4])
    check(net.model(net.op("Gather", x, net.const([[1, 0]]), axis=1)), **SHORT)


def test_slice_of_channels_with_steps(check: Check) -> None:
    net, x = stack(7)
    y = net.op("Slice", x, net.const([-1]), net.const([-8]), net.const([1]), net.const([-2]))
    check(net.model(y), **SHORT)


@pytest.mark.parametrize("target", [[1, 4, 1], [2, 1, 1, 1], [1, 3, 1]])
def test_expand(check: Check, target: list[int]) -> None:
    net, x = stack(1 if target[1] == 4 else 3)
    check(net.model(net.op("Expand", x, net.const(target))), **SHORT)


def test_expand_to_the_shape_of_a_stream(check: Check) -> None:
    net, x = stack(3)
    mean = net.op("ReduceMean", x, axes=[1])
    check(net.model(net.op("Expand", mean, net.op("Shape", x))), **SHORT)


@pytest.mark.parametrize("order", [[1, TIME, 4], [1, 3, TIME, 4]])
def test_matmul_on_channels(check: Check, order: list[int | str]) -> None:
    net = Net()
    x = net.input(order)
    check(net.model(net.op("MatMul", x, net.weight(4, 5))), **SHORT)


def test_matmul_from_the_left_and_with_a_vector(check: Check) -> None:
    net, x = stack(3)
    rows = net.op("MatMul", net.weight(5, 3), x)
    vector = net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 1]), net.weight(3))
    check(net.model(rows, vector), **SHORT)


def test_matmul_in_batches_of_time(check: Check) -> None:
    """Frames as a batch: attention inside each frame is pointwise in time."""
    net = Net()
    x = net.input([TIME, 5, 4])
    q, k, v = (net.op("MatMul", x, net.weight(4, 4)) for _ in range(3))
    scores = net.op("Softmax", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), axis=-1)
    check(net.model(net.op("MatMul", scores, v)), **SHORT)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(check: Check, transposed: int) -> None:
    net = Net()
    x = net.input([TIME, 4] if not transposed else [4, TIME])
    y = net.op("Gemm", x, net.weight(5, 4), net.weight(5), transA=transposed, transB=1, alpha=0.5, beta=2.0)
    check(net.model(y), **SHORT)


def test_refusals() -> None:
    def split(net: Net, x: str) -> Any:
        return net.op("Split", x, net.const([32, 32]), outputs=2, axis=2)[0]

    def squeeze(net: Net, x: str) -> Any:
        return net.op("Reshape", x, net.const([1, -1]))

    def product(net: Net, x: str) -> Any:
        return net.op("MatMul", net.op("Transpose", x, perm=[0, 2, 1]), x)

    def over_time(net: Net, x: str) -> Any:
        return net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]))

    for build, reason in (
        (split, "splits time"), (squeeze, "folds time"),
        (product, "every frame with every frame"), (over_time, "sums over time"),
    ):  # fmt: skip
        net, x = stack(3)
        with pytest.raises(Refused, match=reason):
            oracle.check(net.model(build(net, x)))
