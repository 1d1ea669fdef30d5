"""Sizes of the wide decoder: verse with every axis of its width tripled and eight times its inner values."""

from ..verse.constants import VERSE, Shape

GROWTH = 3
WIDE = Shape(
    width=GROWTH * VERSE.width,
    layers=VERSE.layers,
    heads=GROWTH * VERSE.heads,
    kv_heads=GROWTH * VERSE.kv_heads,
    inner=1536,
    gate_bias=True,
)
