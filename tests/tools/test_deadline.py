"""What run and bench say of storage before a stream with a budget begins, and when they refuse real time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.tools import storage
from runnel.tools.cli import main
from runnel.tools.deadline import Forecast, forecast

RATE = 100


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers of 1 MiB."""
    rng = np.random.default_rng(6)
    nodes, weights, x = [], [], "x"
    for i in range(4):
        weights.append(numpy_helper.from_array((0.04 * rng.standard_normal((512, 512))).astype(np.float32), f"w{i}"))
        nodes += [helper.make_node("MatMul", [x, f"w{i}"], [f"p{i}"]), helper.make_node("Tanh", [f"p{i}"], [f"h{i}"])]
        x = f"h{i}"
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "T", 512]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "four layers", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("deadline") / "m.rnl"
    runnel.compile(model, path, backend="native", hop=1, rate=RATE)
    return path


@pytest.fixture(scope="module")
def least(bundle: Path) -> int:
    return int(runnel.load(bundle, ram=1 << 30).paging.least)


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", np.zeros((1, 5, 512), np.float32))
    return tmp_path / "x.npy"


def remember(path: Path, mb_s: float) -> None:
    """As if flash-bench had measured that."""
    device = os.stat(path).st_dev
    storage.keep(storage.Table(device, "auto", True, (storage.Speed(1 << 20, 4, mb_s),)))


def words(bundle: Path, frames: Path, least: int, *more: str) -> list[str]:
    return ["run", str(bundle), "--in", str(frames), "--chunk", "1", "--ram", str(least), "--json", *more]


def test_storage_that_is_fast_enough(
    bundle: Path, frames: Path, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(bundle, 2000)
    assert main(words(bundle, frames, least, "--realtime")) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[1].endswith("at 2000 MB/s: fast enough for real time")
    found = json.loads(printed.out)
    assert found["storage"]["in_time"]
    assert found["storage"]["period"] == 1 / RATE
    assert found["storage"]["read_bytes"] == found["streamed_bytes_per_step"] > 1 << 20


def test_storage_that_is_too_slow(bundle: Path, frames: Path, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    remember(bundle, 100)  # a MiB in 10 ms
    assert main(words(bundle, frames, least)) == 0  # only said
    printed = capsys.readouterr()
    assert "too slow for real time by" in printed.err
    lacking = json.loads(printed.out)["storage"]["lacking_bytes"]
    assert main(words(bundle, frames, least, "--realtime")) == 2
    assert "storage is too slow for --realtime" in capsys.readouterr().err
    assert main(words(bundle, frames, least, "--realtime", "--slow", "warn", "--patience", "5")) == 0
    capsys.readouterr()
    assert main(words(bundle, frames, least + lacking + (1 << 20), "--realtime")) == 0


def test_storage_that_was_never_measured_is_measured_now(bundle: Path, least: int) -> None:
    program = runnel.load(bundle, ram=least)
    found = forecast([program], str(bundle), 1 / RATE)
    assert found is not None
    assert found.mb_s > 0
    assert forecast([runnel.load(bundle)], str(bundle), 1 / RATE) is None


def test_chunks_of_several_steps_read_as_many_times(bundle: Path, least: int) -> None:
    remember(bundle, 1000)
    program = runnel.load(bundle, ram=least)
    one, three = (forecast([program], str(bundle), n / RATE) for n in (1, 3))
    assert isinstance(one, Forecast)
    assert isinstance(three, Forecast)
    assert three.read == 3 * one.read
    assert three.in_time == one.in_time


def test_bench_with_a_budget(bundle: Path, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    remember(bundle, 2000)
    line = ["bench", str(bundle), "--ram", str(least), "--steps", "10", "--rounds", "1"]
    assert main([*line, "--json"]) == 0
    printed = capsys.readouterr()
    (row,) = json.loads(printed.out)
    assert printed.err.startswith("mode: pinned ")
    assert row["ram_budget"] == least >= row["ram_peak"]
    assert row["streamed_bytes_per_step"] > 0
    assert row["read_bytes_per_s"] > 0
    assert row["storage"]["storage_mb_s"] == 2000
    assert main(line) == 0
    assert "MiB at most, of" in capsys.readouterr().out
    assert main([*line, "--backend", "onnxruntime"]) == 2
