"""Streams of decoders: a native stream whose keys and values lie in caches."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from runnel.errors import RunnelError, StreamError
from runnel.kv import TOKEN_CLASSES
from runnel.runtime import native
from runnel.runtime.backends.memory import Lane, Words
from runnel.runtime.backends.native import NativeProgram, NativeStream
from runnel.runtime.cache.choice import KvFacts, choose, read_facts
from runnel.runtime.program import FOREIGN_STATE, Array, Port, Result


@dataclass(frozen=True)
class Held:
    """The kept slots of a KV head: positions (slots) int64, attention (slots): what a policy ranks them by, for
    ``external`` the attention they got since they came; keys (slots, features), values (slots, features) float32."""

    positions: Array
    attention: Array
    keys: Array
    values: Array


class CachedStream(NativeStream):
    """A stream with caches. Its state has the size of what it chose."""

    def __init__(
        self, program: NativeProgram, lane: Lane, choice: ctypes.Array[ctypes.c_int64] | None, state: bytes | None,
        on_nonfinite: str, inputs: Mapping[str, Any] | None, source: CachedStream | None = None,
    ) -> None:  # fmt: skip
        self._choice, self._source = choice, source
        self._room = lane.memory
        super().__init__(program, lane, state if source is None else b"", on_nonfinite, inputs)

    @property
    def kv(self) -> KvFacts:
        """What the caches hold now."""
        facts = read_facts(self.program, self._state)
        assert facts is not None
        return facts

    @property
    def state_bytes(self) -> int:
        """Bytes of this stream's state."""
        return len(self._memory)

    def push(self, x: Array | Mapping[str, Array], out: Result | None = None, last: bool = False) -> Result:
        """As in ``Stream``. last: give the last frame of each output alone; what only the others need is left out."""
        if not last:
            return super().push(x, out)
        arrays = self.prepare(x)
        frames = self._frames.value
        if frames > 1 and self._core.rn_has_prefill(self.program._handle) and self._is_finite():
            first = ctypes.c_int64(frames - 1)
            code = self._core.rn_prefill(
                None, self.program._handle, self._state, self.program._scratch.pointer, self._addresses, self._frames,
                first, self._policy,
            )  # fmt: skip
            if code != native.OK:
                raise self.error(code, arrays)
            ports = self.program.timed
            x = {p.name: _tail(p, a) for p, a in zip(ports, arrays)} if len(ports) > 1 else _tail(ports[0], arrays[0])
        results = super().push(x)
        given = [results[p.name] for p in self.program.outputs] if isinstance(results, dict) else [results]
        tails = [_tail(p, array) for p, array in zip(self.program.outputs, given)]
        if out is None:
            return self._named(tails)
        for into, tail in zip(out.values() if isinstance(out, Mapping) else [out], tails):
            into[...] = tail
        return out

    def clone(self, into: CachedStream | None = None) -> CachedStream:
        """A second stream that goes on from here; it costs a copy of what the caches hold, not of what they could.

        into: a stream of this program and of as many bytes that becomes it and is given back, so that nothing is
        allocated, as for beams that replace each other. Raises StreamError for another one.
        """
        if into is None:
            lane = Words(self.program, 1, self.state_bytes, zero=True).lane(0)
            return CachedStream(self.program, lane, None, None, self.on_nonfinite, None, source=self)
        if into.program is not self.program or into.state_bytes != self.state_bytes:
            raise StreamError("a stream becomes another one of the same program and kv only; clone without into.")
        if into is not self:
            into._fork(self)
        return into

    def _fork(self, source: CachedStream) -> None:
        code = self._core.rn_fork(self.program._handle, source._state, self._state)
        if code != native.OK:
            raise self.error(code, [])
        if self._feed is not None and source._feed is not None:
            self._feed.load(source._feed.save())

    def rollback(self, frames: int) -> None:
        """Take the latest tokens back, as if they had never come: at most ``spare`` of the kv that the stream chose.

        Raises StreamError for more, or where the program keeps other things than caches; the stream is then as it was.
        Also for a state whose notes were altered, which is then not to be used.
        """
        code = self._core.rn_rollback(self.program._handle, self._state, frames)
        if code == native.BAD_ARGUMENT:
            raise StreamError(
                f"the stream cannot go back by {frames} tokens; give 0 or more, and open it with as many spare slots, "
                "as in kv='sink=4,window=512,spare=8'."
            )
        if code == native.UNSUPPORTED:
            raise StreamError(
                "the program keeps other things than caches, which do not go back; save the stream before."
            )
        if code:
            raise StreamError("the state that the stream was made of is damaged; make a stream of another one.")
        if code != native.OK:
            raise self.error(code, [])

    def set_class(self, token_class: str) -> None:
        """What the tokens of the next pushes are: "text", "system", "vision" or "audio". Raises StreamError."""
        if token_class not in TOKEN_CLASSES:
            raise StreamError(f"there are no tokens of class '{token_class}'; use one of {', '.join(TOKEN_CLASSES)}.")
        self._core.rn_cache_class(self.program._handle, self._state, TOKEN_CLASSES.index(token_class))

    def read(self, layer: int, head: int) -> Held:
        """What a KV head holds, slot by slot; keys are turned to their positions. Raises StreamError where there is no
        such head."""
        facts = self.kv
        if not (0 <= layer < len(facts.layers) and 0 <= head < len(facts.layers[layer])):
            raise StreamError(f"there is no KV head {head} of layer {layer}; layers are {len(facts.layers)}.")
        sizes = self.program.manifest["kv"]["layers"][layer]
        slots = facts.layers[layer][head][0]
        held = Held(
            np.empty(slots, np.int64), np.empty(slots, np.float32), np.empty((slots, sizes["key_dim"]), np.float32),
            np.empty((slots, sizes["value_dim"]), np.float32),
        )  # fmt: skip
        places = (a.ctypes.data for a in (held.positions, held.attention, held.keys, held.values))
        count = int(self._core.rn_cache_read(self.program._handle, self._state, layer, head, *places))
        return Held(held.positions[:count], held.attention[:count], held.keys[:count], held.values[:count])

    def drop(self, layer: int, head: int, slots: Array) -> None:
        """Give slots of a KV head up, for kv='external=…'; the last kept ones take their places.

        slots: numbers as ``read`` counts them. Raises StreamError for another policy or slots that are not kept.
        """
        falling = np.ascontiguousarray(np.sort(np.asarray(slots, np.int32))[::-1])
        code = self._core.rn_cache_drop(
            self.program._handle, self._state, layer, head, falling.ctypes.data, len(falling)
        )  # fmt: skip
        if code == native.UNSUPPORTED:
            raise StreamError(
                "the program's own policy gives slots up; compile with kv='external=512' to do it yourself."
            )
        if code != native.OK:
            raise StreamError(f"KV head {head} of layer {layer} does not hold all of these slots, each once.")

    def error(self, code: int, arrays: list[Array]) -> RunnelError:
        if code != native.CACHE_FULL:
            return super().error(code, arrays)
        slots = min(slots for heads in self.kv.layers for slots, _, _ in heads)
        return StreamError(
            f"{self._frames.value} tokens more do not fit a cache that keeps all of them and has {self.kv.kept} of "
            f"{slots}; compile the model with more, or take a kv that drops some."
        )

    def _is_finite(self) -> bool:
        return not self._core.rn_has_nonfinite(self.program._handle, self._addresses, self._frames)

    def restore(self, state: bytes) -> None:
        if (source := self._source) is not None:
            self._source = None
            self._fork(source)
            return
        feed = self.program.feed()
        size = len(state) - (feed.state_bytes if feed is not None else 0)
        before = self._memory
        if 0 < size <= len(self._room):  # caches of another size that there is room for
            self._memory = self._room[:size]
        try:
            super().restore(state)
        except StreamError:
            self._memory = before
            raise

    def _init(self) -> None:
        assert self._choice is not None
        poison = int(self.program._poison)
        code = self._core.rn_init_cache(self.program._handle, self._state, self._choice, poison)
        if code != native.OK:
            raise self.error(code, [])


def _tail(port: Port, array: Array) -> Array:
    """The last frame."""
    return array if port.axis is None else np.ascontiguousarray(array[(slice(None),) * port.axis + (slice(-1, None),)])


def open_stream(
    program: NativeProgram, state: bytes | None, on_nonfinite: str, inputs: Mapping[str, Any] | None, kv: str | None,
    position: int,
) -> CachedStream:  # fmt: skip
    """A stream with caches, at its start or where ``state`` was. Raises InputError or StreamError."""
    if state is None:
        choice = choose(program, kv, position)
        size = int(program._core.rn_cache_bytes(program._handle, choice))
        if size < 0:
            raise StreamError(f"kv='{kv}' leaves some cache without slots; give every head room for a token.")
        return CachedStream(program, Words(program, 1, size).lane(0), choice, None, on_nonfinite, inputs)
    if kv is not None or position:
        raise StreamError("a saved state brings its own kv and position; leave them out.")
    feed = program.feed()
    size = len(state) - (feed.state_bytes if feed is not None else 0)
    if not 0 < size <= program.block_bytes:
        raise StreamError(FOREIGN_STATE)
    return CachedStream(program, Words(program, 1, size).lane(0), None, state, on_nonfinite, inputs)


def lane_stream(
    program: NativeProgram, lane: Lane, state: bytes | None, on_nonfinite: str, inputs: Mapping[str, Any] | None
) -> CachedStream:
    """The stream of a lane of a batch: the most of all that was compiled, or what a state chose."""
    return CachedStream(program, lane, choose(program, None, 0), state, on_nonfinite, inputs)
