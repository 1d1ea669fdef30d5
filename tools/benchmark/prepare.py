"""Makes a workload ready in a folder: our bundle, the step that peers take, the recording and the right answers."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import runnel
from runnel.runtime.backends.onnxruntime import OnnxProgram, open_session
from runnel.runtime.bundle import Bundle
from runnel.tools.benchmark.case import Array, Case, Output, State
from runnel.tools.benchmark.coded import coded_step
from runnel.tools.benchmark.plain import without_cells
from runnel.tools.benchmark.workloads import Noise, Workload, zoo
from runnel.tools.peer import without_edges

SPARE = 24  # steps behind the first whole window of the past


def prepare(workload: Workload, folder: Path) -> tuple[Case, dict[str, Any]]:
    """The case, and the manifest of our bundle. Raises what compile raises."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    model = folder / "model.onnx"
    model.write_bytes(workload.model())
    if workload.quantise:
        quantise(model, workload)
    manifest = runnel.compile(model, folder / "model.rnl", **compile_options(workload)).manifest
    if workload.tflite:
        shutil.copy(zoo(workload.tflite), folder / "model.tflite")
    case = stream(workload, folder, manifest) if workload.kind == "stream" else calls(workload, folder, manifest)
    case.save()
    with suppress(ValueError):  # a cell that is not written out
        if plain := without_cells(folder / "step.onnx"):
            (folder / "plain.onnx").write_bytes(plain)
    return case, dict(manifest)


def compile_options(workload: Workload) -> dict[str, Any]:
    options = dict(workload.options)
    if workload.states:
        options["state"] = workload.states
    return options


def fix_batch(path: Path, axis: int = -1) -> None:
    """Every dimension of the inputs that is left open is 1, but ``axis``: a step takes one stream, frame or window."""
    import onnx

    proto = onnx.load(path)
    symbols = {
        dim.dim_param for value in proto.graph.input
        for i, dim in enumerate(value.type.tensor_type.shape.dim) if i != axis
    } - {""}  # fmt: skip
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = 1
    del proto.graph.value_info[:]
    onnx.save(proto, path)


def quantise(path: Path, workload: Workload) -> None:
    """By onnxruntime, as it advises for dot products: activations uint8, weights int8 by channel."""
    import onnx
    from onnx import version_converter
    from onnxruntime.quantization import QuantFormat, QuantType, quant_pre_process, quantize_static

    prepared = path.with_name("prepared.onnx")
    proto = onnx.load(path)
    if proto.opset_import[0].version < 13:  # scales by channel are younger
        onnx.save(version_converter.convert_version(proto, 13), path)
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    value = open_session(prepared.read_bytes()).get_inputs()[0]
    random = np.random.default_rng(3)
    shape = [d if isinstance(d, int) else 1 for d in value.shape]
    frames = [{value.name: (random.standard_normal(shape) * workload.scale).astype(np.float32)} for _ in range(8)]
    quantize_static(
        str(prepared), str(path), Noise(frames), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def common(workload: Workload, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What is told of every kind."""
    macs = manifest["macs"]
    each = macs.get("per_hop_exact") or macs["per_frame_streamed"] * workload.hop
    return {
        "macs": each * workload.lanes,
        "folder": str(folder), "name": workload.name, "kind": workload.kind, "hop": workload.hop,
        "window": workload.window, "codes": workload.codes, "lanes": workload.lanes,
        "batch_axis": workload.batch_axis, "period": int(manifest["macs"]["natural_hop"]),
        "tolerance": 0.05 if workload.codes else workload.tolerance,
        "tflite": "model.tflite" if workload.tflite else "",
    }  # fmt: skip


def stream(workload: Workload, folder: Path, manifest: dict[str, Any]) -> Case:
    """Of a model with an axis of time."""
    bundle = Bundle(folder / "model.rnl")
    described, port = manifest["onnx"], manifest["inputs"][0]
    fix_batch(folder / "model.onnx", port["axis"])
    macs = manifest["macs"]
    reach, hop = int(macs["receptive_field"]), workload.hop
    steps = workload.steps or -(-reach // hop) + SPARE
    rng = np.random.default_rng(5)
    shape = [steps * hop if d is None else d for d in port["shape"]]
    x = (rng.standard_normal(shape) * workload.scale).astype(np.float32)
    if workload.record is not None:
        sound = workload.record()
        x = np.ascontiguousarray(np.resize(sound, x.shape), np.float32)
    session = open_session((folder / "model.onnx").read_bytes())
    names = [o["name"] for o in manifest["outputs"]]
    wanted = dict(zip(names, session.run(names, {port["name"]: x})))
    axes = {o["name"]: o["axis"] for o in manifest["outputs"]}
    outputs = []
    for o in manifest["outputs"]:
        num, den = o["ratio"]
        outputs.append(Output(o["name"], o["axis"], hop * num // den))
    _write(folder, x, {name: np.moveaxis(value, axes[name], 0) for name, value in wanted.items()})
    facts = common(workload, folder, manifest) | {
        "input": port["name"], "axis": port["axis"], "outputs": outputs,
        "reach": 0 if macs["endless"] else reach,
    }  # fmt: skip
    if workload.step is not None:
        (folder / "step.onnx").write_bytes(workload.step())
        states = [State(i, o, tuple(s)) for i, o, s in _pairs(folder / "step.onnx", port["name"], names)]
        return Case(**facts, step_outputs=outputs, states=states)
    if workload.quantise and (stepped := coded_step(folder / "model.onnx", hop)):
        (folder / "step.onnx").write_bytes(stepped[0])
        return Case(**facts, step_outputs=outputs, states=stepped[1])
    program = OnnxProgram.from_bundle(bundle)
    streaming = bundle.read("streaming.onnx")
    scalars = [described["position"], described["length"]]
    values, skip = program.initial, 0
    try:
        steady = without_edges(streaming, *scalars)
        left = {value.name for value in open_session(steady).get_inputs()}
    except runnel.RunnelError:
        pass  # positions mean more than a start and an end
    else:
        skip = steps - SPARE // 2
        values = middle(program, np.take(x, range(skip * hop), port["axis"]))
        streaming, scalars = steady, [s for s in scalars if s in left]
    (folder / "step.onnx").write_bytes(streaming)
    states = []
    for i, s in enumerate(described["states"]):
        value, file = values[s["in"]], ""
        if value.size and np.any(value != value.flat[0]):
            file = f"state_{i}.npy"
            np.save(folder / file, value)
        fill = float(value.flat[0]) if value.size and not file else 0.0
        states.append(State(s["in"], s["out"], tuple(s["shape"]), s["dtype"], fill, file))
    step_outputs = [Output(o["name"], o["axis"], int(o["frames"]), int(o["delay"])) for o in described["outputs"]]
    return Case(
        **facts, step_outputs=step_outputs, states=states, scalars=scalars, skip=skip,
        unknown_length=int(described["unknown_length"]),
    )  # fmt: skip


def middle(program: OnnxProgram, x: Array) -> dict[str, Array]:
    """The states of a stream that took x: what a step without a start can begin with."""
    stream = program.stream()
    stream.push(x)
    return dict(stream._states)


def _pairs(path: Path, given: str, outputs: list[str]) -> list[tuple[str, str, list[int]]]:
    """(input, output, shape) of the states of a step made by hand, which come in the same order on both sides."""
    session = open_session(path.read_bytes())
    inputs = [value for value in session.get_inputs() if value.name != given]
    made = [value.name for value in session.get_outputs() if value.name not in outputs]
    return [(value.name, name, value.shape) for value, name in zip(inputs, made)]


def calls(workload: Workload, folder: Path, manifest: dict[str, Any]) -> Case:
    """Of a model that is called for a window, for a frame, or for a frame and its states."""
    shutil.copy(folder / "model.onnx", folder / "step.onnx")
    fix_batch(folder / "step.onnx")
    session = open_session((folder / "step.onnx").read_bytes())
    rng = np.random.default_rng(5)
    fed = [v for v in session.get_inputs() if v.name not in workload.states.values()]
    value, axis = fed[0], 0
    kind = np.dtype({"tensor(float)": "float32", "tensor(int8)": "int8", "tensor(uint8)": "uint8"}[value.type])
    sizes = [d if isinstance(d, int) else 1 for d in value.shape]
    names = [o.name for o in session.get_outputs() if o.name not in workload.states]
    states = [
        State(workload.states[o.name], o.name, tuple(i.shape))
        for o in session.get_outputs() if o.name in workload.states
        for i in session.get_inputs() if i.name == workload.states[o.name]
    ]  # fmt: skip
    if workload.kind == "window":
        axis = int(manifest["inputs"][0]["axis"])
        sizes[axis] = workload.window + 15 * workload.hop
    else:
        sizes = [16, *sizes]
    x = (rng.standard_normal(sizes) * workload.scale).astype(kind)
    outputs = [Output(name, -1, 1) for name in names]
    facts = common(workload, folder, manifest) | {"input": value.name, "axis": axis, "outputs": outputs}
    case = Case(**facts, step_outputs=outputs, states=states)
    np.save(folder / "x.npy", x)
    reference = session
    if workload.codes:  # what onnxruntime makes integer is the reference of integers
        import onnxruntime

        reference = onnxruntime.InferenceSession(str(folder / "step.onnx"), providers=["CPUExecutionProvider"])
    carried = {s.given: case.start(s) for s in states}
    rows: dict[str, list[Array]] = {name: [] for name in names}
    every = [o.name for o in reference.get_outputs()]
    for piece in case.steps():
        got = dict(zip(every, reference.run(None, {value.name: piece} | carried)))
        carried = {s.given: got[s.made] for s in states}
        for name in names:
            rows[name].append(got[name])
    _write(folder, x, {name: np.stack(row) for name, row in rows.items()})
    return case


def _write(folder: Path, x: Array, y: dict[str, Array]) -> None:
    np.save(folder / "x.npy", x)
    np.savez(folder / "y.npz", **y)  # type: ignore[arg-type]
