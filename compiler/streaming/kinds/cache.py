"""Attention of a decoder to its own past, whose keys and values are kept by a cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runnel.compiler.streaming.ir import Reach, StreamNode
from runnel.kv import parse


def keeps_all(kv: str | None) -> bool:
    """Whether caches keep every token, as it is: what the portable form does."""
    if kv is None:
        return True
    spec = parse(kv)
    return spec.policy == "full" and spec.keys in (0, 32) and spec.values in (0, 32)


def kept_at_least(kv: str) -> int:
    """How many tokens a stream may have before a policy drops or merges one."""
    spec = parse(kv)
    if spec.policy in ("full", "external"):
        return spec.slots or 1 << 44
    return min(spec.most(False), spec.slots) if spec.heads else spec.most(False)


def rounds(kv: str | None) -> bool:
    """Whether caches store less than they are given."""
    spec = parse(kv or "full")
    return any(bits not in (0, 32) for bits in (spec.keys, spec.values))


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary positions: features [start, start + 2·len(frequencies)) of a head are turned in pairs.

    Pair p of a frame at position n turns by n·frequencies[p] (float64): (a, b) → factor·(a·cos - b·sin, b·cos + a·sin).
    interleaved: pairs are (2p, 2p + 1), else (p, p + len(frequencies)). sections: which of the frame's own positions
    (the operand ``positions``) pair p takes; None where a frame has one position, its number.
    source: where the frequencies come from, in words.
    """

    frequencies: np.ndarray
    interleaved: bool = False
    start: int = 0
    factor: float = 1.0
    sections: tuple[int, ...] | None = None
    source: str = ""

    @property
    def dims(self) -> int:
        """How many features are turned."""
        return 2 * len(self.frequencies)


@dataclass(eq=False)
class CachedAttend(StreamNode):
    """y[h, i] = softmax(scale·q[h, i]·k[g, j]ᵀ + bias)·v[g, j] over the kept keys j ≤ i, g = h // (Hq / Hk).

    inputs: q (1, Hq, T, D), k (1, Hk, T, D), v (1, Hk, T, Dv) or None (shared), retain (1, Hk, T) float32 or None: what
    a
    policy ranks frames by, positions (1, axes, T) int64 or None: a frame's own positions (M-RoPE, or a model that is
    told them). q and k come before rotation; ``rotary`` turns both. Output (1, Hq, T, Dv) float32.

    layer: its number among the model's caches. window: frame i sees the keys j > i - window (0: all of the past).
    softcap: c in c·tanh(scores/c), after the scale, before the bias; 0 for none. slopes: (Hq) float64, -slopes·(i - j)
    is added to the scores (ALiBi). bias: (Hq, distances) float32 added by distance i - j, distances beyond the last
    take the last. sinks: (Hq) float32, logits of a key without value that every query sees (zeros: softmax plus one).
    shared: v is the first ``value_dim`` features of k (before rotation, which must not touch them), and not kept twice.
    """

    layer: int = 0
    scale: float = 1.0
    softcap: float = 0.0
    window: int = 0
    rotary: Rotary | None = None
    slopes: np.ndarray | None = None
    bias: np.ndarray | None = None
    sinks: np.ndarray | None = None
    shared: bool = False

    @property
    def heads(self) -> int:
        """Heads of queries."""
        return self.streams[0].frame_shape[1]

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.streams[1].frame_shape[1]

    @property
    def key_dim(self) -> int:
        """Features of a key."""
        return self.streams[1].frame_shape[-1]

    @property
    def value_dim(self) -> int:
        """Features of a value."""
        return self.output.frame_shape[-1]

    def reach(self, x: Reach) -> Reach:
        return x.moved(-(self.window - 1) if self.window else 0, 0, endless=not self.window)

    @property
    def macs(self) -> int:
        """Of one kept key; a cache says how many it keeps."""
        return self.heads * (self.key_dim + self.value_dim)
