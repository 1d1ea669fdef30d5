"""Feed-forward layers that read the weights of active neurons only: what is found, what comes out, what is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from relu_layers import FORMS, NEURONS, WIDTH, convolutions, network, others

import runnel
from runnel.compiler.lowering import segments, split
from runnel.errors import InputError, StreamError
from runnel.runtime.bundle import Bundle

RNG = np.random.default_rng(4)
THREE = ("gated_second", "plain", "gated")
FRAMES = 24


def compiled(path: Path, model: bytes, **options: object) -> runnel.Program:
    runnel.compile(model, path, backend="native", hop=4, **options)
    return runnel.load(path)


def play(program: runnel.Program, x: np.ndarray, chunk: int = 5) -> np.ndarray:
    stream = program.stream()
    axis = program.outputs[0].axis
    time = program.inputs[0].axis
    chunks = np.split(x, range(chunk, x.shape[time], chunk), axis=time)
    return np.concatenate([*(stream.push(c) for c in chunks), stream.flush()], axis)


def frames(count: int = FRAMES) -> np.ndarray:
    return RNG.standard_normal((1, count, WIDTH)).astype(np.float32)


def paged(path: Path, ram: int, **options: object) -> runnel.Program:
    return runnel.load(path, runtime=runnel.Runtime(ram=ram, **options))  # type: ignore[arg-type]


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> runnel.Program:
    return compiled(tmp_path_factory.mktemp("dense") / "m.rnl", network(*THREE))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers whose other weights lie in many segments."""
    path = tmp_path_factory.mktemp("sparse") / "m.rnl"
    with pytest.MonkeyPatch.context() as patch:
        for module in (split, segments):
            patch.setattr(module, "SEGMENT_BYTES", 1 << 14)
        compiled(path, network(*THREE), sparse="exact")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_layers(form: str, tmp_path: Path) -> None:
    """The bundle's own proof compares with the offline model; chunks change no bit."""
    program = compiled(tmp_path / "m.rnl", network(form), sparse="exact")
    assert sum(k["ops"] == "choose" for k in program.manifest["kernels"]) == 1
    x = frames()
    assert play(program, x, 1).tobytes() == play(program, x, 7).tobytes()


def test_convolutions_over_single_frames(tmp_path: Path) -> None:
    program = compiled(tmp_path / "m.rnl", convolutions(), sparse="exact")
    assert sum(k["ops"] == "choose" for k in program.manifest["kernels"]) == 1


@pytest.mark.parametrize("why", others())
def test_layers_that_need_all_of_their_weights(why: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no feed-forward layer"):
        runnel.compile(others()[why], tmp_path / "m.rnl", sparse="exact")


def test_exact_is_the_dense_result(path: Path, dense: runnel.Program) -> None:
    x = frames()
    assert relative(play(runnel.load(path), x), play(dense, x)) < 1e-5


@pytest.mark.parametrize(("bias", "active"), [(-1e6, 0), (1e3, NEURONS)])
def test_no_neuron_and_every_neuron(bias: float, active: int, tmp_path: Path) -> None:
    file = tmp_path / "m.rnl"
    compiled(file, network("gated", bias=bias), sparse="exact")
    program = paged(file, 1 << 30)
    x = frames()
    y = play(program, x)
    facts = program.paging
    assert facts is not None
    assert facts.units.chosen == active * x.shape[1]
    assert active or y.tobytes() == x.tobytes()


@pytest.mark.parametrize("way", ["io_uring", "threads", "plain"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.5])
def test_bits_do_not_depend_on_what_is_in_memory(path: Path, way: str, share: float) -> None:
    x, whole = frames(), runnel.load(path)
    least = paged(path, 1 << 30).paging.least
    weights = sum(s["bytes"] for s in whole.manifest["weights"]["segments"])
    program = paged(path, least + int(share * weights), io=way, io_threads=2 if way == "threads" else 0)
    for chunk in (1, 3, 11):
        assert play(program, x, chunk).tobytes() == play(whole, x, chunk).tobytes()
    facts = program.paging
    assert facts.peak <= facts.ram
    assert facts.units.found < facts.units.chosen


def active_neurons(x: np.ndarray) -> list[list[np.ndarray]]:
    """For each layer of the model, for each frame, the numbers of its active neurons."""
    proto = onnx.load_from_string(network(*THREE))
    gates = [n.output[0] for n in proto.graph.node if n.op_type == "Relu"]
    proto.graph.output.extend(helper.make_tensor_value_info(g, TensorProto.FLOAT, None) for g in gates)
    values = ort.InferenceSession(proto.SerializeToString()).run(gates, {"x": x})
    return [[np.flatnonzero(frame) for frame in value[0]] for value in values]


def runs(neurons: list[int], rows: int) -> list[int]:
    """Bytes of the reads that bring neurons: ``rows`` rows of 48 float32 each. A read has at most 32 KiB of pages, and
    at most 16 KiB between two neurons that it brings."""
    size, found, last = rows * 192, [], 0
    for n in sorted(neurons):
        first, end = n * size // 4096 * 4096, -(-(n + 1) * size // 4096) * 4096
        if found and end - found[-1][0] <= 1 << 15 and n * size - last <= 1 << 14:
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, end))
        last = (n + 1) * size
    return [end - first for first, end in found]


ROWS = (2, 1, 2)
"""Rows of a neuron of each layer: up and down, or down alone where the gate is the only other matrix."""


def test_bytes_read_are_those_of_neurons_that_were_not_there(path: Path) -> None:
    """With room for everything each neuron is read when it is first active, and never again."""
    program, x = paged(path, 1 << 30), frames(40)
    stream, seen, expected = program.stream(), [set(), set(), set()], []
    found = active_neurons(x)
    for i in range(40):
        stream.push(x[:, i : i + 1])
        for layer, rows in enumerate(ROWS):
            new = set(found[layer][i].tolist()) - seen[layer]
            expected += runs(new, rows)
            seen[layer] |= new
        facts = program.paging
        assert facts.units.bytes_read == sum(expected)
        assert facts.units.reads == len(expected)
    chosen = sum(len(frame) for layer in found for frame in layer)
    assert facts.units.chosen == chosen
    assert facts.units.found == chosen - sum(map(len, seen))


def test_the_window_of_recent_frames_is_kept(path: Path) -> None:
    """With the least slots, those of one layer of each size, neurons leave in the order in which they were active."""
    least = paged(path, 1 << 30).paging.least
    program, x = paged(path, least), frames(60)
    stream, found = program.stream(), active_neurons(x)
    slots: dict[int, dict[tuple[int, int], None]] = {2: {}, 1: {}}  # of each size, the oldest first
    missed = 0
    for i in range(60):
        stream.push(x[:, i : i + 1])
        for layer, rows in enumerate(ROWS):
            kept, wanted = slots[rows], [(layer, int(n)) for n in found[layer][i]]
            there = [w for w in wanted if w in kept]
            for w in there + [w for w in wanted if w not in there]:
                if w in kept:
                    del kept[w]
                else:
                    missed += 1
                    if len(kept) == NEURONS:
                        del kept[next(iter(kept))]
                kept[w] = None
        assert program.paging.units.chosen - program.paging.units.found == missed
    assert missed > 2 * NEURONS + NEURONS  # some came twice


def test_a_budget_below_the_least_is_refused(path: Path) -> None:
    least = paged(path, 1 << 30).paging.least
    with pytest.raises(InputError, match=f"at least {least} bytes"):
        paged(path, least - 1)


def test_no_altered_neuron_is_used(path: Path, tmp_path: Path) -> None:
    x = frames()
    expected = play(runnel.load(path), x)
    sizes = Bundle(path).weights_entry()
    data = bytearray(path.read_bytes())
    copy = tmp_path / "m.rnl"
    end = sizes.offset + sizes.size
    data[end - 3 * 4096 : end - 2 * 4096] = bytes(4096)
    copy.write_bytes(data)
    program = paged(copy, paged(path, 1 << 30).paging.least)
    with pytest.raises(StreamError, match="altered or damaged"):
        play(program, x)
    copy.write_bytes(path.read_bytes())
    assert play(program, x).tobytes() == expected.tobytes()


def test_a_file_that_is_cut_off_stops_the_stream(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "m.rnl"
    copy.write_bytes(path.read_bytes())
    program = paged(copy, paged(path, 1 << 30).paging.least)
    os.truncate(copy, Bundle(path).weights_entry().offset + 4096)
    with pytest.raises(StreamError, match="ends before them"):
        play(program, frames())
