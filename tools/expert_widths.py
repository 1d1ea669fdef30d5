"""How many bits the experts of a model are worth, by what a recording makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from runnel.compiler.graph.experts import table_name
from runnel.compiler.streaming.ir import Pointwise, Stream
from runnel.compiler.streaming.widths import SHAPES, Worth, added, mixtures, parse, round_experts, widths_for, worth
from runnel.errors import InputError
from runnel.tools.activity import miss_curves, tensors
from runnel.tools.calibrate import Calibration, read_calibration
from runnel.tools.rewritten import Rewritten

FRAMES = 4096
"""Of a recording through which caches of experts are followed."""


def choose_widths(rewritten: Rewritten, value: str, calibration: Calibration | None, rate: float | None) -> None:
    """Round the experts of a rewritten model, in place, to ``value`` bits a weight (compiler/streaming/widths.py).

    Raises InputError where the model has no experts of float32, or cannot be run through the recording as a whole.
    """
    graph = rewritten.graph
    assert calibration is not None  # Request sees to that
    nodes = mixtures(graph)
    if not nodes:
        raise InputError("--expert-bits finds no mixture of experts in float32; compile the model without it.")
    if rewritten.states or graph.window is not None:
        raise InputError(
            "--expert-bits measures experts on a whole recording, and this model takes a frame or a window at a time; "
            "compile it without."
        )
    data = read_calibration(calibration, [*graph.inputs, *graph.statics], rate)[1]
    mean, block = parse(value)
    try:
        streams = [_exported(rewritten, s) for n in nodes for s in (*n.streams, added(graph, n))]
        made = tensors(rewritten, streams, [data])
    except (Fail, InvalidArgument) as error:
        raise InputError(f"the offline model does not take the calibration recording: {error}") from None
    parts = zip(nodes, made[::3], made[1::3], made[2::3], strict=True)
    found = [worth(*part, widths_for(mean), block) for part in parts]
    bits = round_experts(graph, value, found)
    graph.misses = graph.misses | _misses(found, bits)


def _exported(rewritten: Rewritten, stream: Stream) -> Stream:
    """The stream whose tensor the offline model has, of which this one is another shape."""
    made = {name for node in rewritten.proto.graph.node for name in node.output}
    while stream.name not in made and isinstance(stream.node, Pointwise) and stream.node.op in SHAPES:
        stream = stream.node.streams[0]
    return stream


def _misses(found: Sequence[Worth], bits: Sequence[Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """For each table of experts: those that a frame chooses and that are not there, in 2^-8, where those chosen last
    stay, as many as 0, 1/8, … of all that have as many bytes."""
    tables = [(w, width) for w, own in zip(found, bits, strict=True) for width in sorted(set(own))]
    count = min(FRAMES, *(len(w.chosen) for w in found))
    of = {id(w): np.array(own) for w, own in zip(found, bits, strict=True)}
    lists = [[[e for e in row if of[id(w)][e] == width] for row in w.chosen[:count].tolist()] for w, width in tables]
    units = [int((of[id(w)] == width).sum()) for w, width in tables]
    curves = miss_curves(lists, [(width, w.weights) for w, width in tables], units, count)
    alone = [len(set(of[id(w)].tolist())) == 1 for w, _ in tables]
    names = [w.node.name if a else table_name(w.node.name, width) for (w, width), a in zip(tables, alone, strict=True)]
    return dict(zip(names, curves, strict=True))
