"""What the decoder's definition, its export and its tests share."""

from dataclasses import dataclass

VOCABULARY = 768
CONTEXT = 512
ROPE_BASE = 10_000.0
NORM_EPSILON = 1e-5
BEGIN = "<s>"
HELD_OUT = ("Isa", "Acts")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; ``gate_bias``: the gates of its feed-forward layers have a bias."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    head_width: int = 16
    gate_bias: bool = False


VERSE = Shape(width=96, layers=5, heads=6, kv_heads=2, inner=192)
