"""Policies in Python, for experiments: a scorer says what slots are worth, and a native stream keeps the best.

A press of kvpress is such a scorer after a few lines: its ``score`` gives (batch, KV heads, tokens) as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runnel.errors import StreamError
from runnel.runtime.cache.stream import CachedStream, Held
from runnel.runtime.program import Array, Program, Result, Stream


@dataclass(frozen=True)
class Scored:
    """What a scorer is given of a layer, slots in the order of the text. layer: its number. keys: (1, KV heads, slots,
    features), turned to their positions; values: (1, KV heads, slots, features); positions, attention: (1, KV heads,
    slots), attention being what each slot got since it came."""

    layer: int
    keys: Array
    values: Array
    positions: Array
    attention: Array


Score = Callable[[Scored], Array]
"""score(scored) → (1, KV heads, slots): the higher, the longer a slot stays."""


class ScoredStream:
    """A stream whose slots a scorer gives up: when they are full, those of the highest scores stay.

    program: compiled with kv="external=N". keep: slots of a head that stay. sink, recent: how many of the first and of
    the latest tokens stay whatever their score. Raises StreamError where that does not fit.
    """

    def __init__(
        self, program: Program, score: Score, keep: int, sink: int = 0, recent: int = 1, kv: str | None = None,
        position: int = 0,
    ) -> None:  # fmt: skip
        stream: Stream = program.stream(kv=kv, position=position)
        if not isinstance(stream, CachedStream) or stream.kv.spec.policy != "external":
            raise StreamError("a policy of your own needs a program compiled with kv='external=512' or the like.")
        self.stream, self.score, self.keep, self.sink, self.recent = stream, score, keep, sink, recent
        self.slots = min(slots for heads in stream.kv.layers for slots, _, _ in heads)
        if not 0 < sink + recent <= keep < self.slots:
            raise StreamError(
                f"sinks ({sink}) and recent tokens ({recent}) must fit what stays ({keep}), and that must be less than "
                f"the program's slots ({self.slots})."
            )

    def push(self, tokens: Array, last: bool = False) -> Result:
        """As ``CachedStream.push`` of an array of tokens, in as many parts as there is room for."""
        axis = self.stream.program.timed[0].axis or 0
        frames, at, parts = tokens.shape[axis], 0, []
        while at < frames:
            if (room := self.slots - self.stream.kv.kept) == 0:
                self.compress()
                continue
            part = tokens[(slice(None),) * axis + (slice(at, at + room),)]
            at += part.shape[axis]
            result = self.stream.push(part, last=last)
            parts.append(result if isinstance(result, dict) else {"": result})
        parts = parts[-1:] if last else parts
        if not parts:
            return self.stream.push(tokens)
        ports = self.stream.program.outputs
        names = [p.name for p in ports] if len(ports) > 1 else [""]
        joined = {n: np.concatenate([p[n] for p in parts], axis=port.axis or 0) for n, port in zip(names, ports)}
        return joined if len(ports) > 1 else joined[""]

    def compress(self) -> None:
        """Give up all but ``keep`` slots of every head."""
        for layer, heads in enumerate(self.stream.kv.layers):
            held = [self.stream.read(layer, h) for h in range(len(heads))]
            order = [np.argsort(h.positions) for h in held]
            scores = np.asarray(self.score(_scored(layer, held, order)), np.float64)
            count = len(order[0])
            if scores.shape != (1, len(held), count):
                raise StreamError(f"score gave {scores.shape} and should give {(1, len(held), count)}.")
            scores[..., : self.sink] = np.inf
            scores[..., count - self.recent :] = np.inf
            for h, own in enumerate(order):
                gone = np.argsort(scores[0, h], kind="stable")[: max(0, count - self.keep)]
                self.stream.drop(layer, h, own[gone])


def _scored(layer: int, held: list[Held], order: list[Array]) -> Scored:
    def together(name: str) -> Array:
        return np.stack([getattr(h, name)[o] for h, o in zip(held, order)])[None]

    return Scored(layer, together("keys"), together("values"), together("positions"), together("attention"))
