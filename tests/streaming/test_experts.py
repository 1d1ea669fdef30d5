"""Mixtures of experts: MoE and QMoE, every activation, gates, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixtures import INNER, MICROSOFT, SIZE, coded_layer, layer, mixture, scores
from nets import TIME, Net
from oracle import Check
from quantised_nets import QuantisedNet

import runnel
from runnel.compiler.codegen import KernelModule, Target
from runnel.compiler.graph.model import load
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import InputError, Refused

GPT = {"activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.702, "activation_beta": 1.0}


def moe(layers: int = 1, seed: int = 0, **attrs: Any) -> bytes:
    net = Net(seed)
    x = net.input([1, TIME, SIZE])
    for _ in range(layers):
        x = layer(net, x, **attrs)
    return net.model(x)


@pytest.mark.parametrize(
    "attrs",
    [
        {"k": 1},
        {"k": 2, "activation_type": "gelu", "normalize_routing_weights": 1},
        {"k": 3, "activation_type": "silu", "biases": False},
        {"k": 5, "activation_type": "identity"},
        {"k": 2, **GPT, "swiglu_limit": 0.5, "normalize_routing_weights": 1},
    ],
    ids=["relu", "gelu", "silu", "all", "swiglu"],
)
def test_activations_and_shares(check: Check, attrs: dict[str, Any]) -> None:
    check(moe(**attrs))


def test_layers_after_each_other(check: Check) -> None:
    check(moe(2, k=2, activation_type="silu"))


def test_experts_among_frames_that_wait(check: Check) -> None:
    """Frames come in bursts and late, and only those that exist choose."""
    net = Net(2)
    x = net.input([1, SIZE, TIME])
    slow = net.op("Conv", x, net.weight(SIZE, SIZE, 3), strides=[2], pads=[1, 1], kernel_shape=[3])
    y = layer(net, net.op("Transpose", slow, perm=[0, 2, 1]), k=2)
    check(net.model(y))


@pytest.mark.parametrize(
    ("bits", "block", "zeros", "attrs"),
    [
        (4, 0, False, {"activation_type": "relu"}),
        (4, 16, True, {**GPT, "swiglu_limit": 1.0}),
        (8, 0, True, {"activation_type": "gelu"}),
        (2, 0, False, {"activation_type": "silu"}),
    ],
)
def test_codes(check: Check, bits: int, block: int, zeros: bool, attrs: dict[str, Any]) -> None:
    net = QuantisedNet(bits + block)
    check(bytes(net.model(coded_layer(net, net.input([1, TIME, SIZE]), bits, block, zeros, k=2, **attrs)[0])))


def test_codes_stay_codes() -> None:
    """A unit of 4 bits has few more than half a byte a weight."""
    net = QuantisedNet(1)
    made = coded_layer(net, net.input([1, TIME, SIZE]), 4, k=2)[0]
    planner = Planner(lower(analyse(load(bytes(net.model(made))))), 1, KernelModule(Target.host()))
    planner.build()
    weights = 4 * 2 * SIZE * INNER
    assert weights / 2 <= planner.weights.constant_bytes < 0.8 * weights


def shaped(net: Net, y: str) -> str:
    """y, of which inference finds no shape and which onnxruntime's CPU provider does not run."""
    return str(net.op("Reshape", y, net.const(np.array([1, -1, SIZE]))))


def by_definition(
    tmp_path: Path, model: bytes, weights: dict[str, np.ndarray], router: np.ndarray, kind: str, **how: Any
) -> float:
    """The relative error of the native program, whose model onnxruntime's CPU provider does not run."""
    path = tmp_path / "m.rnl"
    runnel.compile(model, path, backend="native", hop=3)
    x = np.random.default_rng(4).standard_normal((1, 11, SIZE)).astype(np.float32)
    stream = runnel.load(path).stream()
    made = np.concatenate([stream.push(x[:, :5]), stream.push(x[:, 5:]), stream.flush()], 1)[0]
    exact = x[0] + mixture(x[0], x[0].astype(np.float64) @ router, 2, weights, kind, **how)
    return float(np.abs(made - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize("kind", ["silu", "swiglu"])
def test_gates_of_their_own(tmp_path: Path, kind: str) -> None:
    net = Net(5)
    x = net.input([1, TIME, SIZE])
    rng = np.random.default_rng(6)
    shapes = {"w1": (4, INNER, SIZE), "b1": (4, INNER), "w2": (4, SIZE, INNER), "w3": (4, INNER, SIZE)}
    weights = {n: (0.3 * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()}
    router = rng.standard_normal((SIZE, 4)).astype(np.float32)
    rows = net.op("Reshape", net.op("MatMul", x, net.const(router)), net.const(np.array([-1, 4])))
    names = [x, rows, *(net.const(weights[n]) for n in ("w1", "b1", "w2")), "", net.const(weights["w3"])]
    y = net.op("Add", x, net.op("MoE", *names, k=2, activation_type=kind, normalize_routing_weights=1, **MICROSOFT))
    assert by_definition(tmp_path, net.model(shaped(net, y)), weights, router, kind) < 1e-5


@pytest.mark.parametrize(
    ("gated", "attrs"),
    [(True, {"activation_type": "silu"}), (False, {"activation_type": "swiglu", "swiglu_fusion": 2})],
)
def test_codes_with_gates_that_are_not_interleaved(tmp_path: Path, gated: bool, attrs: dict[str, Any]) -> None:
    net = QuantisedNet(9)
    y, weights = coded_layer(net, net.input([1, TIME, SIZE]), 4, 16, gated=gated, k=2, **attrs)
    model = bytes(net.model(shaped(net, y)))
    graph = load(model)
    router = next(c for c in graph.constants.values() if c.shape == (SIZE, 4))
    kind = "swiglu" if not gated else "silu"
    error = by_definition(tmp_path, model, weights, router, kind, fusion=attrs.get("swiglu_fusion", 0))
    assert error < 1e-5


def test_a_sparse_mixer_is_refused() -> None:
    with pytest.raises(Refused, match="sparse mixer"):
        analyse(load(moe(k=2, use_sparse_mixer=1)))


def test_gates_that_onnxruntime_does_not_run_are_refused_in_words() -> None:
    net = Net(5)
    x = net.input([1, TIME, SIZE])
    parts = [net.weight(4, INNER, SIZE), "", net.weight(4, SIZE, INNER), "", net.weight(4, INNER, SIZE)]
    y = net.op("Add", x, net.op("MoE", x, scores(net, x, 4), *parts, k=2, activation_type="gelu", **MICROSOFT))
    with pytest.raises(InputError, match="FC3"):
        analyse(load(net.model(shaped(net, y))))


def test_codes_of_other_kinds_are_refused() -> None:
    net = QuantisedNet(3)
    made = coded_layer(net, net.input([1, TIME, SIZE]), 4, k=2, weights_prepacked=1)[0]
    with pytest.raises(Refused, match="other kind"):
        analyse(load(bytes(net.model(made))))
