"""``--save-state`` and ``--load-state`` of runnel-run: a stream that goes on in another process."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from small_models import compiled

import runnel


def run(binary, *words):
    return subprocess.run([binary, "run", *map(str, words)], capture_output=True, text=True, check=False)


@pytest.fixture
def gru(tmp_path):
    return compiled(tmp_path, "gru")


def test_a_stream_goes_on_in_another_process(binary, gru, tmp_path):
    x = np.random.default_rng(1).standard_normal((50, 1, 6)).astype(np.float32)
    stream = runnel.load(gru).stream()
    expected = np.concatenate([stream.push(x), stream.flush()])
    got, state = [], tmp_path / "state"
    for i, part in enumerate(np.split(x, [7, 8, 31])):
        np.save(tmp_path / "x.npy", part)
        words = [gru, "--in", tmp_path / "x.npy", "--out", tmp_path / "y.npy"]
        words += ["--load-state", state] if i else []
        words += ["--save-state", state] if i < 3 else []
        done = run(binary, *words)
        assert done.returncode == 0, done.stderr
        got.append(np.load(tmp_path / "y.npy"))
    assert np.concatenate(got).tobytes() == expected.tobytes()


def test_a_state_goes_from_python_to_the_board_and_back(binary, gru, tmp_path):
    x = np.random.default_rng(2).standard_normal((40, 1, 6)).astype(np.float32)
    program = runnel.load(gru)
    whole, half = program.stream(), program.stream()
    expected = whole.push(x)
    first = half.push(x[:13])
    (tmp_path / "state").write_bytes(half.save())
    np.save(tmp_path / "x.npy", x[13:30])
    state = ["--load-state", tmp_path / "state", "--save-state", tmp_path / "state"]
    done = run(binary, gru, "--in", tmp_path / "x.npy", "--out", tmp_path / "y.npy", *state)
    assert done.returncode == 0, done.stderr
    last = program.stream((tmp_path / "state").read_bytes()).push(x[30:])
    assert np.concatenate([first, np.load(tmp_path / "y.npy"), last]).tobytes() == expected.tobytes()


def test_what_was_set_comes_with_the_state(binary, tmp_path):
    path = compiled(tmp_path, "conditioned")
    x, emb = np.ones((1, 3, 8), np.float32), np.full((1, 5), 0.5, np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "emb.npy", emb)
    words = [path, "--in", tmp_path / "x.npy", "--out", tmp_path / "y.npy"]
    first = run(binary, *words, "--set", f"emb={tmp_path}/emb.npy", "--save-state", tmp_path / "state")
    assert first.returncode == 0, first.stderr
    one = np.load(tmp_path / "y.npy")
    assert run(binary, *words, "--load-state", tmp_path / "state").returncode == 0
    stream = runnel.load(path).stream(inputs={"emb": emb})
    expected = np.concatenate([stream.push(x), stream.push(x), stream.flush()], 2)
    assert np.concatenate([one, np.load(tmp_path / "y.npy")], 2).tobytes() == expected.tobytes()


def test_foreign_and_damaged_states_are_refused(binary, gru, tmp_path):
    other = runnel.load(compiled(tmp_path, "strided")).stream().save()
    own = runnel.load(gru).stream().save()
    flags = bytearray(own)
    flags[72] ^= 2  # a step on it failed
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 6), np.float32))
    out = tmp_path / "y.npy"
    for bad in (other, own[:-1], own + b"\0", b"", b"RNLSTATE", bytes(flags)):
        (tmp_path / "state").write_bytes(bad)
        done = run(binary, gru, "--in", tmp_path / "x.npy", "--out", out, "--load-state", tmp_path / "state")
        assert done.returncode == 2
        assert "is no state of this bundle" in done.stderr or "is empty" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not out.exists()
    (tmp_path / "state").write_bytes(own)
    done = run(binary, gru, "--in", tmp_path / "x.npy", "--out", out, "--load-state", tmp_path / "state")
    assert done.returncode == 0, done.stderr
