"""What a stream chooses of its caches, and what they tell."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runnel.errors import StreamError
from runnel.kv import PARAMETERS, POLICIES, POSITIONS, TOKEN_CLASSES, KvSpec, chosen
from runnel.runtime import native

if TYPE_CHECKING:
    from runnel.runtime.backends.native import NativeProgram

HEAD, CHOICE = 24, 13
MOST_START = 1 << 44


@dataclass(frozen=True)
class KvFacts:
    """The caches of one stream. spec: what it keeps. position: of its first token. bytes: of all caches. tokens: that
    were taken. dropped: keys that heads gave up (or merged), all together. token_class: of the tokens that come in.
    layers: for each cache, a tuple a KV head of (slots, how many are kept, dropped)."""

    spec: KvSpec
    position: int
    bytes: int
    tokens: int
    dropped: int
    token_class: str
    layers: tuple[tuple[tuple[int, int, int], ...], ...]

    @property
    def kept(self) -> int:
        """The most slots that a head holds now."""
        return max(kept for heads in self.layers for _, kept, _ in heads)


def read_facts(program: NativeProgram, state: ctypes.c_void_p | None) -> KvFacts | None:
    """The facts of a stream, or what the program allows; None where it has no caches."""
    core, handle = native.library(), program._handle
    room = int(core.rn_cache_words(handle, state, None, 0))
    if room == 0:
        return None
    words = (ctypes.c_int64 * room)()
    core.rn_cache_words(handle, state, words, room)
    numbers: dict[str, Any] = dict(zip(PARAMETERS, words[1:CHOICE]))
    spec = KvSpec(POLICIES[words[13]], POSITIONS[words[14]], keys=words[18], values=words[19], **numbers)
    layers: dict[int, list[tuple[int, int, int]]] = {}
    for at in range(HEAD, room, 4):
        layers.setdefault(words[at], []).append((words[at + 1], words[at + 2], words[at + 3]))
    held = tuple(tuple(heads) for _, heads in sorted(layers.items()))
    return KvFacts(spec, words[0], words[17], words[15], words[16], TOKEN_CLASSES[words[21]], held)


def choose(program: NativeProgram, kv: str | None, position: int) -> ctypes.Array[ctypes.c_int64]:
    """The words of a choice for the core. Raises InputError or StreamError for what the program does not allow."""
    facts = read_facts(program, None)
    if facts is None:
        raise StreamError("the program has no caches of keys and values; leave kv and position out.")
    if not 0 <= position <= MOST_START:
        raise StreamError(f"a stream cannot start at position {position}; give 0 to 2^44.")
    counting = (program.manifest.get("kv") or {}).get("numbered")
    if position and counting:
        raise StreamError(
            f"the model counts tokens from 0 outside its caches too ('{counting[0]}'), so a stream cannot start at "
            f"position {position}; leave position out."
        )
    numbers = [-1] * len(PARAMETERS) if kv is None else chosen(kv, facts.spec)
    return (ctypes.c_int64 * CHOICE)(position, *numbers, *[0] * (CHOICE - 1 - len(numbers)))
