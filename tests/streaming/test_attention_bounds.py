"""Attention that has no bound of its own: refused, stated by the user, or in a named mode; and positions in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
from masks import UNSTREAMED, Heads, attention, masked, positions, split, within
from nets import Net
from oracle import Check
from test_attention import HEADS, model

import runnel
from runnel.compiler.graph.model import load
from runnel.compiler.streaming.analysis import analyse
from runnel.errors import Refused, StreamError


def test_causal_without_a_bound_is_refused_with_both_remedies() -> None:
    with pytest.raises(Refused, match="max-frames") as refusal:
        oracle.check(model("causal_trilu"))
    assert "--mode attention=left:64" in str(refusal.value)


@pytest.mark.parametrize("kind", UNSTREAMED)
def test_mask_without_a_stream_is_refused(kind: str) -> None:
    with pytest.raises(Refused, match=UNSTREAMED[kind][1]):
        oracle.check(model(kind), max_frames=100)


@pytest.mark.parametrize(
    ("kind", "mode", "same"),
    [
        ("full", "left:5,right:3", "sliding"),
        ("causal_less", "left:13", "window_where"),
        ("causal_less", "left:13,right:2", "window_where"),
        ("anti_causal", "right:4", "only_ahead"),
        ("sliding", "left:2,right:0", "sliding"),
    ],
)
def test_named_window(check: Check, kind: str, mode: str, same: str) -> None:
    """Sides that the model leaves open are bounded; what the model bounds itself stays."""
    check(model(kind), modes={"attention": mode}, expected=model(same), at_least=12)


def test_mode_is_recorded_only_where_it_is_used() -> None:
    for kind, used in (("full", {"attention": "left:5,right:3"}), ("sliding", {})):
        assert analyse(load(model(kind)), modes={"attention": "left:5,right:3"}).modes == used


def test_the_past_needs_a_bound_too() -> None:
    with pytest.raises(Refused, match="all of the past"):
        analyse(load(model("full")), modes={"attention": "right:4"})


def test_reach_is_what_the_mask_says() -> None:
    report = runnel.inspect(model("sliding"))
    assert (report.receptive_field, report.latency_frames) == (9, 3)
    assert runnel.inspect(model("chunked_left")).latency_frames == 2


def test_causal_up_to_the_stated_frames_and_no_further(tmp_path: Path) -> None:
    net_bytes = model("causal_alibi")
    runnel.compile(net_bytes, tmp_path / "m.rnl", max_frames=50)
    x = np.random.default_rng(0).standard_normal((1, 50, HEADS.width)).astype(np.float32)
    whole = oracle.Offline(net_bytes)({"x": x})
    assert whole is not None
    (wanted,) = whole.values()
    for backend in ("native", "onnxruntime"):
        program = runnel.load(tmp_path / "m.rnl", backend=backend)
        assert program.max_frames == 50
        stream = program.stream()
        parts = [stream.push(x[:, i : i + 1]) for i in range(50)]
        with pytest.raises(StreamError, match="50"):
            stream.push(x[:, :1])
        parts.append(stream.flush())
        np.testing.assert_allclose(np.concatenate(parts, 1), wanted, rtol=0, atol=2e-5)


def test_a_mask_table_ends_the_stream() -> None:
    graph = analyse(load(model("causal_table")))
    assert graph.max_frames == 80 and "80 frames" in graph.max_frames_reason


def test_a_number_far_beyond_is_looked_at_or_refused() -> None:
    """A mask that changes at frame 5000, or at frame 90000, fits no window."""
    for far in (5000, 90000):
        net, x = HEADS.net()
        q, k, v = (net.op("MatMul", x, net.weight(8, 8)) for _ in range(3))
        late = net.op("Less", net.const(far), positions(net, x))
        seen = net.op("Or", within(net, x, 6, 0), net.op("And", late, within(net, x, 9, 0)))
        scores = masked(net, net.op("MatMul", q, net.op("Transpose", k, perm=[0, 2, 1])), "where", seen)
        with pytest.raises(Refused, match="neither causal|more scores than can be looked at"):
            analyse(load(net.model(net.op("MatMul", net.op("Softmax", scores, axis=-1), v))))


def rotary(net: Net, x: str, size: int, tables: tuple[str, str]) -> str:
    """[1, heads, T, size] turned by its position: x·cos + (-x2, x1)·sin."""
    half = size // 2
    first = net.op("Slice", x, net.const([0]), net.const([half]), net.const([3]))
    second = net.op("Slice", x, net.const([half]), net.const([size]), net.const([3]))
    turned = net.op("Concat", net.op("Neg", second), first, axis=3)
    return net.op("Add", net.op("Mul", x, tables[0]), net.op("Mul", turned, tables[1]))


def tables(net: Net, x: str, size: int, how: str) -> tuple[str, str]:
    """cos and sin, [T, size], from constant tables or from a Range."""
    rates = 10000.0 ** -(np.arange(size // 2) / (size // 2))
    if how == "tables":
        angles = np.arange(300)[:, None] * np.concatenate([rates, rates])
        bounds = net.const([0]), net.length(x, 1), net.const([0])
        return tuple(net.op("Slice", net.const(f(angles).astype(np.float32)), *bounds) for f in (np.cos, np.sin))  # type: ignore[return-value]
    length = net.op("Squeeze", net.length(x, 1), net.const([0]))
    i = net.op("Cast", net.op("Range", net.const(0), length, net.const(1)), to=1)
    angles = net.op("Mul", net.op("Unsqueeze", i, net.const([1])), net.const(np.concatenate([rates, rates])[None]))
    return net.op("Cos", angles), net.op("Sin", angles)


@pytest.mark.parametrize("kind", ["window", "sliding", "causal_less"])
@pytest.mark.parametrize("how", ["tables", "range"])
def test_rotary_positions(check: Check, how: str, kind: str) -> None:
    net, x = HEADS.net()
    q, k, v = (split(net, net.op("MatMul", x, net.weight(8, 8)), 2, 4) for _ in range(3))
    angles = tables(net, x, 4, how)
    q, k = rotary(net, q, 4, angles), rotary(net, k, 4, angles)
    from masks import MASKS, masked

    scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
    weights = net.op("Softmax", masked(net, scores, *MASKS[kind](net, x)), axis=-1)
    check(net.model(net.op("MatMul", weights, v)), at_least=12, max_frames=200)


def test_a_decoder_of_two_layers(check: Check) -> None:
    """Masks shared by layers, keys shared by heads."""
    heads = Heads(4, 2, 4)
    net, x = heads.net()
    for _ in range(2):
        h = net.op("LayerNormalization", x, net.weight(16), net.weight(16), axis=-1)
        x = net.op("Add", x, attention(net, h, heads, "causal_trilu"))
    check(net.model(x), at_least=12, max_frames=64)
