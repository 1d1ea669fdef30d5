"""Tuning: logs are made, kept and used, here and through TVM's RPC, and no schedule changes a bit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runnel
from runnel.compiler.codegen.target import Target
from runnel.compiler.codegen.tuning import candidates, fixed
from runnel.errors import InputError
from runnel.tools.cli import main
from runnel.tools.tuning import bench, log

X = np.random.default_rng(7).standard_normal((1, 6, 50)).astype(np.float32)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "LEAST_MS", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Products of a row and of several, and an image with its channels last."""
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streaming"))
    from nets import stack

    net, x = stack(6)
    y = net.op("Relu", net.conv(x, 6, 70, 3, pads=[2, 0]))
    y = net.op("Reshape", net.conv(y, 70, 60, 1), net.const([0, 5, 3, 4, -1]))
    y = net.op("Relu", net.conv(y, 5, 20, [3, 3, 1], pads=[1, 1, 0, 1, 1, 0]))
    out = tmp_path_factory.mktemp("model") / "m.onnx"
    out.write_bytes(net.model(net.op("Reshape", y, net.const([0, 240, -1]))))
    return out


def played(path: Path) -> bytes:
    stream = runnel.load(path).stream()
    return np.concatenate(
        [*(stream.push(X[..., i : i + 7]) for i in range(0, 50, 7)), stream.flush()], axis=-1
    ).tobytes()


def kernels(path: Path) -> bytes:
    from runnel.runtime.bundle import Bundle

    return Bundle(path).kernels().tobytes()


def test_a_log_is_made_kept_and_used(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["tune", str(model), "--hop", "4", "-o", str(tmp_path / "log.json"), "--trials", "3"]
    assert main(words) == 0
    first = log.read(tmp_path / "log.json")
    assert {r.problem.form for r in first} == {"rows", "image"}
    assert all(1 <= len(r.trials) <= 3 and r.where == "this machine" and r.gain >= 1 for r in first)
    assert all(r.trials[0][0] == fixed(Target.host(), r.problem) and min(t for _, t in r.trials) > 0 for r in first)
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["measured"] == 0  # all of it is there already
    assert log.read(tmp_path / "log.json") == first


def test_every_schedule_gives_the_same_bits(model: Path, tmp_path: Path) -> None:
    """A log that prefers the most unlike schedules changes the kernels and not the outputs."""
    target = Target.host()
    runnel.compile(model, tmp_path / "fixed.rnl", hop=4)
    expected, code = played(tmp_path / "fixed.rnl"), kernels(tmp_path / "fixed.rnl")
    assert main(["tune", str(model), "--hop", "4", "-o", str(tmp_path / "log.json"), "--trials", "1"]) == 0
    records = log.read(tmp_path / "log.json")
    for pick in (-1, len(records)):
        odd = []
        for r in records:
            found = candidates(target, r.problem)
            odd.append(
                log.Record(r.problem, r.cpu, r.features, "nowhere", ((found[0], 2.0), (found[pick % len(found)], 1.0)))
            )
        log.write(tmp_path / "odd.json", odd)
        runnel.compile(model, tmp_path / "odd.rnl", hop=4, tuning=tmp_path / "odd.json")
        assert kernels(tmp_path / "odd.rnl") != code
        assert played(tmp_path / "odd.rnl") == expected


def test_logs_that_do_not_fit_are_refused(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "log.json"
    problem = {"form": "rows", "kind": "float32", "rows": 1, "vectors": 4, "lanes": 16, "depth": 256}
    trial = {"schedule": {"rows": 1, "vectors": 4, "unroll": 4}, "microseconds": 1.0}
    row = {"problem": problem, "cpu": "cortex-a76", "features": [], "where": "a board", "trials": [trial]}
    for data, why in [
        ("[]", "no log"), ('{"schema": 9, "records": []}', "schema 9"), ('{"schema": 1, "records": [{}]}', "no log"),
        (json.dumps({"schema": 1, "records": [row]}), "measured on cortex-a76"),
    ]:  # fmt: skip
        place.write_text(data)
        with pytest.raises(InputError, match=why):
            runnel.compile(model, tmp_path / "m.rnl", tuning=place)
    with pytest.raises(InputError, match="cannot be read"):
        runnel.compile(model, tmp_path / "m.rnl", tuning=tmp_path / "absent.json")


@pytest.fixture(scope="module")
def shelf() -> Iterator[str]:
    """The address of a tracker of TVM's RPC with two servers, all on this machine."""
    pytest.importorskip("cloudpickle")
    pytest.importorskip("tornado")
    from tvm import rpc
    from tvm.rpc.tracker import Tracker

    tracker = Tracker("127.0.0.1", 29190, 29290)
    address = ("127.0.0.1", tracker.port)
    servers = [rpc.Server("127.0.0.1", 29300, 29400, key="shelf", tracker_addr=address) for _ in range(2)]
    deadline = time.monotonic() + 30
    while len(rpc.connect_tracker(*address).summary()["server_info"]) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    yield f"127.0.0.1:{tracker.port}"
    for server in servers:
        server.terminate()
    tracker.terminate()


def test_boards_of_a_tracker_are_measured_at_once(
    model: Path, tmp_path: Path, shelf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, both, here = tmp_path / "log.json", threading.Barrier(2, timeout=60), threading.local()
    real = bench.Session._measured

    def measured(*words: Any) -> list[float]:
        if not hasattr(here, "met"):  # the first of each thread waits for the other's
            here.met = both.wait()
        return real(*words)

    monkeypatch.setattr(bench.Session, "_measured", measured)
    assert main(["tune", str(model), "-o", str(place), "--trials", "2", "--rpc", f"{shelf},shelf"]) == 0
    records = log.read(place)
    assert len(records) > 1 and all(r.where == f"rpc {shelf},shelf" for r in records)
    assert all(min(t for _, t in r.trials) > 0 for r in records)
    assert [r.problem for r in records] == list(dict.fromkeys(r.problem for r in records))
    runnel.compile(model, tmp_path / "m.rnl", tuning=place)


def test_a_board_is_measured_by_its_address(model: Path, tmp_path: Path, shelf: object) -> None:
    from tvm import rpc

    server = rpc.Server("127.0.0.1", 29400, 29500)
    where = f"127.0.0.1:{server.port}"
    try:
        assert main(["tune", str(model), "-o", str(tmp_path / "log.json"), "--trials", "1", "--rpc", where]) == 0
    finally:
        server.terminate()
    assert all(r.where == f"rpc {where}" for r in log.read(tmp_path / "log.json"))


def test_a_board_that_goes_away_is_replaced(
    model: Path, tmp_path: Path, shelf: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Each kernel's first measurement fails, as where a board was switched off; then all of them."""
    real, tried = bench.Session._measured, set()

    def fails_once(session: bench.Session, library: Path, cases: Any) -> list[float]:
        if library not in tried:
            tried.add(library)
            raise ConnectionResetError("the board went away")
        return real(session, library, cases)

    words = ["tune", str(model), "-o", str(tmp_path / "log.json"), "--trials", "1", "--rpc", f"{shelf},shelf"]
    monkeypatch.setattr(bench.Session, "_measured", fails_once)
    assert main(words) == 0
    assert len(tried) == len(log.read(tmp_path / "log.json"))

    def fails(*_: Any) -> list[float]:
        raise ConnectionResetError("the board went away")

    (tmp_path / "log.json").unlink()
    monkeypatch.setattr(bench.Session, "_measured", fails)
    assert main(words) == 2
    assert f"cannot be measured on rpc {shelf},shelf: the board went away" in capsys.readouterr().err
    assert not (tmp_path / "log.json").exists()


def test_a_key_that_no_board_has_is_told(
    model: Path, tmp_path: Path, shelf: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(model), "-o", str(tmp_path / "log.json"), "--rpc", f"{shelf},pi"]) == 2
    assert "no board under the key 'pi' (it has: shelf); start one" in capsys.readouterr().err


def test_boards_that_are_not_there_are_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rpc, why in [
        ("127.0.0.1:1", "no TVM RPC server"),
        ("127.0.0.1:1,key", "no TVM RPC tracker"),
        ("x", "--rpc takes"),
    ]:
        assert main(["tune", str(model), "-o", str(tmp_path / "log.json"), "--rpc", rpc]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "log.json").exists()


@pytest.mark.parametrize("frames", [1, 4])
def test_metaschedule_is_given_the_layer_that_ours_is(frames: int) -> None:
    import onnxruntime as ort
    import tvm
    from onnx import load_from_string, numpy_helper

    from runnel.tools.tuning import metaschedule

    model = metaschedule.layer(8, 3, 2)
    x = np.random.default_rng(0).standard_normal((1, 8, 4 + frames)).astype(np.float32)
    wanted = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    weight = numpy_helper.to_array(load_from_string(model).graph.initializer[0])
    given = [x[0].T, weight.transpose(2, 1, 0), np.zeros(8), np.zeros((frames, 8))]
    arrays = [tvm.runtime.tensor(np.ascontiguousarray(a, np.float32)) for a in given]
    made = tvm.IRModule({"main": metaschedule.function(8, 3, 2, frames)})
    tvm.compile(made, target=tvm.target.Target("llvm"))["main"](*arrays)
    np.testing.assert_allclose(arrays[3].numpy(), wanted[0, :, -frames:].T, atol=1e-5)
    rule, best = metaschedule.by_ours(8, 3, 2, frames, 2)
    assert 0 < best <= rule
