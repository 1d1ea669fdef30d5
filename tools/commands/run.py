"""Stream an input through a bundle in chunks, as a microphone would deliver it, and say what it took.

Several bundles in a row feed each other: an STFT, a model of spectra, the inverse STFT.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import runnel
from runnel.errors import InputError
from runnel.runtime.bundle import Bundle
from runnel.runtime.chain import Chain
from runnel.runtime.io import Sink, open_sink, open_source
from runnel.runtime.program import Port
from runnel.tools import emulate, runtime_options, terminal
from runnel.tools.deadline import forecast
from runnel.tools.deploy import remote
from runnel.tools.facts import mode_facts
from runnel.tools.measure import Outputs, Timing, by_name, drive
from runnel.tools.units import frame_count, named_file, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", nargs="+", help="the bundle, m.rnl; several in a row feed each other")
    parser.add_argument(
        "--in", dest="source", required=True, metavar="URI", help="wav:PATH, npy:PATH, or - (PCM s16le)"
    )
    parser.add_argument(
        "--out", dest="sinks", action="append", default=[], metavar="[OUTPUT=]URI",
        help="where an output goes (the first one, unless named); may be given for each output",
    )  # fmt: skip
    parser.add_argument("--backend", default="native", help="native (default) or onnxruntime")
    parser.add_argument("--chunk", metavar="N", help="frames, a time such as 10ms, or all (default: 10ms, or the hop)")
    parser.add_argument(
        "--rate", type=positive, metavar="HZ", help="the rate of raw PCM, or of what does not say its own"
    )
    parser.add_argument(
        "--set", dest="statics", type=named_file, action="append", default=[], metavar="INPUT=VALUE",
        help="a static input: a number, or a .npy file; may be repeated",
    )  # fmt: skip
    runtime_options.add_arguments(parser)
    parser.add_argument("--realtime", action="store_true", help="take the input no faster than it was recorded")
    parser.add_argument("--on-nonfinite", choices=("error", "zero", "reset"), default="error", help="what NaN does")
    parser.add_argument("--on", type=emulate.place, metavar="qemu|ssh://BOARD", help=emulate.HELP)


def main(args: argparse.Namespace) -> int:
    if args.on:
        return _emulated(args) if args.on == "qemu" else _on_board(args)
    runtime = runtime_options.runtime(args)
    programs = [runnel.load(path, backend=args.backend, runtime=runtime) for path in args.bundle]
    for loaded in programs:
        runtime_options.say_mode(loaded)
    program = programs[0] if len(programs) == 1 else Chain(programs)
    timed = program.timed
    if len(timed) != 1:
        known = ", ".join(port.name for port in timed)
        raise InputError(f"run feeds one input and this model has {known}; push arrays from Python, by input name.")
    own_rate = None if program.rate is None else round(program.rate)
    source = open_source(args.source, timed[0], own_rate, args.rate, args.on_nonfinite)
    rate = own_rate or source.rate
    if args.realtime and rate is None:
        raise InputError("--realtime needs the rate of the input; give --rate.")
    out_rate = _rate_after(program, rate)
    chunk = _chunk(args.chunk, rate, program.hop)
    expected = None if rate is None or chunk is None else forecast(
        programs, args.bundle[0], chunk / rate, args.io, args.io_threads
    )  # fmt: skip
    if expected is not None:
        print(f"storage: {expected}", file=sys.stderr)
        if args.realtime and not expected.in_time and args.slow != "warn":
            raise InputError(
                "storage is too slow for --realtime; give more --ram, compile with a larger hop, or say --slow warn "
                "--patience S to go on."
            )
    with ExitStack() as stack:
        sinks: dict[str, Sink] = {}
        for text in args.sinks:
            port, uri = _named_output(text, program.outputs)
            if port.name in sinks:
                raise InputError(f"output '{port.name}' is given two places; name one.")
            sinks[port.name] = stack.enter_context(open_sink(uri, port, out_rate))

        def emit(values: Outputs) -> None:
            arrays = by_name(values, program.outputs)
            for name, sink in sinks.items():
                if name in arrays:
                    sink.write(arrays[name])

        stream = program.stream(on_nonfinite=args.on_nonfinite, inputs=dict(args.statics))
        timing = drive(stream, source.chunks(chunk), timed[0].axis or 0, rate, emit, args.realtime)
    notes = source.notes + [note for sink in sinks.values() for note in sink.notes]
    page = sys.stderr if "-" in [text.rpartition("=")[2] for text in args.sinks] else sys.stdout
    facts = _facts(program, args.backend, rate, chunk, timing, notes)
    if expected is not None:
        facts["storage"] = expected.to_dict()
    if len(programs) == 1:
        facts |= runtime_options.figures(program, timing.total)
    print(json.dumps(facts, indent=1) if args.json else _text(program, facts, timing, rate), file=page)
    return 0


def _emulated(args: argparse.Namespace) -> int:
    if len(args.bundle) > 1:
        raise InputError("--on qemu runs one bundle; run them one after the other.")
    words = ["--in", args.source, "--on-nonfinite", args.on_nonfinite, *(["--realtime"] if args.realtime else [])]
    words += [word for sink in args.sinks for word in ("--out", sink)]
    words += ["--rate", str(args.rate)] if args.rate else []
    words += emulate.chunk_words(args.bundle[0], args.chunk, args.rate)
    return emulate.call(args.bundle[0], "run", words, args.json, args.statics)


def _on_board(args: argparse.Namespace) -> int:
    if len(args.bundle) > 1:
        raise InputError("--on a board runs one bundle; run them one after the other.")
    path = args.bundle[0]
    manifest = Bundle(path).manifest
    inputs, outputs = ([Port.of(port) for port in manifest[key]] for key in ("inputs", "outputs"))
    timed = [port for port in inputs if port.per_tick]
    if len(timed) != 1 or timed[0].axis is None:
        known = ", ".join(port.name for port in timed)
        raise InputError(f"--on a board feeds one input with a time axis and this model has {known}.")
    own_rate = manifest["clock"].get("rate")
    rate: int | None = args.rate if own_rate is None else round(own_rate)
    chunks, notes = None, list[str]()
    there = args.source.startswith(remote.ON_BOARD)
    if not there:
        source = open_source(args.source, timed[0], rate if own_rate else None, args.rate, args.on_nonfinite)
        rate, axis, notes = rate or source.rate, timed[0].axis, source.notes
        size = _chunk(args.chunk, rate, manifest["hop"])
        chunks = ((chunk, axis) for chunk in source.chunks(size))
    words = ["--on-nonfinite", args.on_nonfinite, *(["--realtime"] if args.realtime else [])]
    words += ["--rate", str(rate)] if rate else []
    words += emulate.chunk_words(path, None if args.chunk == "all" and not there else args.chunk, rate)
    sinks: dict[str, str] = {}
    for text in args.sinks:
        port, uri = _named_output(text, outputs)
        if port.name in sinks:
            raise InputError(f"output '{port.name}' is given two places; name one.")
        sinks[port.name] = uri
    code, figures, more = remote.run(
        path, args.on, chunks, args.source.removeprefix(remote.ON_BOARD), sinks, args.statics, words, rate
    )
    if code:
        return code
    page = sys.stderr if "-" in sinks.values() else sys.stdout
    facts = {**figures, "notes": [*notes, *more]}
    text = terminal.pairs({name.replace("_", " "): str(value) for name, value in facts.items() if value != []})
    print(json.dumps(facts, indent=1) if args.json else text, file=page)
    return 0


def _chunk(text: str | None, rate: int | None, hop: int) -> int | None:
    if text == "all":
        return None
    if text is not None:
        return frame_count(text, rate, "--chunk")
    return rate // 100 if rate is not None and rate >= 1000 else hop


def _rate_after(program: Any, rate: int | None) -> int | None:
    """The rate of what comes out."""
    if rate is None or not isinstance(program, Chain):
        return rate
    after = rate * program.ratio
    return int(after) if after.denominator == 1 else None


def _named_output(text: str, outputs: Any) -> tuple[Any, str]:
    name, equals, uri = text.partition("=")
    for port in outputs:
        if equals and port.name == name:
            return port, uri
    if equals and not set(name) & set(":/\\"):
        known = ", ".join(f"'{port.name}'" for port in outputs)
        raise InputError(f"there is no output '{name}' but {known}; a file whose name has a = is given as wav:{text}.")
    return outputs[0], text


def _facts(
    program: Any, backend: str, rate: int | None, chunk: int | None, timing: Timing, notes: list[str]
) -> dict[str, Any]:
    return {
        "backend": backend,
        "rate": rate,
        "chunk_frames": chunk,
        "hop": program.hop,
        "latency_frames": program.latency_frames,
        "latency_ms": None if rate is None else 1000 * program.latency_frames / rate,
        "state_bytes": program.state_bytes,
        "modes": {k: v["value"] for manifest in _manifests(program) for k, v in _used(manifest).items()},
        "timing": timing.to_dict(),
        "notes": notes,
    }


def _manifests(program: Any) -> list[Mapping[str, Any]]:
    return [p.manifest for p in program.programs] if isinstance(program, Chain) else [program.manifest]


def _used(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return dict((manifest.get("modes") or {}).get("used", {}))


def _text(program: Any, facts: dict[str, Any], timing: Timing, rate: int | None) -> str:
    span = "" if rate is None else f", {timing.frames / rate:.2f} s"
    chunk = "all at once" if facts["chunk_frames"] is None else terminal.frames(facts["chunk_frames"], rate)
    rows = {"input": f"{timing.frames} frames{span}, in {timing.steps} steps of {chunk}"}
    if facts["notes"]:
        rows["notes"] = " ".join(note[0].upper() + note[1:] for note in facts["notes"])
    rows["backend"] = facts["backend"]
    if timing.rtf is not None:
        rows["real-time factor"] = f"{timing.rtf:.4f} ({1 / max(timing.rtf, 1e-12):.0f} times faster than real time)"
    rows["step"] = f"p50 {terminal.duration(timing.p50)}, p99 {terminal.duration(timing.p99)}"
    rows |= runtime_options.lines(program, timing.total)
    rows["look-ahead"] = terminal.frames(facts["latency_frames"], rate)
    rows["state"] = terminal.size(facts["state_bytes"])
    for manifest in _manifests(program):
        rows |= mode_facts(manifest)
    if timing.deadline_misses is not None:
        rows["deadline misses"] = str(timing.deadline_misses)
    return terminal.pairs(rows)
