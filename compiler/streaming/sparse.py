"""Feed-forward layers that read the weights of active neurons only (``--sparse``).

``exact`` changes no result. ``predicted=FILE`` is a named mode: a low-rank predictor scores the neurons of each layer
from what the layer reads, and those that it scores 0 or less count as zero. FILE is a .npz; for each layer, by the name
of its last product, NAME: ``NAME/in`` (inputs, rank), ``NAME/out`` (rank, neurons) and ``NAME/bias`` (neurons), all
float32: score = (x · in) · out + bias.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from runnel.compiler.lowering.neurons import FeedForward, with_neurons
from runnel.compiler.streaming.ir import Operand, Pointwise, Stream, StreamGraph, StreamNode
from runnel.errors import InputError

MODE = "sparse"
PRODUCTS = ("MatMul", "MatMulNBits", "Gemm", "Conv")
PARTS = ("in", "out", "bias")


def read_sparsely(graph: StreamGraph, value: str) -> None:
    """Mark the graph, in place; with a predictor its layers choose their neurons. Raises InputError where there is no
    such layer, or for a predictor that does not fit."""
    kind, _, file = value.partition("=")
    sparse, _ = with_neurons(graph)
    layers = [n for n in sparse.nodes if isinstance(n, FeedForward)]
    if not layers:
        raise InputError(
            "--sparse finds no feed-forward layer whose neurons a Relu sets to zero; compile the model without it."
        )
    graph.sparse = kind
    if kind == "predicted":
        predictor = _read(Path(file))
        for layer in layers:
            _predict(graph, layer, *_parts(predictor, layer, file))
        graph.modes = graph.modes | {MODE: kind}
        graph.mode_nodes = graph.mode_nodes | {MODE: [f"{n.op} '{n.name}'" for n in layers]}


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"the predictor '{path}' cannot be read as .npz: {error}.") from error


def _parts(predictor: dict[str, np.ndarray], layer: FeedForward, file: str) -> list[np.ndarray]:
    """in, out and bias of a layer."""
    names = [f"{layer.name}/{part}" for part in PARTS]
    missing = [name for name in names if name not in predictor]
    if missing:
        raise InputError(f"the predictor '{file}' has no '{missing[0]}'; train it for this model.")
    first, second, bias = (np.ascontiguousarray(predictor[name], np.float32) for name in names)
    inputs, neurons = layer.up.shape
    fits = first.ndim == 2 and second.shape == (first.shape[1], neurons) and bias.shape == (neurons,)
    if not fits or first.shape[0] != inputs:
        raise InputError(
            f"the predictor '{file}' of '{layer.name}' has shapes {first.shape}, {second.shape}, {bias.shape} for "
            f"{inputs} inputs and {neurons} neurons; train it for this model."
        )
    if not all(np.isfinite(v).all() for v in (first, second, bias)):
        raise InputError(f"the predictor '{file}' of '{layer.name}' holds numbers that are not finite; train it again.")
    return [first, second, bias]


def _predict(graph: StreamGraph, layer: FeedForward, first: np.ndarray, second: np.ndarray, bias: np.ndarray) -> None:
    """Put ``Where(score > 0, values, 0)`` before the layer's last product."""
    last = next(n for n in graph.nodes if n.name == layer.name and n.op in PRODUCTS)
    if not isinstance(last, Pointwise):
        raise InputError(f"{last.op} '{last.name}' has no form with a predictor; compile with --sparse exact.")
    inner, x, at = last.streams[0], layer.streams[0], graph.nodes.index(last)
    made: list[StreamNode] = []

    def add(op: str, name: str, inputs: list[Operand], size: int, dtype: str = "float32") -> Stream:
        shape = tuple(d if d is None or i < len(inner.shape) - 1 else size for i, d in enumerate(inner.shape))
        stream = Stream(f"{inner.name}/{name}", shape, dtype, inner.fact)
        stream.node = Pointwise(f"{layer.name}/{name}", op, inputs, stream)
        made.append(stream.node)
        return stream

    low = add("MatMul", "low", [x, first], first.shape[1])
    product = add("MatMul", "product", [low, second], len(bias))
    score = add("Add", "score", [product, bias], len(bias))
    zero = np.zeros((), np.float32)
    likely = add("Greater", "likely", [score, zero], len(bias), "bool")
    chosen = add("Where", "chosen", [likely, inner, zero], len(bias))
    graph.nodes[at:at] = made
    last.inputs = [chosen if v is inner else v for v in last.inputs]
