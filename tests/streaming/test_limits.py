"""Streams with a stated end: a table of positions that has so many rows, or ``max_frames`` of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from lengths import C, first_rows, frames
from nets import TIME, Net

import runnel
from runnel.errors import InputError, StreamError
from runnel.runtime.backends.onnxruntime import OnnxStream

ROWS = 40


def coded(rows: int = ROWS) -> bytes:
    """A look-ahead of two frames, then a table of positions."""
    net = Net()
    x, size = frames(net)
    t = net.op("Transpose", x, perm=[0, 2, 1])
    h = net.op("Transpose", net.conv(t, C, C, 5, pads=[2, 2]), perm=[0, 2, 1])
    return net.model(net.op("Add", h, first_rows(net, size, rows)))


@pytest.fixture(params=["native", "onnxruntime"])
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    runnel.compile(coded(), tmp_path / "m.rnl", hop=4)
    return runnel.load(tmp_path / "m.rnl", backend=request.param)


def noise(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((1, n, C)).astype(np.float32)


def test_a_push_past_the_table_changes_nothing(program: Any) -> None:
    assert program.max_frames == ROWS
    x = noise(ROWS)
    stream = program.stream()
    parts = [stream.push(x[:, :37])]
    before = stream.save()
    for n in (4, 1000):
        with pytest.raises(StreamError, match=r"table of positions has 40 rows .*position=wrap"):
            stream.push(noise(n))
    assert stream.position == 37
    if not isinstance(stream, OnnxStream):
        assert stream.save() == before
    parts += [stream.push(x[:, 37:]), stream.push(x[:, :0])]
    with pytest.raises(StreamError, match="stream of 40 passes its limit of 40"):
        stream.push(noise(1))
    parts.append(stream.flush())
    whole = oracle.Offline(coded())({"x": x})
    assert whole is not None
    (wanted,) = whole.values()
    np.testing.assert_allclose(np.concatenate(parts, 1), wanted, rtol=0, atol=1e-5)
    stream.reset()
    assert stream.push(x).shape[1] == ROWS - 2 or isinstance(stream, OnnxStream)


def test_a_reset_for_bad_samples_counts_from_the_start(program: Any) -> None:
    stream = program.stream(on_nonfinite="reset")
    stream.push(noise(30))
    bad = noise(20)
    bad[0, 3] = np.nan
    stream.push(bad)
    assert stream.position == 20
    with pytest.raises(StreamError, match="limit of 40"):
        stream.push(noise(21))


def test_a_batch_stops_before_it_starts(program: Any) -> None:
    batch = program.batch(2)
    lanes = [batch.join(), batch.join()]
    batch.push({lanes[0]: noise(39), lanes[1]: noise(10)})
    with pytest.raises(StreamError, match="lane 0: .*limit of 40"):
        batch.push({lanes[0]: noise(2), lanes[1]: noise(2)})
    assert [batch.position(n) for n in lanes] == [39, 10]


@pytest.mark.parametrize("stated", [12, 100])
def test_max_frames_holds_whatever_the_model_is(tmp_path: Path, stated: int) -> None:
    net = Net()
    x = net.input([1, C, TIME])
    runnel.compile(net.model(net.conv(x, C, 2, 3)), tmp_path / "m.rnl", max_frames=stated)
    program = runnel.load(tmp_path / "m.rnl")
    assert program.max_frames == stated
    stream = program.stream()
    stream.push(np.zeros((1, C, stated), np.float32))
    with pytest.raises(StreamError, match=f"compiled with max_frames={stated}"):
        stream.push(np.zeros((1, C, 1), np.float32))
    assert stream.flush().shape[2] == 0


def test_the_nearest_end_counts(tmp_path: Path) -> None:
    stated, table = (runnel.inspect(coded(), max_frames=n) for n in (20, 50))
    assert (stated.max_frames, table.max_frames) == (20, 40)
    assert "it was compiled" in stated.max_frames_reason
    assert "the model's table" in table.max_frames_reason
    assert "longest stream       40 frames: the model's table" in table.text()


def test_fewer_frames_than_the_model_takes_is_an_error() -> None:
    net = Net()
    x = net.input([1, C, TIME])
    with pytest.raises(InputError, match="takes no fewer than 7"):
        runnel.inspect(net.model(net.conv(x, C, 2, 7)), max_frames=3)


@pytest.mark.parametrize("backend", ["native", "onnxruntime"])
@pytest.mark.parametrize("kind", ["slice", "embedding"])
def test_a_table_that_wraps(tmp_path: Path, backend: str, kind: str) -> None:
    """Exact up to the table's end, then its rows again."""
    rows = 9
    net = Net()
    x, size = frames(net)
    if kind == "slice":
        code = first_rows(net, size, rows)
    else:
        n = net.op("Range", net.const(0), size, net.const(1))
        code = net.op("Unsqueeze", net.op("Gather", net.weight(rows, C, scale=1.0), n, axis=0), net.const([0]))
    model = net.model(net.op("Add", x, code))
    rows_of = next(i for i in net.initializers if list(i.dims) in ([1, rows, C], [rows, C]))
    table = np.frombuffer(rows_of.raw_data, np.float32).reshape(rows, C)
    (tmp_path / "m.npy").write_bytes(b"")
    np.save(tmp_path / "m.npy", noise(9))
    runnel.compile(model, tmp_path / "m.rnl", mode="position=wrap", calibration=tmp_path / "m.npy")
    program = runnel.load(tmp_path / "m.rnl", backend=backend)
    assert program.max_frames is None
    assert program.manifest["modes"]["used"]["position"]["value"] == "wrap"
    data, stream = noise(50), program.stream()
    got = np.concatenate([*(stream.push(data[:, i : i + 7]) for i in range(0, 50, 7)), stream.flush()], 1)
    np.testing.assert_allclose(got[0], data[0] + table[np.arange(50) % rows], rtol=0, atol=1e-6)
