"""What Python callers get wrong: each push that fails says what was got and needed, and leaves the stream as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runnel
from runnel.errors import BundleError, InputError, StreamError
from runnel.runtime.program import Program

X = np.random.default_rng(5).standard_normal((1, 1, 40)).astype(np.float32)


def with_nan(value: float) -> np.ndarray:
    x = X.copy()
    x[0, 0, 7] = value
    return x


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (X[0], "got shape [1, 40] and needs float32[1, 1, frames]"),
        (np.zeros((1, 2, 40), np.float32), "got shape [1, 2, 40]"),
        (np.zeros((2, 1, 40), np.float32), "got shape [2, 1, 40]"),
        (np.array(1, np.float32), "got shape []"),
        (X.astype(np.int16), "got int16 and needs float32"),
        (X.astype(np.complex64), "got complex64"),
        (X.astype(object), "got object"),
        ([0.0, 1.0], "got list and needs a numpy array"),
        (None, "got NoneType"),
        ({"z": X}, "got the inputs 'z' and needs 'x'"),
        ({}, "'x' does not match"),
        ({"x": X, "z": X}, "'z' does not match"),
        (with_nan(np.nan), "'x' is nan at [0, 0, 7]"),
        (with_nan(-np.inf), "'x' is -inf at [0, 0, 7]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_push_changes_nothing(program: Program, x: Any, said: str) -> None:
    good, tried = program.stream(), program.stream()
    first = tried.push(X)
    before = tried.save()
    with pytest.raises(StreamError) as caught:
        tried.push(x)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert tried.save() == before and tried.position == 40
    whole = [first, tried.push(X), tried.flush()]
    expected = [good.push(X), good.push(X), good.flush()]
    assert np.concatenate(whole, 2).tobytes() == np.concatenate(expected, 2).tobytes()


def test_float64_and_strides_are_taken(program: Program) -> None:
    expected = program.stream().push(X)
    wide = np.repeat(X.astype(np.float64), 2, axis=2)[:, :, ::2]
    assert program.stream().push(wide).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (np.zeros((1, 1, 5), np.float32), "has room for 5 frames and 38 are due"),
        (np.zeros((1, 2, 40), np.float32), "must be a C-contiguous"),
        (np.zeros((1, 1, 40), np.float64), "must be a C-contiguous"),
        (np.zeros((1, 1, 80), np.float32)[:, :, ::2], "must be a C-contiguous"),
        ({"z": np.zeros((1, 1, 40), np.float32)}, "out needs an array for each of the outputs"),
        ([0.0] * 40, "out needs an array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_out_that_does_not_fit_is_refused(program: Program, out: Any, said: str) -> None:
    stream = program.stream()
    with pytest.raises(StreamError) as caught:
        stream.push(X, out=out)
    assert said in str(caught.value)
    assert stream.position == 0
    room = np.full((1, 1, 40), 9, np.float32)
    got = stream.push(X, out=room)
    assert np.shares_memory(got, room) and got.shape == (1, 1, 38)


def test_after_flush_only_reset_goes_on(program: Program) -> None:
    stream = program.stream()
    first = stream.push(X)
    stream.flush()
    for again in (lambda: stream.push(X), stream.flush):
        with pytest.raises(StreamError, match="reset"):
            again()
    stream.reset()
    assert stream.push(X).tobytes() == first.tobytes()


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_a_stream_too_short_for_the_model_does_not_end(program: Program, frames: int) -> None:
    stream = program.stream()
    assert stream.push(X[:, :, :frames]).shape == (1, 1, 0)
    with pytest.raises(StreamError, match=f"has {frames} frames and the offline model takes no fewer than 3"):
        stream.flush()


def test_foreign_states_and_unknown_names(program: Program, made: Path) -> None:
    for state in (b"", b"x" * 64, program.stream().save()[:-1], program.stream().save() + b"\0"):
        with pytest.raises(StreamError, match="belongs to another program or backend, or is damaged"):
            program.stream(state=state)
    with pytest.raises(StreamError, match="on_nonfinite is 'ignore'"):
        program.stream(on_nonfinite="ignore")
    with pytest.raises(InputError, match="there is no backend 'tpu'"):
        runnel.load(made / "tiny.rnl", backend="tpu")
    with pytest.raises(BundleError, match="No such file"):
        runnel.load(made / "none.rnl")
