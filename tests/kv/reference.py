"""A float64 model of attention over a cache, slot by slot, and a dense run that masks what it did not keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np

from runnel.compiler.streaming.kinds.cache import CachedAttend, Rotary
from runnel.kv import KvSpec

TWO_PI = Fraction(6283185307179586476925286766559005768394338798750211641949889, 10**60)


@dataclass
class Slot:
    """A kept key and value, not turned. at: the positions that it turns by. mass: what a policy ranks it by.
    frames: how many were merged into it. code: its key where it is stored as codes, turned and rounded."""

    position: int
    at: tuple[int, ...]
    key: np.ndarray
    value: np.ndarray
    mass: float = 0.0
    frames: int = 1
    code: np.ndarray | None = None
    kind: str = ""


@dataclass
class Head:
    """The slots of one KV head, in the order of slots; ``dropped``: positions that were given up."""

    slots: list[Slot] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)


@lru_cache(maxsize=1 << 16)
def angle(position: int, frequency: float) -> float:
    """The product of both less whole turns, exactly."""
    return float(Fraction(frequency) * position % TWO_PI)


def turned(x: np.ndarray, rotary: Rotary | None, positions: Sequence[int]) -> np.ndarray:
    """A row turned to a position; positions: one, or one an axis where the rotary has sections."""
    if rotary is None:
        return x
    pairs, y = len(rotary.frequencies), x.copy()
    for p, frequency in enumerate(rotary.frequencies):
        at = positions[rotary.sections[p] if rotary.sections else 0]
        cosine, sine = (f(angle(int(at), float(frequency))) * rotary.factor for f in (math.cos, math.sin))
        i, j = (2 * p, 2 * p + 1) if rotary.interleaved else (p, p + pairs)
        i, j = i + rotary.start, j + rotary.start
        y[i], y[j] = x[i] * cosine - x[j] * sine, x[j] * cosine + x[i] * sine
    return y


ROUNDED = (16, 8, 4)
"""Bits of elements that do not hold a float32."""


def rounded(row: np.ndarray, bits: int, rotated_first: bool = True, block: int = 0) -> np.ndarray:
    """A row as codes of so many bits hold it: rotated, the largest magnitude becomes the largest code. block: features
    that are rotated together, 0: as many as divide the row."""
    if bits == 16:
        return row.astype(np.float16).astype(row.dtype)
    if bits not in (8, 4):
        return row
    largest = 127 if bits == 8 else 7
    row = hadamard(row, block) if rotated_first else row
    top = float(np.abs(row).max())
    row = np.round(row * (largest / top)) * (top / largest) if top else row
    return hadamard(row, block) if rotated_first else row


def hadamard(row: np.ndarray, block: int = 0) -> np.ndarray:
    """Blocks of ``block``, or the largest power of two that divides the row's length, each times Hadamard's matrix."""
    size = block or len(row) & -len(row)
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (row.reshape(-1, size) @ matrix / math.sqrt(size)).reshape(-1)


class Reference:
    """What one attention gives, frame by frame. max_frames: what heads hold that keep everything, where ``spec`` does
    not say."""

    def __init__(
        self, node: CachedAttend, spec: KvSpec, start: int = 0,
        max_frames: int = 0,
    ) -> None:  # fmt: skip
        self.node, self.spec, self.start = node, spec, start
        self.whole = spec.slots or max_frames
        self.kind = "text"
        """The class of the tokens that come in."""
        self.heads = [Head() for _ in range(node.kv_heads)]
        self.frames = 0

    def step(
        self, q: np.ndarray, k: np.ndarray, v: np.ndarray, retain: np.ndarray | None = None,
        positions: Sequence[int] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """q: (heads, D), k: (KV heads, D), v: (KV heads, Dv) → (heads, Dv)."""
        node, number = self.node, self.frames
        group, out = node.heads // node.kv_heads, np.zeros((node.heads, node.value_dim))
        for h, head in enumerate(self.heads):
            key, value = k[h].astype(np.float64), v[h].astype(np.float64)
            at = (self.start + number,) if positions is None else tuple(positions)
            wide = (node.key_dim | node.value_dim) if self._once else 0
            value = value if self._once else rounded(value, self.spec.values)
            slot = Slot(self.start + number, at, key, value)
            if self.spec.keys in ROUNDED and self._ranked:
                slot.key = rounded(key, self.spec.keys, rotated_first=False)
            elif self.spec.keys in ROUNDED:
                slot.code = rounded(turned(key, node.rotary, at), self.spec.keys, block=wide & -wide)
            if self._once and self.spec.keys in ROUNDED:
                slot.value = (slot.key if slot.code is None else slot.code)[: node.value_dim]
            self._keep(h, head, slot, number, 0.0 if retain is None else float(retain[h]))
            ranks = self._positions(head)
            own = ranks[head.slots.index(slot)]
            weights = []
            for g in range(group):
                row = h * group + g
                plain = q[row].astype(np.float64)
                query = turned(plain, node.rotary, own)
                scores = np.array(
                    [
                        self._score(row, self._nearer(plain, query, own, s, rank), own, s, rank)
                        for s, rank in zip(head.slots, ranks, strict=True)
                    ]
                )
                w = self._softmax(row, scores)
                weights.append(w)
                out[row] = sum((a * s.value for a, s in zip(w, head.slots, strict=True)), np.zeros(node.value_dim))
            self._attended(h, head, np.sum(weights, axis=0))
        self.frames += 1
        return out

    @property
    def _once(self) -> bool:
        """Whether values are what the keys' slots begin with."""
        return self.node.shared and self.spec.keys == self.spec.values != 4

    @property
    def _ranked(self) -> bool:
        """Whether keys are stored as they are, to be turned by rank."""
        return self.spec.positions == "contiguous" and self.spec.policy not in ("full", "window")

    def _positions(self, head: Head) -> list[tuple[int, ...]]:
        """The positions of each slot that attention uses."""
        if self.spec.positions != "contiguous":
            return [s.at for s in head.slots]
        order = sorted(s.position for s in head.slots)
        return [(order.index(s.position),) for s in head.slots]

    def _nearer(
        self, plain: np.ndarray, query: np.ndarray, own: Sequence[int], slot: Slot, at: Sequence[int]
    ) -> np.ndarray:
        """The query as a slot sees it whose key was turned to its own position before it was rounded."""
        if slot.code is None or self.spec.positions != "contiguous":
            return query
        return turned(plain, self.node.rotary, (slot.position + own[0] - at[0],))

    def _score(self, row: int, query: np.ndarray, own: Sequence[int], slot: Slot, at: Sequence[int]) -> float:
        node = self.node
        key = turned(slot.key, node.rotary, at) if slot.code is None else slot.code
        score = float(query @ key) * node.scale
        if node.softcap:
            score = node.softcap * math.tanh(score / node.softcap)
        far = own[0] - at[0]
        if node.slopes is not None:
            score -= float(node.slopes[row]) * far
        if node.bias is not None:
            score += float(node.bias[row, min(far, node.bias.shape[1] - 1)])
        return score

    def _softmax(self, row: int, scores: np.ndarray) -> np.ndarray:
        extra = [] if self.node.sinks is None else [float(self.node.sinks[row])]
        top = max([*scores, *extra])
        weights = np.exp(scores - top)
        return weights / (weights.sum() + sum(math.exp(x - top) for x in extra))

    # Policies: which slot a frame takes ------------------------------------------------------------------------------

    def _keep(self, h: int, head: Head, slot: Slot, number: int, retain: float) -> None:
        spec, node = self.spec, self.node
        policy = spec.policy
        table = 0 if spec.heads is None else spec.heads[node.layer][h]
        if policy == "full" or table == 1:
            policy, sink, most = "full", 0, self.whole
        else:
            sink, most = spec.sink, spec.most(table)
        if node.window:
            policy, sink, most = "window", 0, min(most, node.window)
        slot.kind = self.kind if policy == "pools" else ""
        slot.mass = retain if policy == "retain" else 0.0
        if len(head.slots) == most and policy == "snap":
            self._compress(head, sink, most - sink - spec.window)
        if policy == "pools" and number >= sink:
            pools = {"text": spec.window, "system": spec.system, "vision": spec.vision, "audio": spec.audio}
            own = [
                s
                for s in head.slots[sink:]
                if (s.kind if pools[s.kind] else "text") == (slot.kind if pools[slot.kind] else "text")
            ]
            most = len(head.slots) + int(len(own) < (pools[slot.kind] or spec.window))
        if len(head.slots) < most:
            head.slots.append(slot)
            return
        assert policy != "full", "a cache that keeps everything is full"
        if policy == "pools":
            victim = head.slots.index(min(own, key=lambda s: s.position))
        elif policy == "window":
            victim = sink + (number - sink) % (most - sink)
        else:
            others = [s for s in head.slots[sink:] if s.position <= slot.position - spec.window]
            lowest = min(others, key=lambda s: (s.mass, s.position))
            victim = head.slots.index(lowest)
            if policy == "merge" and len(others) > 1:
                merge(lowest, min((s for s in others if s is not lowest), key=lambda s: distance(s, lowest)))
        head.dropped.append(head.slots[victim].position)
        head.slots[victim] = slot

    def _compress(self, head: Head, sink: int, heavy: int) -> None:
        """SnapKV: the latest ``observe`` stay, and of the others those with most votes, means of five neighbours."""
        order = sorted(head.slots[sink:], key=lambda s: s.position)
        votes = [sum(s.mass for s in order[max(0, i - 2) : i + 3]) / 5 for i in range(len(order))]
        candidates = list(range(len(order) - self.spec.observe))
        kept = sorted(candidates, key=lambda i: (votes[i], i))[len(candidates) - heavy :]
        gone = {id(order[i]) for i in candidates if i not in kept}
        head.dropped += [s.position for s in order if id(s) in gone]
        head.slots = [s for s in head.slots if id(s) not in gone]
        for slot in head.slots:
            slot.mass = 0.0

    def _attended(self, h: int, head: Head, mass: np.ndarray) -> None:
        """mass: what the query heads gave each slot, together."""
        spec, count = self.spec, len(head.slots)
        most = spec.most(0 if spec.heads is None else spec.heads[self.node.layer][h])
        group = self.node.heads // self.node.kv_heads
        if spec.policy == "retain":
            return
        if spec.policy == "snap" and most - count >= spec.observe:
            return
        for slot, more in zip(head.slots, mass, strict=True):
            if spec.policy == "scissorhands":
                slot.mass = slot.mass * (1 - 1 / spec.observe) + float(more > group / count)
            else:
                slot.mass += float(more)


def distance(slot: Slot, other: Slot) -> tuple[int, int]:
    """How far apart in the text; the earlier of equals comes first."""
    return abs(slot.position - other.position), slot.position


def merge(slot: Slot, into: Slot) -> None:
    """The mean of keys before they are turned, and of values, by the frames that each holds. Attention turns the key
    to the position that it was merged into."""
    whole = slot.frames + into.frames
    into.key = (into.key * into.frames + slot.key * slot.frames) / whole
    into.value = (into.value * into.frames + slot.value * slot.frames) / whole
    into.frames, into.mass = whole, into.mass + slot.mass


def dense(node: CachedAttend, q: np.ndarray, k: np.ndarray, v: np.ndarray, kept: np.ndarray, start: int) -> np.ndarray:
    """All frames at once: softmax over every key, those that are not kept masked. kept: (KV heads, T, T) bool, by query
    and key. q: (heads, T, D), k, v: (KV heads, T, …) → (heads, T, Dv). Positions as in the model."""
    frames = q.shape[1]
    at = [[start + n] for n in range(frames)]
    group, outs = node.heads // node.kv_heads, []
    for row in range(node.heads):
        h = row // group
        queries = np.array([turned(q[row, n].astype(np.float64), node.rotary, at[n]) for n in range(frames)])
        keys = np.array([turned(k[h, n].astype(np.float64), node.rotary, at[n]) for n in range(frames)])
        scores = queries @ keys.T * node.scale
        if node.softcap:
            scores = node.softcap * np.tanh(scores / node.softcap)
        distance = np.subtract.outer(np.arange(frames), np.arange(frames))
        if node.slopes is not None:
            scores = scores - float(node.slopes[row]) * distance
        if node.bias is not None:
            scores = scores + node.bias[row].astype(np.float64)[np.clip(distance, 0, node.bias.shape[1] - 1)]
        scores = np.where(kept[h], scores, -np.inf)
        extra = -np.inf if node.sinks is None else float(node.sinks[row])
        top = np.maximum(scores.max(1), extra)[:, None]
        weights = np.exp(scores - top)
        weights /= weights.sum(1, keepdims=True) + np.exp(extra - top)
        outs.append(weights @ v[h].astype(np.float64))
    return np.array(outs)
