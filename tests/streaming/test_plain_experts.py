"""Mixtures of experts in plain ops: recognised, computed by chosen experts, or left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from nets import TIME, Net
from oracle import Check
from plain_mixtures import (
    EXPERTS,
    SIZE,
    Weights,
    branched,
    gathered,
    looped,
    masked,
    one_by_one,
    scattered,
)

from runnel.compiler.graph.fold import fold
from runnel.compiler.graph.model import load
from runnel.compiler.graph.plain_experts import plain_mixtures
from runnel.errors import Refused

Form = Callable[[Net, str, Weights], str]
FORMS = [gathered, masked, one_by_one, scattered, branched, looped]


def model(form: Form, seed: int = 0, layers: int = 1) -> bytes:
    net = Net(seed, opset=18)
    x = net.input([1, TIME, SIZE])
    for _ in range(layers):
        x = net.op("Add", x, form(net, x, Weights.of(net)))
    return net.model(net.op("Tanh", x))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_forms(check: Check, form: Form) -> None:
    check(model(form))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
def test_all_layers_become_the_one_form(form: Form) -> None:
    graph = load(model(form, layers=2))
    fold(graph)
    assert plain_mixtures(graph)
    left = [n.op for n in graph.nodes if n.op not in ("Reshape", "Identity")]
    assert left == ["MatMul", "MoE", "Add", "MatMul", "MoE", "Add", "Tanh"]


def test_what_is_not_a_mixture_is_left_alone() -> None:
    """Experts whose results are not weighed by their shares."""
    net = Net(1, opset=18)
    x = net.input([1, TIME, SIZE])
    w = Weights.of(net)
    scores = net.op("Softmax", net.op("MatMul", x, net.weight(SIZE, EXPERTS)), axis=-1)
    _, numbers = net.op("TopK", scores, net.const(np.array([2])), outputs=2, axis=-1)
    column = net.op("Unsqueeze", net.op("Unsqueeze", x, net.const(np.array([2]))), net.const(np.array([2])))
    up, down = (net.op("Gather", net.const(v), numbers, axis=0) for v in (w.up, w.down))
    made = net.op("MatMul", net.op("Relu", net.op("MatMul", column, up)), down)
    y = net.op("ReduceSum", made, net.const(np.array([2, 3])), keepdims=0)
    graph = load(net.model(y))
    fold(graph)
    before = [n.op for n in graph.nodes]
    assert not plain_mixtures(graph)
    assert [n.op for n in graph.nodes] == before
    from runnel.compiler.streaming.analysis import analyse

    with pytest.raises(Refused, match="TopK"):
        analyse(load(net.model(y)))
