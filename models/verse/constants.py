"""What the decoder's definition, its export and its tests share."""

VOCABULARY = 768
WIDTH = 96
LAYERS = 5
HEADS = 6
KV_HEADS = 2
HEAD_WIDTH = 16
INNER = 192
CONTEXT = 512
ROPE_BASE = 10_000.0
NORM_EPSILON = 1e-5
BEGIN = "<s>"
HELD_OUT = ("Isa", "Acts")
