"""What each input of a decoder is for: tokens, positions, masks, lengths, and the past of its attentions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runnel.compiler.graph.states import find_states
from runnel.compiler.graph.time_axis import BATCH_NAMES
from runnel.errors import InputError

if TYPE_CHECKING:
    from runnel.compiler.graph.model import Graph, Node, Port

TOKENS = re.compile(r"^(decoder_)?(input_?ids|tokens?|token_?ids|ids|inputs?_embeds|input|x)$", re.IGNORECASE)
POSITIONS = re.compile(r"position|input_pos|pos_ids", re.IGNORECASE)
MASK = re.compile(r"mask", re.IGNORECASE)
PAST = re.compile(r"past|cache|key|value|kv", re.IGNORECASE)
STATE = re.compile(r"past|cache|key|value|kv|state|conv|ssm|hidden", re.IGNORECASE)
ENCODER = re.compile(r"encoder", re.IGNORECASE)
DIRECTION = re.compile(r"present|past|prev(ious)?|new|next|updated|out(put)?|in(put)?|key_values|cache", re.IGNORECASE)
ZERO = re.compile(r"num_logits_to_keep|(past|start|write).*(len|length|pos|index|indices)|write_ind", re.IGNORECASE)
GROUPED = ("GroupQueryAttention", "SparseAttention")


@dataclass(frozen=True)
class Role:
    """What an input stands for.

    kind: "tokens", "positions", "given" (positions that a stream is told), "ones" (which tokens are there), "all" (of
    what an encoder gave), "causal" (which keys a token sees), "length" (of keys), "last" (the number of the last key),
    "zero" (how much past there is, or, without an axis, an option), "past", "begin" (a state of fixed size, zero at
    first), "static". axis: that of time. output: for a past, a state or what is given once, the model's output that
    continues it.
    """

    kind: str
    axis: int = -1
    output: str = ""


@dataclass
class Roles:
    """The roles of all inputs by name, and the outputs that carry a past on."""

    by_name: dict[str, Role] = field(default_factory=dict)

    def of(self, kind: str) -> list[str]:
        """The inputs of one kind."""
        return [name for name, role in self.by_name.items() if role.kind == kind]

    @property
    def presents(self) -> set[str]:
        """Outputs that only continue a past."""
        return {role.output for role in self.by_name.values() if role.output}


def has_past(graph: Graph) -> bool:
    """Whether the model takes keys and values of earlier tokens, as many as there were, a cache to write them in, or
    states before a sequence of tokens."""
    kinds = {role.kind for role in _pasts(graph).values()}
    return "past" in kinds or ("begin" in kinds and reads_tokens(graph))


def reads_tokens(graph: Graph) -> bool:
    """Whether an input is a sequence of numbers of tokens, of any length."""
    whole = [p for p in graph.inputs if p.dtype in ("int64", "int32") and TOKENS.match(p.name) and len(p.shape) < 3]
    return any(not all(_fixed(p)) for p in whole)


def inner_ports(graph: Graph) -> set[str]:
    """Ports of a decoder that only carry its past on."""
    if not has_past(graph) or (not reads_tokens(graph) and find_states(graph)):
        return set()
    pasts = _pasts(graph)
    return {*pasts, *(role.output for role in pasts.values())}


def find_roles(graph: Graph, time_axis: Mapping[str, int] | None = None, statics: Sequence[str] = ()) -> Roles:
    """The role of each input. Raises InputError for one that no decoder known here has."""
    readers = _readers(graph)
    outputs = {_stem(p.name): p.name for p in graph.outputs}
    roles = Roles({name: Role("static") for name in statics})
    roles.by_name.update(_pasts(graph))
    tokens = _tokens(graph, roles, time_axis or {})
    for port in graph.inputs:
        if port.name in roles.by_name:
            continue
        role = _role(port, readers.get(port.name, []), tokens)
        if role.kind == "positions" and port.name in (time_axis or {}):
            role = Role("given", role.axis)
        if role.kind == "static":
            role = Role("static", output=outputs.get(_stem(port.name), ""))
        roles.by_name[port.name] = role
    return roles


def _tokens(graph: Graph, roles: Roles, named: Mapping[str, int]) -> Port:
    """The input whose frames are tokens; its role is entered."""
    ports = [p for p in graph.inputs if p.name not in roles.by_name and p.shape]
    if named:
        port = next((p for p in ports if p.name in named and not POSITIONS.search(p.name)), None)
    else:
        port = next((p for p in ports if TOKENS.match(p.name) and len(p.shape) in (1, 2, 3)), None)
        whole = [p for p in ports if p.dtype in ("int64", "int32") and not POSITIONS.search(p.name)]
        whole = [p for p in whole if not MASK.search(p.name) and len(p.shape) in (1, 2)]
        port = port or (whole[0] if len(whole) == 1 else None)
    if port is None:
        listed = ", ".join(f"'{p.name}'" for p in ports)
        raise InputError(f"none of the inputs {listed} is known as the tokens; name it with --time-axis INPUT:AXIS.")
    axis = named.get(port.name, 1 if len(port.shape) > 1 else 0)
    roles.by_name[port.name] = Role("tokens", axis)
    return port


def _role(port: Port, readers: list[tuple[Node, int]], tokens: Port) -> Role:
    name, rank, whole = port.name, len(port.shape), port.dtype in ("int64", "int32")
    for node, place in readers:
        known = _LENGTHS.get((node.op, place))
        if known is not None and whole:
            return Role(known, 0 if known == "zero" else -1)
    if port.dtype == "bool" and rank <= 1:
        return Role("zero")
    if whole and POSITIONS.search(name) and rank in (1, 2, 3) and not re.search(r"len", name, re.IGNORECASE):
        return Role("positions", rank - 1)
    if MASK.search(name) and ENCODER.search(name):
        return Role("all")
    if MASK.search(name):
        square = rank >= 2 and not (rank == 2 and _batch(port.shape[0]))
        if rank == 2 and not square:
            return Role("ones", 1)
        if square and port.dtype in ("float32", "float16", "bool"):
            return Role("causal", rank - 1)
    if whole and rank <= 1 and ZERO.search(name):
        return Role("zero")
    if port.dtype in ("float32", "float16") and rank == 3 and (ENCODER.search(name) or all(_fixed(port))):
        return Role("static")
    if ENCODER.search(name) and rank == 4:
        return Role("static")
    raise InputError(
        f"input '{name}' {list(port.shape)} is none that a decoder is known to have; fix it with --bind {name}:VALUE, "
        f"or give it once with --static {name}."
    )


_LENGTHS = {
    ("GroupQueryAttention", 5): "last",
    ("GroupQueryAttention", 6): "length",
    ("SparseAttention", 7): "length",
    ("Attention", 6): "length",
    ("TensorScatter", 2): "zero",
    ("MultiHeadAttention", 8): "zero",
}


def _readers(graph: Graph) -> dict[str, list[tuple[Node, int]]]:
    found: dict[str, list[tuple[Node, int]]] = {}
    for node in graph.nodes:
        for place, name in enumerate(node.inputs):
            found.setdefault(name, []).append((node, place))
    return found


def _fixed(port: Port) -> list[bool]:
    """Which axes have a size of their own; that of a batch is 1."""
    return [isinstance(d, int) or _batch(d) for d in port.shape]


def _batch(dim: int | str | None) -> bool:
    return dim == 1 or (isinstance(dim, str) and dim.lower() in BATCH_NAMES)


def _pasts(graph: Graph) -> dict[str, Role]:
    """Inputs that are keys and values of earlier tokens, with the outputs that continue them."""
    outputs = {_stem(p.name): p for p in graph.outputs}
    made = {o: n for n in graph.nodes for o in n.outputs if o}
    found: dict[str, Role] = {}
    for port in graph.inputs:
        if len(port.shape) < 2 or not STATE.search(port.name) or port.dtype not in ("float32", "float16"):
            continue
        out = outputs.get(_stem(port.name))
        if out is None or len(out.shape) not in (0, len(port.shape)) or ENCODER.search(port.name):
            continue
        fixed = _fixed(port)
        if len(port.shape) not in (4, 5) or not PAST.search(port.name):
            if all(fixed):
                found[port.name] = Role("begin", output=out.name)
            continue
        open_ = [a for a, is_fixed in enumerate(fixed) if not is_fixed]
        if len(open_) == 1:
            found[port.name] = Role("past", open_[0], out.name)
        elif not open_ and (axis := _scattered(graph, port.name, made, out.name)) is not None:
            found[port.name] = Role("past", axis, out.name)
        elif not open_:
            found[port.name] = Role("begin", output=out.name)
    return found


def _scattered(graph: Graph, name: str, made: dict[str, Node], out: str) -> int | None:
    """The axis on which a cache of fixed size is written; None where it is not."""
    port = next(p for p in graph.inputs if p.name == name)
    for node in graph.nodes:
        if not node.inputs or node.inputs[0] != name:
            continue
        if node.op == "TensorScatter":
            return int(node.attrs.get("axis", -2)) % len(port.shape)
        if node.op in ("ScatterND", "ScatterElements", "Transpose"):
            return _axis_written(graph, node, port, made)
    grouped = [n for n in graph.nodes if n.op in GROUPED and name in n.inputs]
    return 2 if grouped else None


def _axis_written(graph: Graph, node: Node, port: Port, made: dict[str, Node]) -> int | None:
    if node.op == "ScatterElements":
        return int(node.attrs.get("axis", 0)) % len(port.shape)
    if node.op == "Transpose":
        turned = [n for n in graph.nodes if n.op == "ScatterND" and n.inputs[0] == node.outputs[0]]
        return int(node.attrs["perm"][0]) if turned else None
    return len(port.shape) - 2


def _stem(name: str) -> str:
    """What is left of a name without the words of direction, the same for ``past_key_values.0.key`` and
    ``present.0.key``."""
    return re.sub(r"[^a-z0-9]", "", DIRECTION.sub("", name.lower()))
