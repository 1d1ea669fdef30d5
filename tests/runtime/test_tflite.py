"""TensorFlow Lite files as programs: hidden state in variables, state changed in place, and files that are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import runnel
from runnel.errors import BundleError, InputError, RunnelError, StreamError
from runnel.runtime.backends.tflite import TfliteProgram

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install 'runnel[tflite]')")
flatbuffers = pytest.importorskip("flatbuffers")

from ai_edge_litert import schema_py_generated as schema  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402

ZOO = Path(os.environ.get("RUNNEL_ZOO") or Path(__file__).resolve().parents[3] / "shared" / "zoo")
VAD = "pymicro-vad/vad_stream.tflite"
MODELS = {VAD: 1120, "mlperf-tiny/kws_ref_model.tflite": 0, "clips/micro_speech_quantized.tflite": 0}


def zoo(name):
    if not (ZOO / name).exists():
        pytest.skip(f"there is no '{ZOO / name}'; name the zoo's folder in RUNNEL_ZOO")
    return ZOO / name


def frames(program, count, seed=0):
    """Codes that wander slowly, as features of sound do."""
    port = program.inputs[0]
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.standard_normal(port.sized(count)) * 8, 0) + rng.uniform(-128, 127, port.sized(1)[1:])
    return np.clip(np.rint(walk), -128, 127).astype(port.dtype)


def by_hand(path, x):
    """What LiteRT gives, run by run."""
    lite = Interpreter(str(path), num_threads=1)
    lite.allocate_tensors()
    given, asked = lite.get_input_details()[0]["index"], lite.get_output_details()[0]["index"]
    results = []
    for frame in x:
        lite.set_tensor(given, frame[None])
        lite.invoke()
        results.append(lite.get_tensor(asked)[0])
    return np.array(results)


@pytest.mark.parametrize("name", MODELS)
def test_streams_give_what_litert_gives(name):
    program = runnel.load(zoo(name), backend="tflite")
    assert program.state_bytes == MODELS[name]
    x = frames(program, 40)
    expected = by_hand(zoo(name), x)
    assert len(np.unique(expected)) > 3
    assert program.stream().push(x).tobytes() == expected.tobytes()
    stream = program.stream()
    parts = [stream.push(part) for part in np.split(x, [1, 1, 7, 20])]
    assert np.concatenate([*parts, stream.flush()]).tobytes() == expected.tobytes()
    out = np.empty(program.outputs[0].sized(50), program.outputs[0].dtype)
    stream.reset()
    assert stream.push(x, out).tobytes() == expected.tobytes() and stream.position == 40


def test_hidden_state_is_saved_restored_cloned_and_reset():
    program = runnel.load(zoo(VAD), backend="tflite")
    x = frames(program, 30)
    stream = program.stream()
    fresh = stream.push(x[:10])
    saved, twin = stream.save(), stream.clone()
    rest = stream.push(x[10:])
    assert twin.position == 10 and twin.push(x[10:]).tobytes() == rest.tobytes()
    other = runnel.load(zoo(VAD), backend="tflite").stream(saved)
    assert other.push(x[10:]).tobytes() == rest.tobytes()
    assert program.stream().push(x[10:]).tobytes() != rest.tobytes()  # what came before matters
    other.restore(saved)
    assert other.push(x[10:]).tobytes() == rest.tobytes()
    stream.reset()
    assert stream.push(x[:10]).tobytes() == fresh.tobytes()
    for bad in (saved[:-1], saved + b"\0", b"", saved[:60] + bytes([saved[60] ^ 1]) + saved[61:]):
        with pytest.raises(StreamError, match="another program"):
            program.stream(bad)
    foreign = runnel.load(zoo("clips/micro_speech_quantized.tflite"), backend="tflite").stream().save()
    with pytest.raises(StreamError, match="another program"):
        stream.restore(foreign)
    assert stream.push(x[10:]).tobytes() == rest.tobytes()


def test_what_codes_mean_is_told_and_other_input_refused():
    program = runnel.load(zoo(VAD), backend="tflite")
    assert program.quantisation[program.outputs[0].name] == (1 / 256, 0)
    stream = program.stream()
    for wrong in (np.zeros((2, 3, 40), np.float32), np.zeros((2, 40), np.int8), [1]):
        with pytest.raises(StreamError, match="needs"):
            stream.push(wrong)
    with pytest.raises(StreamError, match="no static input"):
        stream.set("x", 1)
    stream.flush()
    with pytest.raises(StreamError, match="has ended"):
        stream.push(np.zeros((1, 3, 40), np.int8))


@pytest.mark.parametrize("name", MODELS)
def test_damaged_files_are_refused_or_run(name):
    whole = zoo(name).read_bytes()
    rng = np.random.default_rng(1)
    for cut in (0, 7, 8, 40, len(whole) // 2):
        with pytest.raises(BundleError):
            TfliteProgram(whole[:cut], "m.tflite")
    refused = 0
    for _ in range(40):
        changed = bytearray(whole)
        for _ in range(3):
            changed[int(rng.integers(len(changed)))] = int(rng.integers(256))
        try:
            program = TfliteProgram(bytes(changed), "m.tflite")
            program.stream().push(np.zeros(program.inputs[0].sized(1), program.inputs[0].dtype))
        except RunnelError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused < 40


def test_what_is_no_such_file(tmp_path):
    with pytest.raises(BundleError, match="cannot be read"):
        runnel.load(tmp_path / "m.tflite", backend="tflite")
    (tmp_path / "m.tflite").write_bytes(b"PK\3\4" * 10)
    with pytest.raises(BundleError, match="no TensorFlow Lite file"):
        runnel.load(tmp_path / "m.tflite", backend="tflite")
    with pytest.raises(BundleError, match="backend='tflite'"):
        runnel.load(tmp_path / "m.tflite")


def test_the_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ai_edge_litert", None)
    with pytest.raises(InputError, match="pip install"):
        TfliteProgram(b"\0\0\0\0TFL3", "m.tflite")


class Made:
    """A small file, op by op."""

    def __init__(self):
        self.model, self.graph = schema.ModelT(), schema.SubGraphT()
        self.model.version, self.model.subgraphs = 3, [self.graph]
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.graph.tensors, self.graph.operators = [], []

    def tensor(self, shape, values=None, variable=False, kind=schema.TensorType.FLOAT32, name=""):
        t = schema.TensorT()
        t.shape, t.type, t.isVariable, t.name = list(shape), kind, variable, name or f"t{len(self.graph.tensors)}"
        t.buffer = 0
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(values, np.float32).tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            t.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(t)
        return len(self.graph.tensors) - 1

    def op(self, name, inputs, outputs, options=None):
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = 1
        self.model.operatorCodes.append(code)
        op = schema.OperatorT()
        op.opcodeIndex, op.inputs, op.outputs = len(self.model.operatorCodes) - 1, inputs, outputs
        if options is not None:
            op.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__[:-1])
            op.builtinOptions = options
        self.graph.operators.append(op)

    def program(self, inputs, outputs):
        self.graph.inputs, self.graph.outputs = inputs, outputs
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return TfliteProgram(bytes(builder.Output()), "made.tflite")


def svdf():
    """A filter of memory 3, whose state the op changes in place; and its weights."""
    rng = np.random.default_rng(2)
    feature, over_time = rng.standard_normal((2, 4)), rng.standard_normal((2, 3))
    made, options = Made(), schema.SVDFOptionsT()
    options.rank = 1
    x, y = made.tensor([1, 4]), made.tensor([1, 2])
    state = made.tensor([1, 6], variable=True)
    weights = [made.tensor([2, 4], feature), made.tensor([2, 3], over_time)]
    made.op("SVDF", [x, *weights, -1, state], [y], options)
    return made.program([x], [y]), feature, over_time


def test_state_that_ops_change_in_place_is_saved_and_reset():
    program, feature, over_time = svdf()
    assert program.state_bytes == 24
    x = np.random.default_rng(3).standard_normal((9, 4)).astype(np.float32)
    z = np.vstack([np.zeros((2, 2)), x @ feature.T])
    expected = np.stack([(z[n : n + 3] * over_time.T).sum(0) for n in range(9)])
    stream = program.stream()
    first = stream.push(x[:4])
    np.testing.assert_allclose(first, expected[:4], atol=1e-5)
    saved = stream.save()
    np.testing.assert_allclose(stream.push(x[4:]), expected[4:], atol=1e-5)
    np.testing.assert_allclose(program.stream(saved).push(x[4:]), expected[4:], atol=1e-5)
    stream.reset()
    assert stream.push(x[:4]).tobytes() == first.tobytes()


def counting(start=(5.0,), order=("read", "assign")):
    """A variable that adds up its input, and gives what it was before or after."""
    made, init = Made(), Made()
    handle_of = {}

    def variable(to):
        options = schema.VarHandleOptionsT()
        options.sharedName = "total"
        handle_of[to] = to.tensor([], kind=schema.TensorType.RESOURCE)
        to.op("VAR_HANDLE", [], [handle_of[to]], options)

    init.model = made.model
    made.model.subgraphs.append(init.graph)
    variable(init)
    if start:
        init.op("ASSIGN_VARIABLE", [handle_of[init], init.tensor([1], start)], [], schema.AssignVariableOptionsT())
    init.graph.inputs, init.graph.outputs = [], []
    once = schema.CallOnceOptionsT()
    once.initSubgraphIndex = 1
    made.op("CALL_ONCE", [], [], once)
    variable(made)
    x, before, after, again, y = (made.tensor([1]) for _ in range(5))
    made.op("READ_VARIABLE", [handle_of[made]], [before], schema.ReadVariableOptionsT())
    made.op("ADD", [x, before], [after], schema.AddOptionsT())
    if order[0] == "read":
        made.op("READ_VARIABLE", [handle_of[made]], [again], schema.ReadVariableOptionsT())
    made.op("ASSIGN_VARIABLE", [handle_of[made], after], [], schema.AssignVariableOptionsT())
    if order[0] == "assign":
        made.op("READ_VARIABLE", [handle_of[made]], [again], schema.ReadVariableOptionsT())
    made.op("ADD", [again, x], [y], schema.AddOptionsT())
    return made.program([x], [y])


def test_a_variable_is_read_as_it_is_at_that_place():
    x = np.float32([1, 2, 3])
    totals = 5 + np.cumsum(x)
    assert (counting().stream().push(x) == totals).all()  # read before the new value
    assert (counting(order=("assign", "read")).stream().push(x) == totals + x).all()


def test_a_variable_without_a_start_is_refused():
    with pytest.raises(BundleError, match="at the start"):
        counting(start=())
