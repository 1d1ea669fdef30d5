"""Which axis of which input is time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from runnel.errors import InputError

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Graph, Port

BATCH_NAMES = {"batch", "batch_size", "batchsize", "n", "b", "bs", "nbatch", "num_batch"}


def find_time_axis(
    graph: Graph, named: Mapping[str, int] | None, window: int | None, rates: Mapping[str, float] | None = None
) -> dict[str, int]:
    """The time axis of each input that has one; batch axes are fixed to 1 in ``graph.inputs``.

    named: the user's choice, by input name. window: in window mode the model's own fixed length of the axis. rates:
    the inputs that have time, each with an axis of its own. Raises InputError where the choice is not clear.
    """
    _fix_batch(graph)
    if rates:
        return _rated_axes(graph, named or {}, window, rates)
    names = {p.name for p in graph.inputs}
    if named:
        axes = {}
        for name, axis in named.items():
            if name not in names:
                raise InputError(f"time_axis names '{name}', but the model's inputs are {_quoted(names)}.")
            axes[name] = _named_axis(next(p for p in graph.inputs if p.name == name), axis)
        return axes
    if window is not None:
        axes = _window_axes(graph, window)
        for i, port in enumerate(graph.inputs):
            if port.shape and not isinstance(port.shape[0], int) and axes.get(port.name, 0) != 0:
                graph.inputs[i] = replace(port, shape=(1, *port.shape[1:]))  # the window is another axis: a batch
        return axes
    symbols: dict[str, list[tuple[str, int]]] = {}
    for port in graph.inputs:
        for axis, dim in enumerate(port.shape):
            if not isinstance(dim, int):
                symbols.setdefault(dim or f"?{port.name}:{axis}", []).append((port.name, axis))
    if not symbols:
        raise InputError(
            "no input has a symbolic dimension, so the time axis is not clear; export the model with a symbolic "
            "time axis, "
            "name it (--time-axis INPUT:AXIS), or compile it in window mode (--window W)."
        )
    if len(symbols) > 1:
        listed = ", ".join(f"'{s}' ({i} axis {a})" for s, places in symbols.items() for i, a in places)
        example = next(iter(symbols.values()))[0]
        inputs = {i for places in symbols.values() for i, _ in places}
        several = (
            "; inputs of different rates take them by name (--rate INPUT:RATE for each)" if len(inputs) > 1 else ""
        )
        raise InputError(
            f"there are {len(symbols)} candidate time axes: {listed}; say which one is time with "
            f"--time-axis {example[0]}:{example[1]} (or time_axis={{'{example[0]}': {example[1]}}}){several}."
        )
    places = next(iter(symbols.values()))
    axes = dict(places)
    if len(axes) != len(places):
        raise InputError(
            f"the symbolic dimension '{next(iter(symbols))}' stands on two axes of one input; a stream has one time "
            f"axis."
        )
    return axes


def _named_axis(port: Port, axis: int) -> int:
    rank = len(port.shape)
    if not -rank <= axis < rank:
        raise InputError(f"time_axis {port.name}:{axis} is outside the input's {rank} axes.")
    return axis % rank


def _rated_axes(
    graph: Graph, named: Mapping[str, int], window: int | None, rates: Mapping[str, float]
) -> dict[str, int]:
    ports = {p.name: p for p in graph.inputs}
    for name in [*rates, *named]:
        if name not in ports or name not in rates:
            raise InputError(
                f"'{name}' needs to be an input with a rate; the model's inputs are {_quoted(set(ports))}."
            )
    if window is not None:
        raise InputError("windows of inputs with different rates are not available; give one rate, or no --window.")
    axes = {}
    for port in graph.inputs:
        open_axes = [a for a, d in enumerate(port.shape) if not isinstance(d, int)]
        if port.name not in rates:
            if open_axes:
                raise InputError(f"input '{port.name}' has an open axis {open_axes[0]}, so it needs a rate too.")
        elif port.name in named:
            axes[port.name] = _named_axis(port, named[port.name])
        elif len(open_axes) == 1:
            axes[port.name] = open_axes[0]
        else:
            raise InputError(
                f"input '{port.name}' has {len(open_axes)} symbolic axes, so its time axis is not clear; say it with "
                f"--time-axis {port.name}:AXIS."
            )
    return axes


def _window_axes(graph: Graph, window: int) -> dict[str, int]:
    axes = {}
    for port in graph.inputs:
        at = [a for a, d in enumerate(port.shape) if d == window or not isinstance(d, int)]
        exact = [a for a in at if port.shape[a] == window]
        at = exact if len(exact) == 1 else at
        if len(at) == 1:
            axes[port.name] = at[0]
        elif len(at) > 1:
            raise InputError(
                f"{port.name} has {len(at)} axes that could be the window of {window} frames; "
                f"say which with --time-axis {port.name}:{at[0]}."
            )
    if not axes:
        shapes = ", ".join(f"{p.name} {list(p.shape)}" for p in graph.inputs)
        raise InputError(f"no input has an axis of {window} frames ({shapes}); give the model's own window length.")
    return axes


def _fix_batch(graph: Graph) -> None:
    for i, port in enumerate(graph.inputs):
        if port.shape and isinstance(port.shape[0], str) and port.shape[0].lower() in BATCH_NAMES:
            graph.inputs[i] = replace(port, shape=(1, *port.shape[1:]))
        elif len(port.shape) > 1:
            shape = tuple(1 if isinstance(d, str) and d.lower() in BATCH_NAMES - {"n", "b"} else d for d in port.shape)
            graph.inputs[i] = replace(port, shape=shape)


def _quoted(names: set[str]) -> str:
    return ", ".join(f"'{n}'" for n in sorted(names))
