"""Choices among units in plans: what a kernel is given, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from plans import OUT, RUN, UNITS, WEIGHTS, Plan, needs_core
from plans import SKIP as NO_CORE

from runnel.errors import BundleError, InternalError

RNG = np.random.default_rng(8)


def choosing(place: int = 0, most: int = 1, units: int = 3, unit: int = 64, choices: int = 1, target: bool = True,
             bytes_: int = 16, repeat: bool = True, listed: bool = False, second: int = 0,
             more: Sequence[int] = ()) -> tuple[Plan, np.ndarray]:  # fmt: skip
    """y = x by the second of three matrices; every frame chooses that one, or what x itself lists. second: bytes of the
    units of another table, which is chosen from as well."""
    plan = Plan(2)
    matrices = RNG.standard_normal((3, 2, 2)).astype(np.float32)
    table = plan.constant(np.pad(matrices.reshape(3, 4), [(0, 0), (0, 12)]))
    sums = plan.constant(np.zeros(3), np.uint32)
    x, y = (plan.buffer(2, 4) for _ in range(2))
    lists, slots, other = (plan.buffer(2, 4) for _ in range(3))
    plan.input(x)
    one = float(np.array(1, np.int32).view(np.float32))
    plan.copy(0, 0, x, lists, -(1 << 40), 0, 0, one)  # frames of (1, 1): one unit, the second
    if repeat:
        plan.repeat(0, 0, choices + 1 + bool(second))
    for i in range(choices):
        chosen = [slots, other][i] if target else -1
        plan.choose(0, 0, x if listed else lists, chosen, table, units, unit, sums, most, more)
    if second:
        more_units = plan.constant(np.zeros((2, second // 4)))
        plan.choose(0, 0, lists, other, more_units, 2, second, sums, most)
    params = plan.constant([2, 2, 1, 1, 2, 2], np.int32)
    operands = [[RUN, x, 1, 0, 1, 1], [UNITS, slots, 0, 0, place, bytes_], [WEIGHTS, params], [OUT, y, 1]]
    plan.call("conv_run", 0, 0, operands)
    plan.output(y, 0, 0)
    return plan, matrices[1]


@pytest.mark.skipif(needs_core, reason=NO_CORE)
def test_a_kernel_is_given_the_chosen_unit() -> None:
    plan, matrix = choosing()
    x = RNG.standard_normal((1, 7, 2)).astype(np.float32)
    stream = plan.program().stream()
    made = np.concatenate([stream.push(x[:, :3]), stream.push(x[:, 3:]), stream.flush()], 1)
    np.testing.assert_allclose(made, x @ matrix, rtol=1e-5)


@pytest.mark.skipif(needs_core, reason=NO_CORE)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"place": 1}, "outside a unit"),
        ({"bytes_": 65}, "outside a unit"),
        ({"most": 2}, "more than its buffers hold"),
        ({"units": 1 << 21}, "impossible table"),
        ({"unit": 65}, "impossible table"),
        ({"unit": 1 << 20}, "outside the weights"),
        ({"choices": 2}, "chose last"),
        ({"target": False}, "chose last"),
        ({"repeat": False}, "outside a REPEAT"),
    ],
)
def test_broken_choices_are_refused(change: dict[str, int], said: str) -> None:
    with pytest.raises(BundleError, match=said):
        choosing(**change)[0].program()  # type: ignore[arg-type]


@pytest.mark.skipif(needs_core, reason=NO_CORE)
def test_lists_are_checked() -> None:
    """Lists come from the input itself: how many, and units of the table."""
    program = choosing(listed=True)[0].program()
    for frame, fits in (([1, 2], True), ([0, 7], False), ([1, 3], False), ([2, 1], False)):
        stream = program.stream()
        given = np.array([[[1, 1], frame]], np.int32).view(np.float32)
        if fits:
            assert stream.push(given).shape == (1, 2, 2)
        else:
            with pytest.raises(InternalError, match="breaks its own rules"):
                stream.push(given)


@pytest.mark.skipif(needs_core, reason=NO_CORE)
def test_tables_of_two_sizes_are_chosen_from_side_by_side() -> None:
    """A call may read units of the first after a choice among the second; other ways to keep units are refused."""
    x = RNG.standard_normal((1, 7, 2)).astype(np.float32)
    plan, matrix = choosing(second=128)
    np.testing.assert_allclose(plan.program().stream().push(x), x @ matrix, rtol=1e-5)
    with pytest.raises(BundleError, match="chose last"):
        choosing(second=64)[0].program()
    assert choosing(more=[0] * 9 + [1])[0].program()
    with pytest.raises(BundleError, match="unknown way"):
        choosing(more=[0] * 9 + [2])[0].program()
