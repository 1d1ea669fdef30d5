"""A decoder called a few tokens at a time, as its past is meant, beside itself over a whole sequence."""

from __future__ import annotations

import re

import numpy as np
import onnx

from runnel.compiler.graph.decoder.roles import Role, Roles
from runnel.compiler.graph.fold import session
from runnel.compiler.graph.model import Port
from runnel.errors import InputError

CUTS = ([2, 1, 2], [1, 1, 1, 1, 1])
FRAMES = 5
TOLERANCE = 1e-3
COUNTS = re.compile(r"(past|start|write).*(len|length|pos|index|indices)|write_ind", re.IGNORECASE)
Arrays = dict[str, np.ndarray]


def check_past(before: onnx.ModelProto, ports: list[Port], roles: Roles, whole: onnx.ModelProto) -> None:
    """Raise InputError unless the model, given its own past and a few tokens at a time, gives what ``whole`` gives for
    all of them.

    before: the model with its past; ports: its inputs. whole: it without one, from ``whole_sequence``.
    """
    rng = np.random.default_rng(17)
    fixed = _fixed(ports, roles, rng)
    told = {p.name: _value(p, roles.by_name[p.name], 0, FRAMES, 0) for p in ports if p.name in roles.of("given")}
    tokens = roles.of("tokens")[0]
    port = next(p for p in ports if p.name == tokens)
    axis = roles.by_name[tokens].axis
    shape = [FRAMES if a == axis else d if isinstance(d, int) else 1 for a, d in enumerate(port.shape)]
    text = rng.integers(0, 2, shape) if port.dtype.startswith("int") else rng.standard_normal(shape)
    text = np.asarray(text).astype(port.dtype)
    run = session(whole)
    names = [o.name for o in run.get_outputs()]
    taken = {i.name for i in run.get_inputs()}
    feeds = {k: v for k, v in ({tokens: text} | fixed | told).items() if k in taken}
    try:
        wanted = dict(zip(names, run.run(names, feeds), strict=True))
    except Exception:  # onnxruntime's exceptions share no base class of their own
        return  # a length that it does not take, or an op that is refused with its reason later
    complaint = ""
    for cuts in CUTS:
        try:
            got = _called(before, ports, roles, text, axis, fixed, cuts, names)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            complaint = complaint or str(error).splitlines()[0][:200]
            continue
        for name in names:
            if not _same(got[name], wanted[name]):
                raise InputError(
                    f"called a few tokens at a time with its own past, the model gives another '{name}' than over the "
                    "whole sequence; export it so that one call takes several tokens, or name what its inputs are."
                )
        return
    raise InputError(f"the model does not run with its own past: {complaint}; export it again.")


def _same(parts: list[np.ndarray], wanted: np.ndarray) -> bool:
    """Whether parts are the whole, cut along time; what is no sequence of frames is not compared."""
    axes = [a for a in range(wanted.ndim) if sum(p.shape[a] for p in parts) == wanted.shape[a] == FRAMES]
    if len(axes) != 1 or any(p.ndim != wanted.ndim for p in parts):
        return True
    rest = [tuple(np.delete(p.shape, axes[0])) for p in (*parts, wanted)]
    if len(set(rest)) > 1:
        return True
    error = np.abs(np.concatenate(parts, axes[0]) - wanted).max(initial=0)
    return bool(error <= TOLERANCE * max(1e-6, float(np.abs(wanted).max(initial=0))))


def _called(
    model: onnx.ModelProto, ports: list[Port], roles: Roles, text: np.ndarray, axis: int, fixed: Arrays,
    cuts: list[int], names: list[str],
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    run = session(model)
    given = [o.name for o in run.get_outputs()]
    past = {p.name: np.zeros(_first(p, roles.by_name[p.name]), p.dtype) for p in ports if _kept(roles, p.name)}
    caches = [x.shape[roles.by_name[n].axis] for n, x in past.items() if roles.by_name[n].kind == "past"]
    places = max(caches, default=0)
    past |= {n: x for n, x in fixed.items() if roles.by_name[n].output}
    results: dict[str, list[np.ndarray]] = {n: [] for n in names}
    start = 0
    for count in cuts:
        feeds = {p.name: _value(p, roles.by_name[p.name], start, count, places) for p in ports if _made(roles, p.name)}
        feeds |= {roles.of("tokens")[0]: text.take(range(start, start + count), axis)} | fixed | past
        taken = {i.name for i in run.get_inputs()}
        values = dict(zip(given, run.run(given, {k: v for k, v in feeds.items() if k in taken}), strict=True))
        past = {n: values[roles.by_name[n].output] for n in past}
        for name in names:
            results[name].append(values[name])
        start += count
    return results


def _kept(roles: Roles, name: str) -> bool:
    return roles.by_name[name].kind in ("past", "begin")


def _made(roles: Roles, name: str) -> bool:
    return roles.by_name[name].kind not in ("past", "begin", "tokens", "static")


def _first(port: Port, role: Role) -> list[int]:
    """The shape before the first token: a cache of fixed size is there from the start."""
    return [d if isinstance(d, int) else 0 if a == role.axis else 1 for a, d in enumerate(port.shape)]


def _fixed(ports: list[Port], roles: Roles, rng: np.random.Generator) -> Arrays:
    shapes = {p.name: [d if isinstance(d, int) else 1 for d in p.shape] for p in ports}
    return {
        p.name: rng.standard_normal(shapes[p.name]).astype(p.dtype)
        for p in ports if roles.by_name[p.name].kind == "static"
    }  # fmt: skip


def _value(port: Port, role: Role, start: int, count: int, places: int) -> np.ndarray:
    """What an input is in a call with ``count`` tokens after ``start``. places: of a cache of fixed size, or 0."""
    dims = [d if isinstance(d, int) else 1 for d in port.shape]
    total = start + count
    value: np.ndarray
    if role.kind in ("positions", "given"):
        dims[role.axis] = count
        value = np.broadcast_to(np.arange(start, total), dims)
    elif role.kind == "ones":
        size = port.shape[role.axis]
        dims[role.axis] = width = size if isinstance(size, int) and size > 1 else places or total
        value = np.broadcast_to(np.arange(width) < total, dims)
    elif role.kind == "causal":
        size = port.shape[-1]
        width = size if isinstance(size, int) and size > 1 else places or total
        seen = np.arange(width)[None, :] <= np.arange(start, total)[:, None]
        value = np.asarray(seen if port.dtype == "bool" else np.where(seen, 0.0, -np.inf))
        value = np.broadcast_to(value, (*dims[:-2], count, width))
    elif role.kind == "all":
        value = np.ones(dims)
    else:
        number = {"length": total, "last": total - 1, "zero": 0}[role.kind]
        if role.kind == "zero" and (port.dtype == "bool" or COUNTS.search(port.name) or role.axis == 0):
            number = min(start, 1) if port.dtype == "bool" else start
        value = np.full(dims, number)
    return np.ascontiguousarray(value).astype(port.dtype).reshape(np.shape(value))
