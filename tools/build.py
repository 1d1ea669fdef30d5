"""From an offline model to a proved bundle: what ``runnel inspect`` and ``runnel compile`` do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

import runnel
from runnel import targets
from runnel.compiler.bundle import write_bundle
from runnel.compiler.graph.bind import bind, set_shapes
from runnel.compiler.graph.decoder.roles import reads_tokens
from runnel.compiler.graph.model import Graph, load
from runnel.compiler.graph.rates import rates_in
from runnel.compiler.graph.states import find_states
from runnel.compiler.lowering.lower import Lowering, lower
from runnel.compiler.lowering.signals import NoKernel
from runnel.compiler.lowering.split import weight_bytes
from runnel.compiler.streaming.activations import round_activations
from runnel.compiler.streaming.align import align
from runnel.compiler.streaming.analysis import analyse
from runnel.compiler.streaming.emit import PortableForm, emit, natural_hop
from runnel.compiler.streaming.ir import StreamGraph, Tail
from runnel.compiler.streaming.kinds.cache import keeps_all, rounds
from runnel.compiler.streaming.kinds.rounded import Rounded
from runnel.compiler.streaming.optimise import optimise
from runnel.compiler.streaming.report import Report, report
from runnel.compiler.streaming.sparse import read_sparsely
from runnel.compiler.streaming.weights import round_weights
from runnel.errors import InputError, Reason, Refused
from runnel.files import writable
from runnel.runtime.processor import missing_features, processor
from runnel.tools.activity import expected_misses
from runnel.tools.caches import beyond, check_kernels, kv_record, rounded
from runnel.tools.calibrate import read_calibration, record_modes, reuse_deviation, streamed
from runnel.tools.cases import as_npy, golden_cases
from runnel.tools.codes import codes_record
from runnel.tools.cuda_form import cuda_form
from runnel.tools.expert_widths import choose_widths
from runnel.tools.generate.attach import tokenizer_entries
from runnel.tools.halves import half_record, rounded_states
from runnel.tools.licences import licences
from runnel.tools.ports import input_port, output_port
from runnel.tools.prove import Case, prove
from runnel.tools.replay import deviation
from runnel.tools.request import Request
from runnel.tools.rewritten import Rewritten
from runnel.tools.tuning.log import tuning as read_tuning

if TYPE_CHECKING:  # TVM takes seconds to import: only what makes kernels waits for it
    from runnel.compiler.codegen import Target
    from runnel.compiler.lowering.plan import NativeProgram

LAYOUT = "lanes16"
AHEAD_HOPS = 4
PREFILL = 32  # tokens of a prompt that go through the layers together


@dataclass(frozen=True)
class BundleInfo:
    """A bundle that was written and proved."""

    path: Path
    manifest: dict[str, Any]


def rewrite(model: str | Path | bytes | onnx.ModelProto, request: Request) -> Rewritten:
    """Load the model and rewrite it as a stream. Raises InputError or Refused."""
    request.say("reading the model")
    graph = load(model)
    if request.rate is None:
        request.set_rate(rates_in(graph.proto.metadata_props))
    fixed = {name: np.asarray(value) for name, value in (request.bind or {}).items()}
    if fixed:
        bind(graph, fixed)
    if request.shape:
        set_shapes(graph, {k: list(v) for k, v in request.shape.items()})
    states = dict(request.state) if request.state else {} if reads_tokens(graph) else find_states(graph)
    _check_states(graph, states)
    initial = {
        p.name: np.zeros([int(d) if isinstance(d, int) else 1 for d in p.shape], p.dtype)
        for p in graph.inputs if p.name in states.values()
    }  # fmt: skip
    request.say("rewriting it as a stream")
    if states:
        if len(request.rates) > 1:
            raise InputError("a model that brings its own states takes its inputs together; give one rate.")
        stream = analyse(graph, states=states, statics=request.static)
    else:
        stream = analyse(
            graph, time_axis=request.time_axis, window=request.window, hop=request.most_frames, modes=request.modes,
            max_frames=request.max_frames, rates=request.rates, window_mode=request.window_mode,
            padding=request.padding, kv=request.kv, statics=tuple(request.static),
        )  # fmt: skip
    optimise(stream)
    made = Rewritten(stream, graph.proto, states, fixed, initial, graph.exported, graph.half)
    if "experts" in request.modes:
        request.say("measuring what experts are worth")
        choose_widths(made, request.modes["experts"], request.calibration, request.tick_rate)
    for mode, rounding in (("weights", round_weights), ("activations", round_activations)):
        if mode in request.modes:
            rounding(stream, request.modes[mode])
    if request.sparse:
        read_sparsely(stream, request.sparse)
    if request.align:
        align(stream)
    return made


def _check_states(graph: Graph, states: Mapping[str, str]) -> None:
    outputs, inputs = {p.name for p in graph.outputs}, {p.name for p in graph.inputs}
    for out, inp in states.items():
        if out not in outputs or inp not in inputs:
            raise InputError(
                f"state {out}:{inp} names no output and input of the model; outputs are {sorted(outputs)}, inputs "
                f"{sorted(inputs)}."
            )
    if states and len(states) == len(inputs):
        raise InputError("every input of the model is a state, so there is nothing to stream.")


def inspect_model(model: str | Path | bytes | onnx.ModelProto, **options: Any) -> Report:
    """What ``runnel inspect`` prints, as data. Raises Refused with every reason at once.

    options: those of ``compile_model``.
    """
    request = Request(**options)
    rewritten = rewrite(model, request)
    result = report(rewritten.graph, hop=request.most_frames, rate=request.tick_rate)
    try:
        result.weights = weight_bytes(lower(rewritten.graph).steps)
    except NoKernel as error:
        result.native = str(error)
    return result


def compile_model(model: str | Path | bytes | onnx.ModelProto, out: str | Path, **options: Any) -> BundleInfo:
    """Compile a model into the bundle ``out`` and prove it; a failed proof leaves no bundle.

    options: target; hop (frames, or several: the most frames of one step); rate (input frames a second, for figures; or
    {input: rate} of inputs with different rates, which then come in any amounts, and hop counts ticks); align (outputs
    with different delays come out together); mode ("exact" or "reuse" of windows, and named modes such as
    "norm=running": one, several or a mapping); max_frames (the most input frames of a stream); calibration (what named
    modes and reuse are measured on: a .npy, .npz or .wav file, an array, or arrays by input name; noise where it is
    left out); reuse_threshold (the largest NRMSE that reuse may have there); padding ("zero", or "signal": where layers
    pad time, reuse reads what lies beside the window); time_axis {input: axis}; window (frames: window mode, one result
    every ``hop`` frames); state {output: input} of a model that brings its own states; static (inputs of such a model
    that a stream is given once); bind {input: value}; shape {input: dims}; weights ("int8", "int4:64", "fp16": large
    weights are rounded, a named mode); expert_bits (4.5: so many for a weight of experts in the mean, each by what it
    is worth on the calibration recording, another); activations ("int8", "fp16": what those multiply, another);
    sparse ("exact", "predicted=FILE": layers with Relu read their active neurons only); kv (what the caches of a
    decoder keep: "full" with max_frames, or a policy such as "sink=4,window=512"); backend ("native" insists on
    kernels, "onnxruntime" does without); tuning (a log of runnel tune, for schedules of kernels); tokenizer (a file for
    the bundle of a decoder of text; without it the one beside the model); progress(stage, fraction). Raises Refused,
    InputError, InternalError.
    """
    request = Request(**options)
    board = targets.load(request.target)
    target = kernel_target(board)
    folder = writable(out).parent
    rewritten = rewrite(model, request)
    graph = rewritten.graph
    if request.calibration is not None:  # a recording that does not fit is said before the work
        read_calibration(request.calibration, [*graph.inputs, *graph.statics], request.tick_rate)
    if graph.sparse:
        graph.misses = graph.misses | expected_misses(rewritten, request.calibration, request.tick_rate)
    request.say("writing the portable form")
    form = emit(graph, request.most_frames)
    native, refusal = (None, "not asked for") if request.backend == "onnxruntime" else _native(graph, request, target)
    if native is None and request.backend == "native":
        raise Refused(
            [Reason(graph.name, "native", str(refusal), "compile without backend='native' to run it on onnxruntime")]
        )
    if native is None:
        check_kernels(graph, refusal)
    figures = report(graph, hop=max(request.most_frames or 1, natural_hop(graph)), rate=request.tick_rate, form=form)
    request.say("running the offline model")
    cases = golden_cases(rewritten, figures)
    entries = _entries(rewritten, form, native, cases, board.name) | licences(model)
    entries |= tokenizer_entries(model, request.tokenizer, graph)
    manifest = _manifest(rewritten, form, native, refusal, request, board, target, figures)
    if native is not None:
        for_gpu, described = cuda_form(graph, request, board, native)
        entries |= for_gpu
        manifest["target"] |= described
    out = Path(out)
    here, absent = runs_here(target)
    backends = ["onnxruntime", "native"] if native is not None and here else ["onnxruntime"]
    backends = [b for b in backends if b in manifest["backends"]]
    axes = {port["name"]: port["axis"] for port in manifest["inputs"]}
    handle, name = tempfile.mkstemp(prefix=".proving-", suffix=".rnl", dir=folder)
    os.close(handle)
    try:
        manifest["weights"] = write_bundle(name, manifest, entries)["weights"]
        against, own, rounding, offline_cases = "the offline model", 0.0, 0.0, cases
        if graph.modes:
            against = "the portable form"
            whole = keeps_all(graph.kv)
            cases = streamed(Path(name), cases) if whole else _portable_answers(Path(name), form, manifest, cases)
            entries |= _golden(cases[0])
            own = _own_deviation(Path(name), rewritten, form, manifest, cases)
            if "activations" in graph.modes:
                rounding = max(deviation(c.outputs, o.outputs) for c, o in zip(cases, offline_cases, strict=True))
            write_bundle(name, manifest, entries)
        if rounds(graph.kv) and backends:
            time = {port["name"]: port["axis"] for port in manifest["outputs"]}
            against = "its own stream"
            cases, manifest["kv"]["deviation"] = rounded(Path(name), cases, time)
            entries |= _golden(cases[0])
        codes = codes_record(rewritten, cases) if not graph.modes else None
        longer = beyond(Path(name), rewritten, figures.macs["per_frame_streamed"]) if backends else []
        half = half_record(rewritten, offline_cases)
        states, cost = rounded_states(rewritten, half)
        manifest["proof"] = half | prove(
            Path(name), [*cases, *longer], axes, backends, request.progress, against, own, codes,
            len(form.model.graph.node), figures.latency_frames, max(rounding, cost),
            _roundings(graph) + states,
        )  # fmt: skip
        if graph.modes:
            request.say("measuring what the modes cost")
            manifest["modes"] = record_modes(
                Path(name), rewritten, request.calibration, request.tick_rate, backends[-1], offline_cases[0]
            )
        if graph.modes.keys() & {"window", "padding"}:
            manifest["window"]["nrmse"] = reuse_deviation(manifest["modes"], request.reuse_threshold, graph.name)
        if not keeps_all(graph.kv):
            manifest["proof"]["not_covered"] += "; what tokens are dropped" if longer else "; caches that are full"
        if native is not None and not here:
            manifest["proof"]["not_covered"] += f"; the native kernels, which are for {absent}: verify them there"
    finally:
        os.unlink(name)
    request.say("writing the bundle")
    return BundleInfo(out, write_bundle(out, manifest, entries))


def kernel_target(board: targets.Target) -> Target:
    """What code generation makes of a target. Raises InputError for a processor or feature that LLVM does not know."""
    from runnel.compiler.codegen import Target

    return Target.host() if board.native else Target.of(board.triple, board.cpu, board.features)


def runs_here(target: Target) -> tuple[bool, str]:
    """Whether this machine can run a target's kernels, and else what for they are."""
    arch, flags = processor()
    if arch != target.arch:
        return False, target.arch
    lacking = missing_features(target.needs, flags)
    return not lacking, f"{target.arch} with {', '.join(lacking)}"


def _roundings(graph: StreamGraph) -> int:
    """How many products have rounded activations. Sums in float16 are rounded as they grow: each counts for many."""
    found = sum(isinstance(node, Rounded) for node in graph.nodes)
    return found * 8 if graph.modes.get("activations") == "fp16" else found


def _most_frames(graph: StreamGraph, request: Request) -> int:
    """The most frames of a step: as asked for, or a chunk of a prompt for a decoder with caches."""
    return request.most_frames or (PREFILL if graph.kv is not None else 1)


def steps_of(graph: StreamGraph, low: Lowering, request: Request) -> int:
    """The most frames of a step of the native form."""
    return 1 if low.one_frame_steps else max(_most_frames(graph, request), natural_hop(graph))


def _native(graph: StreamGraph, request: Request, target: Target) -> tuple[NativeProgram | None, str | None]:
    from runnel.compiler.codegen import KernelModule, Unsupported
    from runnel.compiler.lowering.plan import Planner

    tuned = None if request.tuning is None else read_tuning(request.tuning, target)
    request.say("laying out the native program")
    try:
        low = lower(graph)
        native = Planner(low, steps_of(graph, low, request), KernelModule(target, tuned)).build(request.progress)
        if tuned is not None:
            request.say(f"{tuned.used} of {len(tuned.met)} products are made as the log says")
        return native, None
    except (NoKernel, Unsupported) as error:
        return None, str(error)


# The bundle ---------------------------------------------------------------------------------------------------------


def _entries(
    rewritten: Rewritten, form: PortableForm, native: NativeProgram | None, cases: list[Case], target: str
) -> dict[str, bytes]:
    entries: dict[str, bytes] = {}
    if native is not None:
        entries["plan"] = native.plan
        entries[f"kernels/{target}"] = native.image.code or bytes(64)  # a plan of copies alone has no kernels
        if native.weights:
            entries[f"weights/{LAYOUT}"] = native.weights
    if not keeps_all(rewritten.graph.kv):
        return entries | _golden(cases[0])
    entries["streaming.onnx"] = form.model.SerializeToString(deterministic=True)
    return entries | _golden(cases[0]) | _states(form)


def _golden(case: Case) -> dict[str, bytes]:
    inputs, outputs = case.inputs.values(), case.outputs.values()
    named = {f"golden/input_{i}.npy": as_npy(x) for i, x in enumerate(inputs)}
    return named | {f"golden/output_{i}.npy": as_npy(y) for i, y in enumerate(outputs)}


def _states(form: PortableForm) -> dict[str, bytes]:
    entries: dict[str, bytes] = {}
    for i, state in enumerate(form.states):
        values = state.pop("values")
        if state["fill"] is not None and not np.isfinite(state["fill"]):
            state["fill"] = str(state["fill"])  # JSON has no infinity
        state["initial"] = None
        if values is not None:
            state["initial"] = f"states/{i}.npy"
            entries[state["initial"]] = as_npy(values)
    return entries


def _portable_answers(path: Path, form: PortableForm, manifest: dict[str, Any], cases: list[Case]) -> list[Case]:
    """The cases with the answers of a portable form, in a bundle of its own at ``path``."""
    entries = {"streaming.onnx": form.model.SerializeToString(deterministic=True)} | _states(form)
    changed = {"hop": form.hop, "weights": {}, "backends": ["onnxruntime"], "onnx": form.manifest(), "kernels": []}
    write_bundle(path, manifest | changed | {"native_refusal": "for the proof alone"}, entries)
    return streamed(path, cases)


def _own_deviation(
    path: Path, rewritten: Rewritten, form: PortableForm, manifest: dict[str, Any], cases: list[Case]
) -> float:
    """How far the portable form is from itself at another hop, relative to the output's range."""
    other = emit(rewritten.graph, 3 * form.hop)
    if other.hop == form.hop:
        return 0.0
    again = _portable_answers(path, other, manifest, cases)
    return max(deviation(a.outputs, c.outputs) for a, c in zip(again, cases, strict=True))


def _weights(native: NativeProgram | None) -> dict[str, Any]:
    return {"layout": LAYOUT, "segments": native.segments} if native is not None and native.weights else {}


def _manifest(rewritten: Rewritten, form: PortableForm, native: NativeProgram | None, refusal: str | None,
              request: Request, board: targets.Target, target: Target, figures: Report) -> dict[str, Any]:  # fmt: skip
    graph = rewritten.graph
    hop = native.hop if native is not None else form.hop
    latencies = {o["name"]: o["latency_frames"] for o in figures.outputs}
    outputs = []
    for name, value in graph.outputs.items():
        stream = value.stream if isinstance(value, Tail) else value
        outputs.append(output_port(stream, name, latencies[name], request.tick_rate))
    window = (
        None
        if graph.window is None
        else {"frames": graph.window[0], "hop": graph.window[1], "mode": request.window_mode, "nrmse": None}
    )
    shortest = 1 if rewritten.states or graph.window else graph.shortest
    clock: dict[str, Any] = {
        "rate": request.tick_rate, "shortest": shortest, "max_frames": graph.max_frames,
        "lengths": [graph.remainders[0], list(graph.remainders[1])],
        "max_frames_reason": graph.max_frames_reason,
    }  # fmt: skip
    if len(graph.inputs) > 1 and request.rates:  # an input may be a second ahead, or a few steps
        clock["ahead"] = max(AHEAD_HOPS * hop, ceil(request.tick_rate or 0))
    return {
        "name": Path(graph.name).stem,
        "target": {
            "name": board.name, "arch": target.arch, "os": board.os, "features": list(target.needs),
            "glibc": board.glibc, "page_bytes": board.page_kib << 10,
        },
        "weights": _weights(native),
        "hop": hop,
        "clock": clock,
        "inputs": [input_port(s, request.rates) for s in [*graph.inputs, *graph.statics]],
        "outputs": outputs,
        "latency_frames": figures.latency_frames,
        "mode": figures.mode,
        "window": window,
        "backends": ["native"] * (native is not None) + ["onnxruntime"] * keeps_all(graph.kv),
        "native_refusal": refusal,
        "onnx": form.manifest() if keeps_all(graph.kv) else None,
        "proof": {},
        "modes": {},
        "kv": kv_record(graph),
        "macs": figures.macs | {
            "receptive_field": figures.receptive_field, "look_ahead": figures.look_ahead,
            "natural_hop": figures.natural_hop, "endless": figures.endless,
        },
        "kernels": native.kernels if native is not None else [],
        "made_by": f"runnel {runnel.__version__}",
    }  # fmt: skip
