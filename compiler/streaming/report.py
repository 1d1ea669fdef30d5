"""What a stream graph costs and how late it is: receptive field, latency, multiply-adds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, lcm
from typing import Any

import numpy as np

from runnel.compiler.streaming.count import MAX_TABLE, Count, Ended
from runnel.compiler.streaming.decisions import by_decision, counted
from runnel.compiler.streaming.emit import PortableForm, emit, natural_hop
from runnel.compiler.streaming.ir import STACKED, Reach, Source, Stream, StreamGraph, Tail


def reaches(graph: StreamGraph, source: Stream | None = None) -> dict[Stream, Reach]:
    """The reach of every stream. source: of one input alone, and of the streams that depend on it."""
    found: dict[Stream, Reach] = {}
    for node in graph.nodes:
        parts = [found[s] for s in node.streams if s in found]
        if parts or (not node.streams and node.op != "Static" and source in (None, node.output)):
            found[node.output] = node.reach(Reach.around(parts))
    return found


def fields(graph: StreamGraph, outputs: list[Stream]) -> dict[str, dict[str, Any]]:
    """Receptive field and look-ahead of the outputs in each input, in that input's own frames."""
    result = {}
    for source in graph.inputs:
        found = reaches(graph, source)
        parts = [found[s] for s in outputs if s in found]
        if not parts:
            continue
        whole, rate = Reach.around(parts), source.fact.rate
        first, last = ceil(whole.first * rate), ceil(whole.last * rate)
        result[source.name] = {
            "receptive_field": last - first + 1, "look_ahead": max(0, last), "endless": whole.endless,
        }  # fmt: skip
    return result


def latency(graph: StreamGraph, stream: Stream, made: Count | None = None) -> int:
    """The most input frames between the frame that an output frame lines up with and the frame after which it is
    given out. made: where that is not when it is made."""
    fact = stream.fact
    made = made or fact.made
    if made.gain <= 0:
        return 0
    count = made.gain * 2 + made(made.start)
    rate = fact.rate
    if graph.window is not None and stream.axis == STACKED:
        width, hop = graph.window
        return max(made.first(n) - (n * hop + width) for n in range(min(count, 4096)))
    first = made(made.start)
    return max(
        max(0, made.first(n) - (n * rate.denominator // rate.numerator + 1)) for n in range(first, first + made.gain)
    )


@dataclass
class Report:
    """What ``runnel inspect`` prints. Frames are input frames; rate in frames a second, or None.

    modes: {named mode: {"value", "nodes"}} of those that were used. decided: {"exact" or the mode: {op: nodes}}.
    """

    name: str
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    ops: dict[str, int]
    natural_hop: int
    receptive_field: int
    endless: bool
    look_ahead: int
    latency_frames: int
    state_bytes: int
    macs: dict[str, float]
    mode: str
    rate: float | None = None
    native: str | None = None
    modes: dict[str, dict[str, Any]] = field(default_factory=dict)
    decided: dict[str, dict[str, int]] = field(default_factory=dict)
    max_frames: int | None = None
    max_frames_reason: str = ""
    notes: list[str] = field(default_factory=list)
    experts: list[dict[str, Any]] = field(default_factory=list)  # of several widths: their node, bits, bytes
    weights: dict[str, int] = field(default_factory=dict)  # bytes: streamed, that a step reads; tables, of rows

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def _longest(self) -> list[str]:
        if self.max_frames is None:
            return []
        return [f"  longest stream       {self.max_frames} frames: {self.max_frames_reason}"]

    def text(self) -> str:
        """A page for a person."""
        ms = "" if self.rate is None else f" ({1000 * self.latency_frames / self.rate:.1f} ms)"
        past = " and, through recurrence, everything before" if self.endless else ""
        used = ", ".join(f"{name}={mode['value']}" for name, mode in self.modes.items())
        how = f"streams, but not exactly: {used}" if used else "streams exactly"
        lines = [f"{self.name}: {how} ({self.mode} mode)"]
        for port in self.inputs + self.outputs:
            shape = ", ".join("time" if d is None else str(d) for d in port["shape"])
            lines.append(f"  {port['kind']:6} {port['name']}  {port['dtype']} [{shape}]{self._place(port)}")
        unit = "ticks" if any(port.get("per_tick", 1) > 1 for port in self.inputs) else "frames"
        lines += [
            f"  smallest hop         {self.natural_hop} {unit}",
            f"  receptive field      {self.receptive_field} {unit}{past}",
            f"  look-ahead           {self.look_ahead} {unit}",
            f"  latency              {self.latency_frames} {unit}{ms}",
            f"  state                {self.state_bytes} bytes",
            *self._longest(),
            self._work(),
            f"  native kernels       {'yes' if self.native is None else 'no: ' + self.native}",
        ]
        if not self.modes:
            lines.append(f"  ops                  {counted(self.ops)}: all exact")
        for how, ops in self.decided.items() if self.modes else ():
            lines.append(f"  {how:20} {counted(ops)}")
        for name, mode in self.modes.items():
            lines.append(f"  not exact            {name}={mode['value']} in {', '.join(mode['nodes'])}")
        lines += [f"  experts              {layer['node']}: {layer['summary']}" for layer in self.experts]
        return "\n".join(lines + [f"  note: {n}" for n in self.notes])

    def _work(self) -> str:
        naive = self.macs.get("per_hop_naive")
        if naive is None:
            streamed, windowed = (self.macs[f"per_frame_{how}"] for how in ("streamed", "windowed"))
            saving = self.macs["saving"]
            said = f"  multiply-adds/frame  {streamed:.0f} streamed, {windowed:.0f} re-running windows ({saving:.0f} x)"
            worst = self.macs.get("worst_frame", streamed)
            return f"{said}\n  {'':20} {worst:.0f} in the worst of {self.natural_hop}" if worst > streamed else said
        parts = [f"naive {naive:.0f}"]
        for mode in ("exact", "reuse"):
            if (value := self.macs.get(f"per_hop_{mode}")) is not None:
                parts.append(f"{mode} {value:.0f} ({naive / max(value, 1):.2f} x less)")
        return "  multiply-adds/hop    " + ", ".join(parts)

    def _place(self, port: dict[str, Any]) -> str:
        """Where a port of several stands in time."""
        if port["kind"] == "input" and "receptive_field" in port:
            past = " and everything before" if port["endless"] else ""
            field = f"  {port['per_tick']} a tick, receptive field {port['receptive_field']} of its frames{past}"
            return f"{field}, look-ahead {port['look_ahead']}"
        if port["kind"] == "output" and len(self.outputs) > 1 and port.get("ratio"):
            over = "" if port["ratio"][1] == 1 else f"/{port['ratio'][1]}"
            seconds = "" if self.rate is None else f" ({1000 * port['latency_frames'] / self.rate:.1f} ms)"
            return f"  {port['ratio'][0]}{over} a frame of the input, {port['latency_frames']} late{seconds}"
        return ""


def macs(graph: StreamGraph, field_frames: int, hop: int, rate: float | None) -> dict[str, float]:
    """Multiply-adds per input frame, streamed and re-running a window of the receptive field every hop.

    worst_frame: those of the frame that completes most, where strides make frames unlike. In window mode also those of
    a hop: per_hop_naive (the window again), per_hop_exact and, where possible, per_hop_reuse.
    """
    per_frame = float(sum(Fraction(n.macs) * n.output.fact.rate for n in graph.nodes))
    window = field_frames + hop - 1
    windowed = per_frame * window / hop
    if graph.window is not None:
        window, hop = graph.window
        windowed = graph.window_macs["naive"] / hop
    result = {
        "per_frame_streamed": per_frame, "per_frame_windowed": windowed, "window_frames": float(window),
        "hop_frames": float(hop),
        "saving": windowed / per_frame if per_frame else 1.0, "worst_frame": worst_frame(graph),
    }  # fmt: skip
    result |= {f"per_hop_{mode}": value for mode, value in graph.window_macs.items()}
    if rate:
        result |= {"per_second_streamed": per_frame * rate, "per_second_windowed": windowed * rate}
    return result


def worst_frame(graph: StreamGraph) -> float:
    """Multiply-adds of the input frame at which most is made, once all layers run and before the end."""
    counts = [(n.macs, n.output.fact.made) for n in graph.nodes if n.macs and not isinstance(n.output.fact.made, Ended)]
    if not counts:
        return 0.0
    start, period = max(c.start for _, c in counts), lcm(*(c.period for _, c in counts))
    if start + period >= MAX_TABLE:  # each layer at its worst: no less than all together
        return float(sum(m * int((c.later(1) - c).largest() or 0) for m, c in counts))
    work = sum(float(m) * np.diff(c.table(start + period + 1)[start:]) for m, c in counts)
    return float(np.max(work))


def report(
    graph: StreamGraph, *, hop: int | None = None, rate: float | None = None, form: PortableForm | None = None
) -> Report:
    """Inspect a stream graph. form: its portable form for that hop, where it is there already."""
    form = form or emit(graph, hop)
    found = reaches(graph)
    streams = {k: (v.stream if isinstance(v, Tail) else v) for k, v in graph.outputs.items()}
    parts = [found[s] for s in streams.values() if s in found]
    first = min((p.first for p in parts), default=Fraction(0))
    last = max((p.last for p in parts), default=Fraction(0))
    frames = ceil(last) - ceil(first) + 1
    step = hop or natural_hop(graph)
    outputs: list[dict[str, Any]] = []
    for name, stream in streams.items():
        late = 0 if isinstance(graph.outputs[name], Tail) else latency(graph, stream, graph.aligned.get(name))
        described = {"kind": "output", "name": name, "dtype": stream.dtype, "shape": list(stream.shape)}
        described |= {} if stream.fact.once else {"ratio": list(stream.fact.rate.as_integer_ratio())}
        outputs.append(described | {"latency_frames": late})
    own = fields(graph, list(streams.values())) if len(graph.inputs) > 1 else {}
    inputs: list[dict[str, Any]] = [
        {"kind": "input", "name": s.name, "dtype": s.dtype, "shape": list(s.shape), "per_tick": int(s.fact.rate)}
        | own.get(s.name, {})
        for s in graph.inputs
    ]
    inputs += [
        {"kind": "static", "name": s.name, "dtype": s.dtype, "shape": list(s.shape), "per_tick": 0}
        for s in graph.statics
    ]
    state = sum(int(np.prod(s["shape"], dtype=np.int64)) * np.dtype(s["dtype"]).itemsize for s in form.states)
    return Report(
        name=graph.name,
        inputs=inputs,
        outputs=outputs,
        ops=dict(Counter(n.op for n in graph.nodes if not isinstance(n, Source))),
        natural_hop=natural_hop(graph),
        receptive_field=frames,
        endless=any(p.endless for p in parts),
        look_ahead=max(0, ceil(last)),
        latency_frames=max((o["latency_frames"] for o in outputs), default=0),
        state_bytes=state,
        macs=macs(graph, frames, step, rate),
        mode="sequence" if graph.window is None else "window",
        rate=rate,
        modes={k: {"value": v, "nodes": graph.mode_nodes.get(k, [])} for k, v in sorted(graph.modes.items())},
        decided=by_decision(graph.decided),
        max_frames=graph.max_frames,
        max_frames_reason=graph.max_frames_reason,
        notes=list(graph.notes),
        experts=list(graph.experts),
    )
