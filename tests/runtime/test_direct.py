"""Pushes that the core takes straight from Python: the same results, refusals and lifetimes as through ctypes."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import numpy as np
import pytest
from plans import SKIP, conv_plan, needs_core, play

from runnel.errors import StreamError
from runnel.runtime.backends import direct

pytestmark = pytest.mark.skipif(needs_core, reason=SKIP)
X = np.random.default_rng(9).standard_normal((1, 90, 4)).astype(np.float32)


class Masked(np.ndarray):
    pass


@pytest.fixture
def program():
    return conv_plan(5, 4, 4, hop=3, dilation=2, pads=(4, 4))[0].program()


def ready(program: Any, frames: int = 3, **options: Any) -> Any:
    """A stream that has agreed on arrays of so many frames."""
    stream = program.stream(**options)
    for n in range(0, 6 * frames, frames):
        stream.push(X[:, n : n + frames])
    assert stream._direct is not None and stream._direct.call.copied > 0
    return stream


def taken_straight(stream: Any, x: Any) -> bool:
    """Whether the core takes it; otherwise the stream is as it was."""
    before = stream.save()
    if stream._direct.push(x) is not None:
        return True
    assert stream._direct.code == direct.OTHER and stream.save() == before
    return False


def test_like_arrays_go_straight_to_the_core(program):
    stream = ready(program)
    events: list[str] = []
    sys.setprofile(lambda frame, event, what: events.append(event))
    try:
        stream.push(X[:, 18:21])
    finally:
        sys.setprofile(None)
    assert events.count("call") == 1  # push itself
    assert events.count("c_call") == 2  # the core, and setprofile


def test_other_arrays_do_not(program):
    frame = X[:, :3]
    others = [
        X[:, :4], frame[0], frame.astype(np.float64), frame.astype(">f4"), frame.view(Masked),
        np.zeros((1, 3, 5), np.float32), np.asfortranarray(frame), np.repeat(frame, 2, 1)[:, ::2],
        np.ndarray(frame.shape, np.float32, bytes(64), offset=1),
        {"x0": frame}, None, 3, "x", [1], object(), frame.tolist(),
    ]  # fmt: skip
    for x in others:
        assert not taken_straight(ready(program), x), x
    assert taken_straight(ready(program), frame)
    fixed = frame.copy()
    fixed.flags.writeable = False
    assert taken_straight(ready(program), fixed)


def test_what_comes_out_does_not_depend_on_the_way(program, monkeypatch):
    """Chunks of sizes that change, other dtypes and layouts between, and outputs given by the caller."""
    whole = play(program, X, [90])
    for straight in (True, False):
        if not straight:
            monkeypatch.setattr(direct, "_functions", lambda: None)
        stream, parts, n, k = program.stream(), [], 0, 0
        while n < 90:
            size = min([1, 1, 1, 2, 7, 7, 7, 7][k % 8], 90 - n)
            x = X[:, n : n + size]
            form = [x, x.copy(), np.asfortranarray(x), x.astype(np.float64), {"x0": x}][k % 5]
            room = np.empty((1, size + 8, 4), np.float32) if k % 7 == 3 else None
            parts.append(stream.push(form) if room is None else stream.push(form, out=room))
            n, k = n + size, k + 1
        assert (stream._direct is not None) == straight
        assert np.concatenate([*parts, stream.flush()], axis=1).tobytes() == whole.tobytes()


def test_strided_outputs_come_when_they_are_due():
    program = conv_plan(3, 4, 4, stride=4, pads=(2, 0))[0].program()
    stream = program.stream()
    got = [stream.push(X[:, n : n + 1]) for n in range(40)]
    assert [g.shape[1] for g in got] == [1, 0, 0, 0] * 10
    np.testing.assert_array_equal(np.concatenate(got, 1), play(program, X[:, :40], [40])[:, :10])


def test_results_are_the_callers(program):
    stream, other = ready(program), ready(program)
    first = stream.push(X[:, 18:21])
    kept = first.copy()
    first[:] = 7
    assert other.push(X[:, 18:21]).tobytes() == kept.tobytes()
    assert stream.push(X[:, 21:24]).tobytes() == other.push(X[:, 21:24]).tobytes()


def test_refusals_leave_the_stream(program):
    stream = ready(program)
    before = stream.save()
    bad = X[:, :3].copy()
    bad[0, 2, 1] = np.nan
    with pytest.raises(StreamError, match="input 'x0' is nan at \\[0, 2, 1\\]"):
        stream.push(bad)
    assert stream.save() == before
    stream.flush()
    with pytest.raises(StreamError, match="ended"):
        stream.push(X[:, :3])
    stream.reset()
    assert stream.push(X[:, :3]).tobytes() == program.stream().push(X[:, :3]).tobytes()


@pytest.mark.parametrize("policy", ["zero", "reset"])
def test_policies_hold(program, policy):
    bad = X[:, :3].copy()
    bad[0, 1, 1] = np.inf
    straight, ctypes_way = ready(program, on_nonfinite=policy), ready(program, on_nonfinite=policy)
    ctypes_way._direct, ctypes_way._pushed = None, True
    for x in (bad, X[:, 30:33], X[:, 33:36]):
        assert straight.push(x).tobytes() == ctypes_way.push(x).tobytes()


def test_another_thread_gets_its_own_scratch(program):
    whole = play(program, X, [90])
    stream, parts = program.stream(), []
    for n in range(0, 90, 3):
        thread = threading.Thread(target=lambda n=n: parts.append(stream.push(X[:, n : n + 3])))
        thread.start()
        thread.join()
        if n % 2:
            parts.append(stream.push(X[:, n + 3 : n + 3]))
    assert np.concatenate([*parts, stream.flush()], axis=1).tobytes() == whole.tobytes()


def test_streams_of_several_threads_at_once(program):
    whole = play(program, X, [90]).tobytes()
    wrong = []

    def run() -> None:
        for _ in range(30):
            stream = program.stream()
            parts = [stream.push(X[:, n : n + 3]) for n in range(0, 90, 3)]
            if np.concatenate([*parts, stream.flush()], axis=1).tobytes() != whole:
                wrong.append(1)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_references_are_balanced(program):
    """Of arrays, None, the empty result and the stream itself."""
    stream, x = ready(program), X[:, :3].copy()
    empty, odd = stream._empty[0], X[:, :5]
    counted = [x, None, empty, odd]

    def counts() -> list[int]:
        return [sys.getrefcount(value) for value in counted]

    before = counts()
    for _ in range(1000):
        stream.push(x)
        stream._direct.push(odd)
    after = counts()
    assert all(abs(a - b) < 50 for a, b in zip(after, before)), (before, after)
    kept = len(gc.get_objects())
    for _ in range(50):
        ready(program)
    gc.collect()
    assert len(gc.get_objects()) - kept < 50


def test_large_arrays_are_not_copied():
    program = conv_plan(3, 64, 4, pads=(2, 0))[0].program()
    x = np.random.default_rng(1).standard_normal((1, 600, 64)).astype(np.float32)
    stream = program.stream()
    first = stream.push(x)
    assert stream.push(x).shape == first.shape
    assert stream._direct.push(x) is not None


def test_layouts_that_are_not_numpys_are_seen(monkeypatch):
    monkeypatch.setattr(direct, "_seen", lambda core, array: (0,))
    direct._functions.cache_clear()
    try:
        assert direct._functions() is None
    finally:
        monkeypatch.undo()
        direct._functions.cache_clear()
    assert direct._functions() is not None
