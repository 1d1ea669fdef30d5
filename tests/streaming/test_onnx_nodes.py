"""The ONNX standard's own node tests, streamed along every axis that can be time: exact, or refused with a reason.

The standard's inputs other than the streamed ones become constants; lengths other than the standard's are tried too.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import onnx
import oracle
import pytest
from onnx import numpy_helper
from runners import reference

from runnel.compiler.streaming.registry import RULES
from runnel.errors import InputError, Refused

TIME = "T"
Plans = Callable[[int], "list[dict[str, Any]]"]
KINDS = "fiub"
FURTHER = (1, 2, 5, 9)
MOST_CASES = 20
UNLIKE: dict[str, str] = {
    "Dropout": "in training mode it is random",
    "Bernoulli": "it is random",
}


@cache
def cases() -> dict[str, list[Any]]:
    """The standard's tests of one node each, by op."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    by_op: dict[str, list[Any]] = {}
    for case in found:
        nodes = case.model.graph.node if case.model is not None else []
        if len(nodes) == 1 and nodes[0].domain in ("", "ai.onnx") and case.data_sets:
            by_op.setdefault(nodes[0].op_type, []).append(case)
    return {op: every[:: -(-len(every) // MOST_CASES)] for op, every in by_op.items()}


def streamed(case: Any, axes: dict[str, int], values: dict[str, np.ndarray]) -> bytes:
    """The case's model with time in ``axes`` and every other input a constant."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph = model.graph
    inputs = list(graph.input)
    del graph.input[:]
    for port in inputs:
        if port.name in axes:
            port.type.tensor_type.shape.dim[axes[port.name]].ClearField("dim_value")
            port.type.tensor_type.shape.dim[axes[port.name]].dim_param = TIME
            graph.input.append(port)
        elif port.name in values:
            graph.initializer.append(numpy_helper.from_array(values[port.name], port.name))
    for port in graph.output:
        for i, dim in enumerate(port.type.tensor_type.shape.dim):
            dim.Clear()
            dim.dim_param = f"{port.name}.{i}"
    return bytes(model.SerializeToString())


def variants(case: Any) -> Iterator[tuple[bytes, dict[str, int], dict[str, np.ndarray]]]:
    """Every input along every axis alone, and all inputs of the first one's rank along the same axis from the end."""
    given = case.data_sets[0][0]
    if not all(isinstance(v, np.ndarray) and v.size for v in (*given, *case.data_sets[0][1])):
        return
    names = [i.name for i in case.model.graph.input]
    values = dict(zip(names, given, strict=False))
    seen = set()
    for name, value in values.items():
        if value.dtype.kind not in KINDS:
            continue
        for axis in range(value.ndim):
            alike = {
                n: axis - value.ndim + v.ndim
                for n, v in values.items()
                if v.ndim == value.ndim and v.shape[axis] == value.shape[axis] and v.dtype.kind in KINDS
            }
            for axes in ({name: axis}, alike):
                key = tuple(sorted(axes.items()))
                if key not in seen and value.shape[axis] > 0:
                    seen.add(key)
                    yield streamed(case, axes, values), axes, {n: values[n] for n in axes}


def verdict(model: bytes, axes: dict[str, int], values: dict[str, np.ndarray], plans: Plans) -> str:
    """exact; refused; unusable: onnxruntime does not run it. AssertionError where a stream is wrong.

    plans: how the oracle is asked, for the standard's own length.
    """
    name, axis = next(iter(axes.items()))
    size = values[name].shape[axis]
    try:
        if oracle.Offline(model)(values) is None:
            return "unusable"
    except Exception:  # onnxruntime's exceptions share no base class of their own
        return "unusable"

    def feeds(length: int) -> dict[str, np.ndarray]:
        """The standard's own values, repeated."""
        return {n: np.ascontiguousarray(np.take(v, np.arange(length) % size, axes[n])) for n, v in values.items()}

    try:
        proofs = [oracle.check(model, runner=reference, time_axis=axes, feeds=feeds, **p) for p in plans(size)]
    except Refused:
        return "refused"
    except InputError:
        return "unusable"
    return "exact" if all(p.runs for p in proofs) else "unusable"


def sequence_plans(size: int) -> list[dict[str, Any]]:
    """The standard's own length and a few more."""
    return [{"lengths": list(dict.fromkeys((size, *FURTHER))), "steps": (None, 4), "at_least": 1}]


def window_plans(size: int) -> list[dict[str, Any]]:
    """The standard's own length as the window, moved by one frame and by two."""
    return [{"lengths": [size, size + 1, size + 5], "window": size, "hop": hop} for hop in (1, 2)]


def stream_all(found: list[Any], plans: Plans) -> None:
    """Every variant of the cases is exact or refused; skips where onnxruntime runs none."""
    seen: Counter[str] = Counter()
    for case in found:
        for model, axes, values in variants(case):
            try:
                seen[verdict(model, axes, values, plans)] += 1
            except AssertionError as error:
                raise AssertionError(f"{case.name}, time in {axes}: {error}") from None
    if not seen["exact"] + seen["refused"]:
        pytest.skip("onnxruntime runs none of the standard's tests of this op")


@pytest.mark.parametrize("op", sorted(RULES))
def test_windows_over_the_standards_own_tests(op: str) -> None:
    if op in UNLIKE or op not in cases():
        pytest.skip(UNLIKE.get(op, "the standard has no test of this op alone"))
    stream_all(cases()[op][:6], window_plans)


@pytest.mark.parametrize("op", sorted(RULES))
def test_the_standards_own_tests(op: str) -> None:
    if op in UNLIKE or op not in cases():
        pytest.skip(UNLIKE.get(op, "the standard has no test of this op alone"))
    stream_all(cases()[op], sequence_plans)
