"""The stream's interface on the native backend: snapshots, errors, policies, the figures it gives."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from plans import IN, OUT, SKIP, WEIGHTS, Plan, conv_plan, needs_core, play

from runnel.errors import BundleError, InternalError, StreamError

pytestmark = pytest.mark.skipif(needs_core, reason=SKIP)
X = np.random.default_rng(5).standard_normal((1, 50, 4)).astype(np.float32)


@pytest.fixture
def program():
    return conv_plan(5, 4, 4, hop=3, dilation=2, pads=(4, 4))[0].program()


def test_a_snapshot_and_a_clone_go_on_alike(program):
    whole = play(program, X, [50])
    stream = program.stream()
    first = stream.push(X[:, :23])
    twin, saved = stream.clone(), stream.save()
    assert len(saved) == program.state_bytes
    rest = [np.concatenate([s.push(X[:, 23:]), s.flush()], axis=1) for s in (stream, twin, program.stream(state=saved))]
    for tail in rest:
        assert np.concatenate([first, tail], axis=1).tobytes() == whole.tobytes()


def test_a_foreign_state_is_refused(program):
    other = conv_plan(3, 4, 4)[0].program()
    saved = other.stream().save()
    for state in (saved, b"", program.stream().save()[:-1], bytes(program.state_bytes)):
        with pytest.raises(StreamError, match="another program"):
            program.stream(state=state)


def test_reset_starts_again(program):
    stream = program.stream()
    once = np.concatenate([stream.push(X), stream.flush()], axis=1)
    with pytest.raises(StreamError, match="ended"):
        stream.push(X)
    with pytest.raises(StreamError, match="ended"):
        stream.flush()
    stream.reset()
    assert stream.position == 0
    assert np.concatenate([stream.push(X), stream.flush()], axis=1).tobytes() == once.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [1, 40])
def test_nonfinite_samples(program, value, size):
    bad, clean = X[:, 10 : 10 + size].copy(), X[:, 10 : 10 + size].copy()
    bad[0, -1, 2], clean[0, -1, 2] = value, 0
    stream = program.stream()
    stream.push(X[:, :10])
    before = stream.save()
    with pytest.raises(StreamError, match=r"x0.*on_nonfinite"):
        stream.push(bad)
    assert stream.save() == before
    expected = stream.push(clean)
    zero = program.stream(on_nonfinite="zero")
    zero.push(X[:, :10])
    assert zero.push(bad).tobytes() == expected.tobytes()
    reset = program.stream(on_nonfinite="reset")
    reset.push(X[:, :10])
    fresh = program.stream()
    assert reset.push(bad).tobytes() == fresh.push(clean).tobytes()
    assert reset.position == size
    with pytest.raises(StreamError, match="on_nonfinite"):
        program.stream(on_nonfinite="ignore")


def test_inputs_are_checked_in_words(program):
    stream = program.stream()
    for wrong, said in [
        (X.astype(np.int16), "int16 and needs float32"),
        (X[0], "got shape"),
        (X[..., :3], "got shape"),
        (X.tolist(), "list"),
        ({"x": X}, "does not match"),
        (X.astype(np.float16), "float16"),
    ]:
        with pytest.raises(StreamError, match=said):
            stream.push(wrong)
    assert stream.position == 0
    expected = program.stream().push(X)
    for same in (X.astype(np.float64), np.asfortranarray(X), np.repeat(X, 2, axis=1)[:, ::2], {"x0": X}):
        assert program.stream().push(same).tobytes() == expected.tobytes()


def test_out_is_written_in_place(program):
    expected = program.stream().push(X)
    room = np.full((1, 60, 4), 7, np.float32)
    got = program.stream().push(X, out=room)
    assert np.shares_memory(got, room)
    assert got.tobytes() == expected.tobytes()
    assert (room[:, got.shape[1] :] == 7).all()
    stream = program.stream()
    for wrong in (room[:, :5], room.astype(np.float64), room[..., ::2]):
        with pytest.raises(StreamError, match="out for"):
            stream.push(X, out=wrong)
    assert stream.position == 0


def test_results_do_not_share_memory(program):
    stream = program.stream()
    first = stream.push(X[:, :20])
    kept = first.copy()
    stream.push(X[:, 20:40])
    assert (first == kept).all()


def test_long_pushes_equal_short_ones(program):
    long = np.random.default_rng(6).standard_normal((1, 50_000, 4)).astype(np.float32)
    whole = play(program, long, [])
    assert whole.shape == long.shape
    assert play(program, long, [1, 2, 30_000]).tobytes() == whole.tobytes()


def test_a_program_is_shared_by_threads(program):
    expected = play(program, X, [7, 9])
    results = []
    threads = [threading.Thread(target=lambda: results.append(play(program, X, [7, 9]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(r.tobytes() == expected.tobytes() for r in results)
    assert len(results) == 8


def test_a_length_that_the_model_does_not_take_is_refused():
    program = conv_plan(5, 4, 4, pads=(0, 0))[0].program(clock={"rate": 100, "shortest": 5})
    stream = program.stream()
    stream.push(X[:, :4])
    with pytest.raises(StreamError, match="no fewer than 5"):
        stream.flush()
    stream.push(X[:, 4:5])
    stream.flush()


def test_a_failing_kernel_breaks_the_stream_until_reset():
    plan = Plan()
    x, y = plan.buffer(4, 1), plan.buffer(4, 1)
    params = plan.constant([4, 4, 1, 1, 0, 0], np.int32)
    plan.input(x)
    plan.call("fails", 0, 0, [[IN, x, 1], [WEIGHTS, params], [WEIGHTS, params], [OUT, y, 1]])
    plan.output(y, 0, 0)
    stream = plan.program().stream()
    with pytest.raises(InternalError, match="kernel"):
        stream.push(X[:, :1])
    with pytest.raises(StreamError, match="reset"):
        stream.push(X[:, :1])
    stream.reset()
    assert stream.position == 0


def test_denormals_are_zero_inside_and_left_alone_outside():
    plan, w = conv_plan(1, 1, 1, pads=(0, 0))
    stream = plan.program().stream()
    assert stream.push(np.full((1, 1, 1), 1e-40, np.float32)).item() == 0
    assert np.float32(1e-38) * np.float32(0.01) != 0


def test_a_manifest_that_does_not_fit_the_plan_is_refused():
    plan, _ = conv_plan()
    port = plan.manifest()["inputs"][0]
    with pytest.raises(BundleError, match="x0"):
        plan.program(inputs=[port | {"shape": [1, None, 5]}])
    with pytest.raises(BundleError, match="ports"):
        plan.program(inputs=[port, port | {"name": "z"}])


def test_a_gap_is_zeros_or_a_new_start():
    plan, _ = conv_plan()
    program = plan.program()
    stream, twin = program.stream(), program.stream()
    zeros = np.zeros_like(X[:, :5])
    expected = [twin.push(X[:, :7]), twin.push(zeros), twin.push(X[:, 7:]), twin.flush()]
    got = [stream.push(X[:, :7]), stream.gap(5), stream.push(X[:, 7:]), stream.flush()]
    for want, have in zip(expected, got):
        np.testing.assert_array_equal(have, want)
    stream.reset()
    stream.push(X[:, :7])
    assert stream.gap(5, "reset").shape[1] == 0
    assert stream.position == 0
    for wrong in ((-1, "zero"), (1, "hold")):
        with pytest.raises(StreamError):
            stream.gap(*wrong)
    with pytest.raises(StreamError, match="strength"):
        stream.set("strength", 0.5)
