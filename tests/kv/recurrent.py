"""Decoders with states instead of a past: RWKV and Mamba a token at a time, and linear attention over a sequence."""

from __future__ import annotations

import numpy as np
from decoders import VOCABULARY, Decoder, Feeds, Maker, Sizes
from nets import Turn

WIDTH, INNER, STATE, TAPS = 16, 24, 4, 3


def _tokens(start: int, now: np.ndarray) -> Feeds:
    return {"input_ids": now}


def _step() -> tuple[Maker, str, str]:
    """A net that takes one token, and its vector (1, width)."""
    net = Maker(Sizes(width=WIDTH))
    tokens = net.input([1, 1], "input_ids", "int64")
    x = net.op("Reshape", net.op("Gather", net.weight(VOCABULARY, WIDTH, scale=1.0), tokens), net.const([1, WIDTH]))
    return net, tokens, x


def _finished(net: Maker, x: str, past: dict[str, tuple[str, np.ndarray]]) -> Decoder:
    logits = net.op("Unsqueeze", net.linear(net.rms(x, WIDTH), WIDTH, VOCABULARY), net.const([0]))
    net.named(str(logits), "logits")
    return Decoder(net.made(), _tokens, past)


def rwkv(layers: int = 2) -> Decoder:
    """RWKV-4: time mixing with a numerator, a denominator and a maximum kept a channel; channel mixing."""
    net, _, x = _step()
    past: dict[str, tuple[str, np.ndarray]] = {}

    def state(name: str, first: float = 0.0) -> str:
        past[net.input([1, WIDTH], name)] = (f"{name}_out", np.full((1, WIDTH), first, np.float32))
        net.ranks[f"{name}_out"] = 2
        return name

    def mixed(x: str, before: str) -> str:
        share = net.const(net.rng.random(WIDTH))
        return str(net.op("Add", net.op("Mul", x, share), net.op("Mul", before, net.op("Sub", net.const(1.0), share))))

    for layer in range(layers):
        h = net.rms(x, WIDTH)
        last, top, under, most = (state(f"state_{n}_{layer}") for n in ("x", "a", "b", "p"))
        k, v, r = (net.linear(mixed(h, last), WIDTH, WIDTH) for _ in range(3))
        bonus, decay = net.weight(WIDTH), net.const(-np.exp(net.rng.standard_normal(WIDTH)))
        now = net.op("Add", bonus, k)
        peak = net.op("Max", most, now)
        old, new = (net.op("Exp", net.op("Sub", y, peak)) for y in (most, now))
        upper = net.op("Add", net.op("Mul", old, top), net.op("Mul", new, v))
        lower = net.op("Add", net.op("Mul", old, under), new)
        gate = net.op("Mul", net.op("Sigmoid", r), net.op("Div", upper, lower))
        later = net.op("Add", most, decay)
        peak = net.op("Max", later, k)
        old, new = (net.op("Exp", net.op("Sub", y, peak)) for y in (later, k))
        net.named(h, f"{last}_out")
        net.named(net.op("Add", net.op("Mul", old, top), net.op("Mul", new, v)), f"{top}_out")
        net.named(net.op("Add", net.op("Mul", old, under), new), f"{under}_out")
        net.named(peak, f"{most}_out")
        x = net.op("Add", x, net.linear(gate, WIDTH, WIDTH))
        h = net.rms(x, WIDTH)
        last = state(f"state_y_{layer}")
        net.named(h, f"{last}_out")
        k = net.op("Relu", net.linear(mixed(h, last), WIDTH, 2 * WIDTH))
        k = net.linear(net.op("Mul", k, k), 2 * WIDTH, WIDTH)
        x = net.op("Add", x, net.op("Mul", net.op("Sigmoid", net.linear(mixed(h, last), WIDTH, WIDTH)), k))
    return _finished(net, x, past)


def mamba(layers: int = 2) -> Decoder:
    """Mamba: a short convolution and a selective state space, whose states are inputs and outputs of a step."""
    net, _, x = _step()
    past: dict[str, tuple[str, np.ndarray]] = {}

    def state(name: str, *shape: int) -> str:
        past[net.input([1, *shape], f"past_{name}")] = (f"present_{name}", np.zeros((1, *shape), np.float32))
        net.ranks[f"present_{name}"] = 1 + len(shape)
        return f"past_{name}"

    for layer in range(layers):
        h = net.rms(x, WIDTH)
        inner, gate = net.linear(h, WIDTH, INNER), net.linear(h, WIDTH, INNER)
        window = net.op(
            "Concat", state(f"conv_state_{layer}", INNER, TAPS), net.op("Unsqueeze", inner, net.const([2])), axis=2
        )
        window = net.cut(window, 1, TAPS + 1, 2)
        net.named(window, f"present_conv_state_{layer}")
        y = net.op("ReduceSum", net.op("Mul", window, net.weight(INNER, TAPS)), net.const([2]), keepdims=0)
        y = net.op("Mul", y, net.op("Sigmoid", y))
        step = net.op("Softplus", net.linear(y, INNER, INNER))
        b, c = (net.op("Unsqueeze", net.linear(y, INNER, STATE), net.const([1])) for _ in range(2))
        step = net.op("Unsqueeze", step, net.const([2]))
        decay = net.op("Exp", net.op("Mul", step, net.const(-np.arange(1.0, STATE + 1))))
        kept = net.op("Mul", state(f"ssm_state_{layer}", INNER, STATE), decay)
        fresh = net.op("Mul", net.op("Mul", step, b), net.op("Unsqueeze", y, net.const([2])))
        held = net.op("Add", kept, fresh)
        net.named(held, f"present_ssm_state_{layer}")
        y = net.op("ReduceSum", net.op("Mul", held, c), net.const([2]), keepdims=0)
        x = net.op("Add", x, net.linear(net.op("Mul", y, net.op("Sigmoid", gate)), INNER, WIDTH))
    return _finished(net, x, past)


def _sequence() -> tuple[Maker, str]:
    net = Maker(Sizes(width=WIDTH))
    tokens = net.input(["batch_size", "sequence_length"], "input_ids", "int64")
    return net, net.op("Gather", net.weight(VOCABULARY, WIDTH, scale=1.0), tokens)


def linear_attention(begun: bool, layers: int = 2) -> Decoder:
    """Retention: one outer product of key and value a token, kept with a decay, over a sequence by Scan. begun: the
    first state is an input and the last an output."""
    net, x = _sequence()
    past: dict[str, tuple[str, np.ndarray]] = {}
    size = 6
    for layer in range(layers):
        q, k, v = (net.op("Transpose", net.linear(net.rms(x, WIDTH), WIDTH, size), perm=[1, 0, 2]) for _ in range(3))
        turn = Turn()
        kept, key, value, query = turn.input("kept", 1, size, size), *(turn.input(n, 1, size) for n in ("k", "v", "q"))
        outer = turn.op(
            "MatMul", turn.op("Unsqueeze", key, net.const([2])), turn.op("Unsqueeze", value, net.const([1]))
        )
        held = turn.op("Add", turn.op("Mul", kept, net.const(0.9)), outer)
        read = turn.op("Squeeze", turn.op("MatMul", turn.op("Unsqueeze", query, net.const([1])), held), net.const([1]))
        first = net.const(np.zeros((1, size, size)))
        if begun:
            first = net.input(["batch_size", size, size], f"past_state.{layer}")
            past[first] = (f"present_state.{layer}", np.zeros((1, size, size), np.float32))
            net.ranks[f"present_state.{layer}"] = 3
        last, y = net.op("Scan", first, k, v, q, body=turn.graph(held, read), num_scan_inputs=3, outputs=2)
        if begun:
            net.named(last, f"present_state.{layer}")
        x = net.op("Add", x, net.linear(net.op("Transpose", y, perm=[1, 0, 2]), size, WIDTH))
    net.named(net.linear(net.rms(x, WIDTH), WIDTH, VOCABULARY), "logits")
    return Decoder(net.made(), _tokens, past)


RECURRENT = {
    "rwkv": rwkv,
    "mamba": mamba,
    "linear_attention": lambda: linear_attention(False),
    "linear_attention_begun": lambda: linear_attention(True),
}
