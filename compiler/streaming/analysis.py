"""From an offline graph to the stream graph: walks the nodes, applies each op's rule, collects every refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from runnel.compiler.graph.decoder.canonical import whole_sequence
from runnel.compiler.graph.decoder.roles import find_roles, has_past
from runnel.compiler.graph.fold import fold, fold_node, fold_shapes, probe_shapes
from runnel.compiler.graph.group_norm import keep_axes
from runnel.compiler.graph.model import Graph, Node
from runnel.compiler.graph.plain_experts import plain_mixtures
from runnel.compiler.graph.quantised import integer_form
from runnel.compiler.graph.rates import ticks
from runnel.compiler.graph.time_axis import find_time_axis
from runnel.compiler.streaming import rules as _rules  # noqa: F401  (registers them)
from runnel.compiler.streaming.attention.cached import ranking, with_caches
from runnel.compiler.streaming.attention.cuts import shapes_by_length
from runnel.compiler.streaming.attention.fused import take_apart
from runnel.compiler.streaming.attention.pattern import ATTEND
from runnel.compiler.streaming.attention.pattern import find as find_attention
from runnel.compiler.streaming.attention.sinks import without_sinks
from runnel.compiler.streaming.branches import Decided, EachFrame, check_branch, with_branches
from runnel.compiler.streaming.count import Count, CountTooLong
from runnel.compiler.streaming.decisions import by_decision, check_length, why
from runnel.compiler.streaming.deviation import deviation
from runnel.compiler.streaming.ir import (
    STACKED,
    Deviation,
    Operand,
    Pointwise,
    Poisoned,
    Source,
    Stream,
    StreamFact,
    StreamGraph,
    StreamNode,
    Tail,
    Weights,
)
from runnel.compiler.streaming.kinds.cache import CachedAttend
from runnel.compiler.streaming.kinds.once import last_frames
from runnel.compiler.streaming.kinds.statics import add_static, with_statics
from runnel.compiler.streaming.lengths import same_length
from runnel.compiler.streaming.ports import add_feedback, add_source, collect_outputs, most_frames
from runnel.compiler.streaming.registry import FROM_LENGTH, RULES, Refusal, has_rule, missing_rule
from runnel.compiler.streaming.rules.cross import to_statics
from runnel.compiler.streaming.rules.elementwise import BINARY
from runnel.compiler.streaming.rules.join import joined_heads
from runnel.compiler.streaming.rules.positions import with_extents
from runnel.compiler.streaming.running import mixed
from runnel.compiler.streaming.symbolic import SYMBOLIC_OPS, evaluate_symbolic, is_symbolic
from runnel.compiler.streaming.unruled import all_reasons, ops_without_rule, reads
from runnel.compiler.streaming.weighted import held_back
from runnel.errors import InputError, InternalError, Reason, Refused
from runnel.kv import parse as parse_kv

SHORT_PROBE = 5
PROBE_LENGTHS = [64, 257, 1000, 4000, 16000, 64000, 480, 80, 32, 8, 4, 2, *range(97, 113), 16]


Value = Stream | np.ndarray | Tail | Deviation | Weights | Poisoned


class Analysis:
    """The state of one walk. Rules read values and shapes from it and add stream nodes to it."""

    def __init__(
        self, graph: Graph, axes: Mapping[str, int], window: tuple[int, int] | None,
        modes: Mapping[str, str] | None = None, max_frames: int | None = None, kv: str | None = None,
    ) -> None:  # fmt: skip
        self.graph = graph
        self.kv = kv
        """What caches of keys and values keep; None where attention keeps its own past."""
        self.masks: dict[Any, Any] = {}
        """What masks and biases before softmaxes say, by what makes them alike."""
        self.modes = dict(modes or {})
        """Named modes that the user allows (modes.py)."""
        self.max_frames = max_frames
        """The most input frames that the user will ever push, where stated."""
        self.limits: list[tuple[int, str]] = []
        """Input frames after which the program must stop, with the reason (a positional table ends)."""
        self.used_modes: dict[str, str] = {}
        """The named modes that a node needed: a rule puts them here, {name: value}, when it uses one."""
        self.mode_nodes: dict[str, list[str]] = {}
        """The nodes that each used mode made possible, as "Op 'name'"."""
        self.decided: list[tuple[str, str]] = []
        """(op, "exact", a used mode such as "norm=running", "refused", or "undecided") of each node."""
        self.axes = dict(axes)
        self.window = window
        self.nodes: list[StreamNode] = []
        self.values: dict[str, Value] = dict(graph.constants)
        self.shapes: dict[str, tuple[tuple[int, ...], str]] = {}
        self.probe_length = 0
        self.reasons: list[Reason] = []
        self.shortest = window[0] if window is not None else 1
        """The fewest input frames that every layer so far takes."""
        self.remainders: tuple[int, tuple[int, ...]] = (1, (0,))
        """(period, remainders by it of the lengths that every layer so far takes)."""
        self.spreads: dict[Any, Stream] = {}
        """Static values as frames of other streams."""
        self._ends: dict[Tail, Stream] = {}
        self.running: dict[Stream, Stream] = {}
        """The running forms of values that are known at the end (running.py)."""
        self.extents: dict[str, Stream] = {}
        """Lengths as values that are known at the end."""

    # What rules use -------------------------------------------------------------------------------------------------

    def value(self, name: str) -> Value | None:
        """The value of an input; None where the optional input is absent."""
        return self.values[name] if name else None

    def stream(self, node: Node, i: int = 0) -> Stream:
        """Input i, which must be a stream."""
        value = self.values[node.inputs[i]]
        if is_symbolic(value):
            raise Refusal("computes with the length of the stream, which is known only at its end",
                          "compute with positions, or with the length after the stream has ended")  # fmt: skip
        if not isinstance(value, Stream):
            raise Refusal(
                f"expects data that depends on time as its input {i}", "fold the constant part before exporting"
            )
        return value

    def constant(self, node: Node, i: int, what: str) -> np.ndarray | None:
        """Input i as a constant, None if absent; refuses when it depends on time."""
        if i >= len(node.inputs) or not node.inputs[i]:
            return None
        value = self.values[node.inputs[i]]
        if not isinstance(value, np.ndarray):
            raise Refusal(f"its {what} depends on time", f"export the model with a constant {what}")
        return value

    def emit(
        self, node: Node, kind: type[StreamNode], inputs: Sequence[Operand], axis: int, final: Count, length: Count,
        output: int = 0, shape: tuple[int | None, ...] | None = None, op: str | None = None, suffix: str = "",
        **fields: Any,
    ) -> Stream:  # fmt: skip
        """Add a stream node and return its output, whose shape comes from the probe unless given."""
        name = node.outputs[output] + suffix
        check_length(final, length)
        if shape is None:
            probed, dtype = self.shapes[node.outputs[output]]
            if axis != STACKED:
                if probed[axis] != length(self.probe_length):
                    raise InternalError(
                        f"{node.op} '{node.name}': the rule says {length(self.probe_length)} frames for "
                        f"{self.probe_length} "
                        f"input frames, the model makes {probed[axis]}; please report this model"
                    )
                shape = tuple(None if a == axis else d for a, d in enumerate(probed))
            else:
                shape = probed
        else:
            dtype = next(x.dtype for x in inputs if isinstance(x, Stream))
        clock = next((x.fact.clock for x in inputs if isinstance(x, Stream)), "")
        stream = Stream(name, shape, dtype, StreamFact(axis, final, length, clock))
        made = kind(node.name, op or node.op, list(inputs), stream, **fields)
        if window := made.least_frames:
            x = made.streams[0]
            self.shortest = max(self.shortest, x.fact.length.first(window - 1))
        stream.node = made
        self.nodes.append(made)
        return stream

    def pointwise(
        self, node: Node, inputs: Sequence[Operand], axis: int, attrs: dict[str, Any] | None = None, output: int = 0,
        op: str | None = None, suffix: str = "", shape: tuple[int | None, ...] | None = None,
    ) -> Stream:  # fmt: skip
        """A node whose output frame n needs frame n of its inputs only; refuses inputs of different lengths."""
        streams = [x for x in inputs if isinstance(x, Stream)]
        final, length = streams[0].fact.final, streams[0].fact.length
        for other in streams[1:]:
            if not same_length(self, other.fact.length, length):
                raise Refusal(
                    f"its inputs have different lengths, {length} and {other.fact.length} frames for T input frames",
                    "pad or slice them to the same length",
                )
            final = final.minimum_with(other.fact.final)
        return self.emit(node, Pointwise, inputs, axis, final, length, output, shape, op, suffix,
                         attrs=dict(node.attrs if attrs is None else attrs), domain=node.domain)  # fmt: skip

    def _last(self, tail: Tail, node: Node) -> Stream:
        """The frames of a tail as a value that ops can compute with."""
        if tail not in self._ends:
            suffix = f"/{tail.stream.name}/last{tail.start}"
            self._ends[tail] = last_frames(self, node, tail.stream, tail.start, tail.stop, suffix=suffix)
        return self._ends[tail]

    # The walk -------------------------------------------------------------------------------------------------------

    def visit(self, node: Node) -> None:
        """Apply the node's rule; a refusal is collected and its outputs are poisoned."""
        inputs = [self.values[i] for i in reads(node) if i in self.values]
        if any(isinstance(v, Poisoned) for v in inputs):
            self.decided.append((node.op, "undecided" if node.op in RULES else "refused"))
            self._poison(node)
            return
        before, self.used_modes = self.used_modes, {}
        tails = {n: v for n in reads(node) if isinstance(v := self.values.get(n), Tail)}
        try:
            self.values.update({n: self._last(tail, node) for n, tail in tails.items()})
            results = self._results(node, [self.values[i] for i in reads(node) if i in self.values])
        except (Refusal, CountTooLong) as error:
            self.used_modes = before
            cause = getattr(error, "node", None)
            if cause is not None:
                self.decided[self.decided.index((cause.op, "exact"))] = (cause.op, "refused")
            self.decided.append((node.op, "refused" if cause is None else "undecided"))
            self.reasons.append(why(node, error))
            self._poison(node)
            return
        finally:
            self.values.update(tails)
        used, self.used_modes = self.used_modes, before | self.used_modes
        for mode in used:
            self.mode_nodes.setdefault(mode, []).append(f"{node.op} '{node.name}'")
        if any(isinstance(v, (Stream, Tail)) for v in inputs):
            self.decided.append((node.op, ", ".join(f"{k}={v}" for k, v in used.items()) or "exact"))
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                self.values[name] = result

    def _results(self, node: Node, inputs: list[Value]) -> list[Value]:
        if any(isinstance(v, (Deviation, Weights)) for v in inputs):
            return held_back(self, node)
        streams = [v for v in inputs if isinstance(v, Stream)]
        if node.op in FROM_LENGTH and not streams and any(is_symbolic(v) for v in inputs):
            made = FROM_LENGTH[node.op](self, node)
            if made is not None:
                return made
        if (
            node.op in SYMBOLIC_OPS
            and (node.op in ("Shape", "Size") or any(is_symbolic(v) for v in inputs))
            and (node.op in ("Shape", "Size") or not streams)
        ):
            try:
                return list(evaluate_symbolic(self, node))
            except Refusal:
                if np.dtype(self.shapes[node.outputs[0]][1]).kind != "f":
                    raise
                return with_extents(self, node)
        if node.op == "If" and isinstance(known := self.values.get(node.inputs[0]), np.ndarray):
            raise Decided(node, known)
        if any(s.fact.static for s in streams):
            if node.op == ATTEND and (heard := to_statics(self, node)) is not None:
                return heard
            return with_statics(self, node, BINARY)
        if any(is_symbolic(v) for v in inputs) and all(s.fact.once for s in streams):
            return with_extents(self, node)
        if not streams:
            return self._fold_one(node)
        return self.dispatch(node)

    def dispatch(self, node: Node) -> list[Value]:
        """The results of a node that reads frames."""
        streams = [v for i in reads(node) if isinstance(v := self.values.get(i), Stream)]
        if streams and all(s.axis == STACKED for s in streams):
            if node.op == "If":
                raise EachFrame(node)
            if any(isinstance(v, onnx.GraphProto) for v in node.attrs.values()):
                raise missing_rule(node.op)
            return self.whole_frames(node)
        if any(s.fact.once for s in streams):
            if (joined := joined_heads(self, node)) is not None:
                return joined
            apart = deviation(self, node)
            return mixed(self, node) if apart is None else [apart]
        if not has_rule(node):
            raise missing_rule(node.op)
        return RULES[node.op](self, node)

    def whole_frames(self, node: Node) -> list[Value]:
        """The results of a node whose operands are whole tensors."""
        operands: list[Operand] = []
        for name in node.inputs:
            value = self.value(name)
            if is_symbolic(value):
                raise Refusal("uses the length of the stream inside a window", "export the model with fixed shapes")
            operands.append(value)  # type: ignore[arg-type]
        node = check_branch(node, operands, self.shapes)
        results: list[Value] = []
        for i, name in enumerate(node.outputs):
            results.append(self.pointwise(node, operands, STACKED, output=i) if name else Poisoned())
        if len(node.outputs) > 1:
            for i, result in enumerate(results):
                if isinstance(result, Stream):
                    assert isinstance(result.node, Pointwise)
                    result.node.attrs |= {"runnel.output": i, "runnel.outputs": len(node.outputs)}
        return results

    def _fold_one(self, node: Node) -> list[Value]:
        known = {i: v for i in node.inputs if isinstance(v := self.values.get(i), np.ndarray)}
        return [Poisoned() if v is None else v for v in fold_node(self.graph, node, known)]

    def _poison(self, node: Node) -> None:
        for name in node.outputs:
            if name:
                self.values[name] = Poisoned()


@with_branches
def analyse(
    graph: Graph,
    *,
    time_axis: Mapping[str, int] | None = None,
    window: int | None = None,
    hop: int | None = None,
    states: Mapping[str, str] | None = None,
    initial: Mapping[str, np.ndarray] | None = None,
    modes: Mapping[str, str] | None = None,
    max_frames: int | None = None,
    rates: Mapping[str, float] | None = None,
    statics: Sequence[str] = (),
    window_mode: str = "exact",
    padding: str = "zero",
    kv: str | None = None,
) -> StreamGraph:
    """Rewrite an offline graph as a stream graph (or wrap a model that brings its own ``states``: {output: input}).

    modes: named modes that may be used where a node cannot be exact (modes.py). max_frames: the most input frames of a
    stream, for what would grow with it. rates: frames a second of inputs with different rates; the stream's frames are
    then ticks (graph/rates.py). statics: inputs that a model with states reads at every step but that do not change;
    elsewhere an input without time is static. window_mode: "exact" or "reuse". padding: "signal" for reuse with
    signal padding. kv: what the caches of a decoder keep ("full", or a policy that bounds them): its attentions to
    their own past become ``CachedAttend``. Raises Refused with every reason at once, InputError where the time axis is
    not clear or the model does not run.
    """
    given: tuple[str, ...] = ()
    if window is None and not states and (kv is not None or has_past(graph)):
        roles = find_roles(graph, time_axis, statics)
        whole_sequence(graph, roles)
        kv, time_axis, given = kv or "full", None, tuple(roles.of("given"))
    integer_form(graph)
    fold(graph)
    plain_mixtures(graph)
    if states:
        axes = dict.fromkeys((p.name for p in graph.inputs if p.name not in statics), STACKED)
        fold_shapes(graph, {}, 1)
    else:
        axes = find_time_axis(graph, time_axis, window, rates)
        if window is not None:
            from runnel.compiler.streaming.windows.analysis import analyse_windows

            return analyse_windows(graph, axes, (window, hop or 1), window_mode, padding)
    per_tick = ticks(rates)[0] if rates else {}
    longest = max(per_tick.values(), default=1)
    lengths = [1] if states else [-(-n // longest) for n in PROBE_LENGTHS]
    probe_axes = {} if states else axes
    if not states:
        take_apart(graph, lambda: probe_shapes(graph, axes, lengths, per_tick)[1], kv is not None)
        keep_axes(graph, lambda: probe_shapes(graph, axes, lengths, per_tick)[1])
    analysis = Analysis(graph, axes, None, modes, max_frames, kv)
    early = [] if states else ops_without_rule(graph, axes)
    try:
        analysis.probe_length, analysis.shapes = probe_shapes(graph, probe_axes, lengths, per_tick)
    except InputError:
        if early:
            raise Refused(early) from None
        raise
    feedback = {inp: out for out, inp in (states or {}).items()}
    for port in graph.inputs:
        if port.name in feedback:
            add_feedback(analysis, port, feedback[port.name], (initial or {}).get(port.name))
        elif port.name in axes:
            add_source(analysis, port, axes[port.name], per_tick.get(port.name, 1))
        else:
            add_static(analysis, port)
    retain = parse_kv(kv).retain if kv is not None else ""
    found, sinks = without_sinks(graph) if kv is not None else (graph, {})
    found = find_attention(found) if window is None and not states else graph
    if kv is not None and not states:
        both = (analysis.probe_length, SHORT_PROBE)
        other = probe_shapes(graph, axes, [SHORT_PROBE], per_tick)[1]
        found = with_caches(found, graph, shapes_by_length(analysis.shapes, other, both), sinks, retain, given)
    for node in found.nodes:
        analysis.visit(node)
    graph.outputs = [p for p in graph.outputs if p.name not in ranking(graph, retain)]
    outputs = collect_outputs(analysis, graph)
    if analysis.reasons:
        raise Refused(all_reasons(graph, analysis.reasons, early), by_decision(analysis.decided))
    inputs = [n.output for n in analysis.nodes if isinstance(n, Source)]
    carried = {name: stream for name in states or {} if isinstance(stream := outputs.pop(name), Stream)}
    limit, why = most_frames(analysis)
    return StreamGraph(
        graph.name, inputs, outputs, analysis.nodes, graph.opset, analysis.window, carried, shortest=analysis.shortest,
        remainders=analysis.remainders, max_frames=limit, max_frames_reason=why, modes=analysis.used_modes,
        mode_nodes=analysis.mode_nodes, decided=analysis.decided,
        kv=kv if any(isinstance(n, CachedAttend) for n in analysis.nodes) else None,
    )  # fmt: skip
