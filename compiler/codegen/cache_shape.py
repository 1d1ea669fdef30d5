"""What the kernels of a cache are made for, and how its slots lie."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.compiler.codegen.hadamard import block_size
from runnel.compiler.codegen.target import Target


@dataclass(frozen=True)
class CacheShape:
    """What kernels are made for. bits: of an element of a key and of a value, 32, 16, 8 or 4. pitch: from the scores of
    a query head to the next one's. pairs, start, interleaved: as in ``Rotary``. apart: whether the first slots have a
    query of their own. ranked: keys are stored as they are, in rows, and turned to their slot's rank by attention.
    shared: values are the first features of keys, which lie in rows.
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    pitch: int
    key_bits: int = 32
    value_bits: int = 32
    pairs: int = 0
    start: int = 0
    interleaved: bool = False
    scale: float = 1.0
    softcap: float = 0.0
    bias: bool = False
    sinks: bool = False
    apart: bool = False
    ranked: bool = False
    shared: bool = False

    @property
    def rotates_keys(self) -> bool:
        """Whether keys are rotated before they are coded; those that attention turns itself are not."""
        return coded(self.key_bits) and not self.ranked

    @property
    def rotates_values(self) -> bool:
        """Whether sums of values are to be turned back."""
        return self.rotates_keys if self.shared else coded(self.value_bits)

    def rotated(self, size: int) -> int:
        """How many features of a key or a value are rotated together; of both the same where they are shared."""
        return block_size(self.key_dim | self.value_dim if self.shared else size)

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return self.heads // self.kv_heads


def width_of(target: Target) -> int:
    """Slots whose scores are made together."""
    return max(16, 2 * target.lanes)


def block_of(target: Target, shape: CacheShape) -> int:
    """Slots whose keys lie together."""
    return 1 if shape.ranked or shape.shared else width_of(target)


def stored_as(bits: int) -> str:
    """The type of stored elements."""
    return {32: "float32", 16: "float16", 8: "int8", 4: "uint8"}[bits]


def coded(bits: int) -> bool:
    """Whether elements are codes, with a scale a slot."""
    return bits in (8, 4)
