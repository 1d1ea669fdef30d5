"""Models that cannot be compiled: one plain sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tiny_models import listing, proto, tiny

import runnel
from runnel.errors import InputError, Refused

Complaint = Callable[..., str]
ZOO = Path(os.environ.get("RUNNEL_ZOO") or Path(__file__).resolve().parents[3] / "shared" / "zoo")
SLEEPECG = ZOO / "sleepecg" / "ws_gru.onnx"


def relu(shape: list[int | str], opset: int = 17) -> onnx.ModelProto:
    return proto([helper.make_node("Relu", ["x"], ["y"], "positive")], shape, {}, opset)


def write(path: Path, content: onnx.ModelProto | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"This is not a model at all.\n", "not an ONNX file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not an ONNX file"),
        (tiny().SerializeToString()[:400], "truncated"),
        (relu([1, 4, "time"], opset=5), "uses opset 5"),
        (relu([1, 4, "time"], opset=99), "uses opset 99"),
        (relu([1, "height", "width"]), "2 candidate time axes: 'height' (x axis 1), 'width' (x axis 2)"),
        (relu([1, 4, 16]), "no input has a symbolic dimension"),
    ],
    ids=["empty", "text", "binary", "truncated", "opset 5", "opset 99", "two axes", "no axis"],
)
def test_files_that_are_no_streamable_model(
    tmp_path: Path, complaint: Complaint, content: onnx.ModelProto | bytes, said: str
) -> None:
    path = write(tmp_path / "bad.onnx", content)
    assert said in complaint("compile", "bad.onnx")
    with pytest.raises(InputError) as caught:
        runnel.compile(path, tmp_path / "bad.rnl")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


def test_every_truncation_of_a_model_is_refused_in_words() -> None:
    whole = relu([1, 4, "time"]).SerializeToString()
    for size in range(len(whole)):
        with pytest.raises(InputError):
            runnel.inspect(whole[:size])
    assert runnel.inspect(whole).latency_frames == 0


def test_paths_that_are_no_file(tmp_path: Path, complaint: Complaint) -> None:
    (tmp_path / "folder.onnx").mkdir()
    assert "is a folder" in complaint("inspect", "folder.onnx")
    assert "No such file" in complaint("inspect", "none.onnx")


def test_every_op_without_a_rule_is_listed_at_once(tmp_path: Path, complaint: Complaint) -> None:
    nodes = [
        helper.make_node("Einsum", ["x"], ["a"], "total", equation="ijk->ijk"),
        helper.make_node("ReverseSequence", ["a", "one"], ["b"], "back", batch_axis=0, time_axis=2),
        helper.make_node("Relu", ["b"], ["c"], "fine"),
        helper.make_node("Wobble", ["c"], ["d"], "odd", domain="com.example"),
        helper.make_node("Einsum", ["d"], ["y"], "sums", equation="ijk->ijk"),
    ]
    weights = {"one": np.ones(4, np.float32)}
    path = write(tmp_path / "bad.onnx", proto(nodes, [1, 4, "time"], weights, domains=("com.example",)))
    lines = complaint("compile", "bad.onnx", lines=5).splitlines()
    assert lines[0] == "runnel: refused, 4 ops do not stream:"
    found = [line.split(": ")[0].strip() for line in lines[1:]]
    assert found == ["Einsum 'total'", "ReverseSequence 'back'", "Wobble 'odd'", "Einsum 'sums'"]
    with pytest.raises(Refused) as caught:
        runnel.compile(path, tmp_path / "bad.rnl")
    assert [r.node for r in caught.value.reasons] == ["total", "back", "odd", "sums"]
    assert all(r.reason and r.remedy for r in caught.value.reasons)


def test_refusals_of_rules_and_ops_without_one_come_together(tmp_path: Path, complaint: Complaint) -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"], "over time", axis=2),
        helper.make_node("Relu", ["a"], ["b"], "floor"),
        helper.make_node("Einsum", ["x"], ["c"], "total", equation="ijk->ijk"),
        helper.make_node("InstanceNormalization", ["x", "one", "one"], ["d"], "level"),
        helper.make_node("Sigmoid", ["d"], ["e"], "gate"),
        helper.make_node("Sum", ["b", "c", "e"], ["y"], "sum"),
    ]
    write(tmp_path / "bad.onnx", proto(nodes, [1, 4, "time"], {"one": np.ones(4, np.float32)}))
    lines = complaint("inspect", "bad.onnx", lines=5).splitlines()
    assert [line.split(": ")[0].strip() for line in lines[1:4]] == [
        "Softmax 'over time'", "Einsum 'total'", "InstanceNormalization 'level'",
    ]  # fmt: skip
    assert all("; " in line for line in lines[1:4]), "each with a remedy"
    assert lines[4].strip() == "behind a refused op, so not decided: Relu 1, Sigmoid 1, Sum 1"


def test_a_bidirectional_recurrence_is_refused_by_name(tmp_path: Path, complaint: Complaint) -> None:
    weights = {"w": np.ones((2, 12, 4), np.float32), "r": np.ones((2, 12, 4), np.float32)}
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["y"], "both", hidden_size=4, direction="bidirectional")]
    write(tmp_path / "bad.onnx", proto(nodes, ["time", 1, 4], weights, out=["time", 2, 1, 4]))
    said = complaint("compile", "bad.onnx", lines=2)
    assert "bidirectional" in said and "forward recurrence" in said


@pytest.mark.skipif(not SLEEPECG.exists(), reason="there is no zoo here; name its folder in RUNNEL_ZOO")
def test_sleepecg_is_refused_as_bidirectional(complaint: Complaint) -> None:
    said = complaint("compile", SLEEPECG, lines=7)
    assert "ReverseSequence" in said and "as a bidirectional recurrence does" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hop", "0"], "--hop 0 is 0 frames"),
        (["--hop=-1"], "--hop -1 is not understood"),
        (["--hop", "soon"], "--hop soon is not understood"),
        (["--hop", "10ms"], "give --rate"),
        (["--hop", "99999999999999999999"], "hop 99999999999999999999 is not a number of frames"),
        (["--window", "99999999999999999999"], "window 99999999999999999999 is not a number of frames"),
        (["--window", "nonsense"], "--window nonsense is not understood"),
        (["--window", "0"], "--window 0 is 0 frames"),
        (["--window", "1"], "window"),
        (["--mode", "reuse"], "give --window"),
        (["--rate", "0"], "not a number of frames a second above 0"),
        (["--rate=-1"], "not a number of frames a second above 0"),
        (["--rate", "1e999"], "not a number of frames a second above 0"),
        (["--rate", "fast"], "not a number of frames a second above 0"),
        (["--target", "moon"], "there is no target 'moon'"),
        (["--target", "../host"], "cannot be read"),
        (["--backend", "tpu"], "invalid choice: 'tpu'"),
        (["--time-axis", "x"], "is not NAME:VALUE"),
        (["--time-axis", "x:9"], "outside the input's 3 axes"),
        (["--time-axis", "z:1"], "time_axis names 'z'"),
        (["--state", "a:b"], "names no output and input"),
        (["--bind", "x:none.npy"], "can be read"),
        (["--bind", "z:1"], "'z'"),
        (["--shape", "x:a"], "is not INPUT:SIZE"),
        (["--shape", "z:1,2"], "'z'"),
        (["--out", "no/such/folder/m.rnl"], "no/such/folder"),
        (["--out", "."], "not a file that can be replaced"),
        (["--out", "tiny.onnx"], "is the model itself"),
        (["--colour", "red"], "unrecognized arguments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_cannot_be(model: Path, complaint: Complaint, options: list[str], said: str) -> None:
    assert said in complaint("compile", "tiny.onnx", *options)


def test_options_that_cannot_be_from_python(model: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    for options in ({"hop": 0}, {"hop": (1, -4)}, {"window": 0}, {"target": "moon"}, {"mode": "fast"}, {"rate": 0},
                    {"hop": "10ms"}, {"backend": "tpu"}, {"time_axis": {"x": 9}}, {"state": {"a": "b"}}):  # fmt: skip
        with pytest.raises(InputError) as caught:
            runnel.compile(model, tmp_path / "m.rnl", **options)
        assert "\n" not in str(caught.value), options
    with pytest.raises(InputError):
        runnel.compile(model, tmp_path / "none" / "m.rnl")
    assert listing(tmp_path) == before
