"""runnel flash-bench, and what inspect says of a budget of memory."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "streaming"))
from mixtures import layer
from nets import TIME, Net

from runnel import targets
from runnel.errors import InputError
from runnel.tools import storage
from runnel.tools.build import inspect_model
from runnel.tools.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def block(tmp_path: Path) -> Path:
    path = tmp_path / "block.bin"
    path.write_bytes(os.urandom(2 << 20))
    return path


@pytest.mark.parametrize("words", [["--io", "plain"], ["--io", "threads", "--io-threads", "2"], []])
def test_storage_is_measured_and_kept(block: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert storage.kept_mb_s(block) is None
    assert main(["flash-bench", str(block), "--json", *words]) == 0
    table = json.loads(capsys.readouterr().out)
    points = {(s["bytes"], s["depth"]) for s in table["speeds"]}
    assert points == {(s, d) for s in storage.SIZES for d in storage.DEPTHS}
    assert all(s["mb_s"] > 0 for s in table["speeds"])
    assert table["mb_s"] == max(s["mb_s"] for s in table["speeds"]) == storage.kept_mb_s(block)
    assert table["knee"]["mb_s"] >= 0.9 * table["mb_s"]


def test_a_person_gets_a_table(block: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flash-bench", str(block)]) == 0
    out = capsys.readouterr().out
    assert "1024 KiB" in out
    assert "knee" in out


@pytest.mark.parametrize("size", [0, 5000])
def test_small_and_missing_files_are_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "small").write_bytes(bytes(size))
    with pytest.raises(InputError, match="too small"):
        storage.measure(tmp_path / "small")
    with pytest.raises(InputError, match="no file or folder"):
        storage.measure(tmp_path / "none")


def test_notes_that_are_damaged_count_as_none(block: Path) -> None:
    storage.notes().parent.mkdir(parents=True)
    for text in ("{", "[]", '{"1": 5}'):
        storage.notes().write_text(text)
        assert storage.kept_mb_s(block) is None
    storage.keep(storage.measure(block))
    assert storage.kept_mb_s(block) is not None


def model(rows: int = 2000, width: int = 512) -> bytes:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((width, rows)), "v": rng.standard_normal((rows, width))}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "T", width]) for n in ("x", "y")]
    constants = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "two", ports[:1], ports[1:], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


def test_a_budget_is_judged_before_anything_is_bought() -> None:
    report, board = inspect_model(model(8000), rate=50), targets.load("rpi5")
    weights = report.weights["streamed"]
    assert weights == 2 * 8000 * 512 * 4
    all_in = storage.predict(report, board, 64 << 20, here=False)
    assert all_in["mode"] == "all in RAM"
    assert all_in["streamed_bytes_per_step"] == 0
    beside = storage.own_bytes(report) + storage.BUFFERS + report.state_bytes
    half = storage.predict(report, board, beside + weights // 2, here=False)
    assert half["streamed_bytes_per_step"] == weights - weights // 2
    assert half["most_steps_per_s"] == pytest.approx(board.storage_mb_s * 1e6 / (weights - weights // 2))
    assert half["real_time"] == "no: storage is too slow"
    slow = storage.predict(inspect_model(model(8000), rate=1), board, 12 << 20, here=False)
    assert slow["real_time"] == "yes"


def test_experts_that_do_not_fit_are_read_as_often_as_they_are_chosen() -> None:
    net = Net(1)
    report = inspect_model(net.model(layer(net, net.input([1, TIME, 32]), experts=8, inner=8192, biases=False, k=2)))
    board = targets.load("rpi5")
    experts = 8 * 2 * 32 * 8192 * 4
    assert report.weights["experts"] == experts == 4 * report.weights["chosen"]
    rest = storage.own_bytes(report) + report.state_bytes + report.weights["streamed"]
    half = storage.predict(report, board, rest + experts // 2, here=False)
    assert half["experts_kept"] == pytest.approx(0.5)
    assert half["streamed_bytes_per_step"] == pytest.approx(experts / 8, rel=1e-6)
    assert storage.predict(report, board, rest + experts, here=False)["mode"] == "all in RAM"


def test_inspect_says_what_a_budget_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.onnx").write_bytes(model())
    words = ["inspect", str(tmp_path / "m.onnx"), "--ram", "10M", "--target", "rpi5"]
    assert main(words) == 0
    assert "streaming" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["memory"]["ram_budget"] == 10 << 20
    assert main([*words[:3], "much"]) == 2
