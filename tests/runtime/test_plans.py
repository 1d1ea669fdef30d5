"""Hand-written plans: chunked equals whole, whatever the chunks; poisoned memory never shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import (
    EDGE,
    FILL,
    FRAME,
    IN,
    LAST,
    OUT,
    REFLECT,
    RING,
    SCRATCH,
    SKIP,
    WEIGHTS,
    Plan,
    conv,
    conv_plan,
    needs_core,
    play,
)

from runnel.errors import BundleError

pytestmark = pytest.mark.skipif(needs_core, reason=SKIP)
RNG = np.random.default_rng(3)


def noise(frames, elements):
    return RNG.standard_normal((1, frames, elements)).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    taps=st.integers(1, 5), stride=st.integers(1, 4), dilation=st.integers(1, 4), hop=st.integers(1, 9),
    left=st.integers(0, 4), right=st.integers(0, 4), rows=st.sampled_from([1, 1, 2, 4]), run=st.booleans(),
    frames=st.integers(0, 40), chunks=st.lists(st.integers(0, 12), max_size=6),
)  # fmt: skip
def test_convolutions_equal_numpy_for_every_chunking(
    taps, stride, dilation, hop, left, right, rows, run, frames, chunks
):
    dilation = 1 if run else dilation
    reach = (taps - 1) * dilation + 1
    left, right = min(left, reach - 1), min(right, reach - 1)
    plan, w = conv_plan(taps, 4, 3, hop, stride, dilation, (left, right), rows, run)
    x = noise(frames, 4)
    got = play(plan.program(), x, chunks)
    expected = conv(x[0], w, stride, dilation, (left, right))
    assert got.shape[1] == len(expected)
    np.testing.assert_allclose(got[0], expected, rtol=0, atol=2e-5)
    one_row, _ = conv_plan(taps, 4, 3, 1, stride, dilation, (left, right))
    assert got.tobytes() == play(one_row.program(), x, [1] * frames).tobytes()


def test_channels_before_time_are_transposed():
    plan, w = conv_plan(3, 4, 6, hop=3, outer=2)
    x = RNG.standard_normal((2, 17, 2)).astype(np.float32)  # [outer, frames, inner]
    got = play(plan.program(), x, [5, 1, 4])
    frames = x.transpose(1, 0, 2).reshape(17, 4)
    expected = conv(frames, w, 1, 1, (1, 1)).reshape(17, 2, 3).transpose(1, 0, 2)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("hop", [1, 3])
def test_upsampling_writes_blocks_of_frames(hop):
    plan = Plan(hop)
    x = plan.buffer(2, hop, space=SCRATCH)
    double = plan.clock(3)
    y = plan.buffer(2, 3 * hop + 3, made=double, length=double)
    params = plan.constant([2, 2, 3, 1, 0, 0], np.int32)
    plan.input(x)
    plan.call("upsample", 0, 0, [[IN, x, 1], [WEIGHTS, plan.constant([1, 2, 3])], [WEIGHTS, params], [OUT, y, 3]])
    plan.output(y, double, double)
    data = noise(7, 2)
    got = play(plan.program(), data, [2, 3])
    np.testing.assert_array_equal(got[0], (data[0][:, None] * np.float32([1, 2, 3])[:, None]).reshape(-1, 2))


@pytest.mark.parametrize("mode", [FILL, REFLECT, EDGE])
@pytest.mark.parametrize("hop", [1, 4])
def test_copy_pads_at_both_ends(mode, hop):
    left, right = 2, 3
    plan = Plan(hop)
    x = plan.buffer(1, 8 + 2 * hop)
    # A reflection needs the frames that it mirrors: frame 0 of the padded sequence is due with frame `left`.
    late = plan.clock(1, -left if mode == REFLECT else 0)
    made = plan.clock(1, left, a=late) if mode != REFLECT else plan.clock(1, 0, a=late)
    length = plan.clock(1, left + right)
    y = plan.buffer(1, 2 * left + hop + 8, made=made, length=length)
    plan.input(x)
    plan.copy(made, length, x, y, -left, mode, 0, fill=9.0)
    plan.output(y, made, length)
    data = noise(11, 1)
    how = {FILL: {"mode": "constant", "constant_values": 9.0}, REFLECT: {"mode": "reflect"}, EDGE: {"mode": "edge"}}[
        mode
    ]
    expected = np.pad(data[0, :, 0], (left, right), **how)
    for chunks in ([], [1] * 11, [3, 5]):
        np.testing.assert_array_equal(play(plan.program(), data, chunks)[0, :, 0], expected)


def recurrence(hop, initial):
    plan = Plan(hop)
    x = plan.buffer(2, hop, space=SCRATCH)
    h = plan.buffer(2, 2, lead=1, initial=initial)
    y = plan.buffer(2, hop, space=SCRATCH)
    params = plan.constant([2, 2, 1, 1, 0, 0], np.int32)
    zero = plan.buffer(2, 1, lead=1)  # frame 0 is read, never made: slot 0 is frame -1
    plan.input(x)
    plan.repeat(0, 0, 2)
    plan.call(
        "leaky", 0, 0, [[IN, x, 1], [IN, h, 1, -1], [WEIGHTS, plan.constant([0.5])], [WEIGHTS, params], [OUT, h, 1]]
    )
    plan.call(
        "leaky", 0, 0, [[IN, h, 1], [IN, zero, 0, -1], [WEIGHTS, plan.constant([1.0])], [WEIGHTS, params], [OUT, y, 1]]
    )
    plan.output(y, 0, 0)
    plan.output(h, 0, 0, tail=(1, 0))
    return plan


@pytest.mark.parametrize("hop", [1, 5])
def test_recurrence_starts_from_its_initial_state_and_gives_the_last_at_the_end(hop):
    program = recurrence(hop, [[1.0, -2.0]]).program()
    data = noise(13, 2)
    h, expected = np.float32([1, -2]), []
    for frame in data[0]:
        h = np.float32(0.5) * h + frame
        expected.append(h)
    for chunks in ([13], [1] * 13, [4, 7, 2]):
        stream, at, pieces = program.stream(), 0, []
        for n in chunks:
            pieces.append(stream.push(data[:, at : at + n])["y0"])
            at += n
        end = stream.flush()
        np.testing.assert_array_equal(np.concatenate([*pieces, end["y0"]], axis=1)[0], expected)
        np.testing.assert_array_equal(end["y1"][0], expected[-1:])


def skipping(hop):
    """y is x, and twice that for frames of x whose first byte is not 0, and again for those with one in z as well."""
    plan = Plan(hop)
    x, z = (plan.buffer(1, hop, space=SCRATCH) for _ in range(2))
    y = plan.buffer(1, 3 * hop)
    params = plan.constant([1, 1, 1, 1, 0, 0], np.int32)
    plan.input(x)
    plan.input(z)
    plan.copy(0, 0, x, y, 0, 0, 0)
    twice = [[IN, y, 1], [IN, y, 1], [WEIGHTS, plan.constant([1.0])], [WEIGHTS, params], [OUT, y, 1]]
    plan.skip_if(0, 0, x, 1, 3)
    plan.call("leaky", 0, 0, twice)
    plan.skip_if(0, 0, z, 0, 1)
    plan.call("leaky", 0, 0, twice)
    plan.output(y, 0, 0)
    return plan


@pytest.mark.parametrize("hop", [1, 5])
def test_frames_that_flags_do_not_choose_are_skipped(hop):
    program = skipping(hop).program()
    rng = np.random.default_rng(4)
    words = rng.integers(0, 2, (2, 1, 23, 1)) * 3 + (np.float32([1.5, 2.5]).view(np.int32)[:, None, None, None])
    x, z = words.astype(np.int32).view(np.float32)
    first, second = (words & 255 != 0)[:, 0, :, 0]
    times = np.where(first, np.where(second, 2, 4), 1).astype(np.float32)
    assert len(set(times)) == 3
    for chunk in (1, 4, 23):
        stream = program.stream()
        parts = [stream.push({"x0": x[:, at : at + chunk], "x1": z[:, at : at + chunk]}) for at in range(0, 23, chunk)]
        np.testing.assert_array_equal(np.concatenate(parts, 1)[0, :, 0], x[0, :, 0] * times)


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [(4, 77, "no flag"), (5, 2, "no flag"), (6, 0, "more than what follows"), (6, 4, "more than what follows")],
)
def test_a_skip_that_makes_no_sense_is_refused(at, value, said):
    plan = skipping(1)
    plan.code[10 + at] = value
    with pytest.raises(BundleError, match=said):
        plan.program()


def test_only_calls_are_skipped():
    plan = skipping(1)
    plan.code = plan.code[10:17] + plan.code[:10] + plan.code[17:]
    with pytest.raises(BundleError, match="no CALL"):
        plan.program()


def test_what_exists_before_any_input_is_made_by_the_first_step():
    plan = Plan()
    x = plan.buffer(1, 4)
    made = plan.clock(1, 2)
    y = plan.buffer(1, 8, made=made, length=made)
    plan.input(x)
    plan.copy(made, made, x, y, -2, FILL, 0)
    plan.output(y, made, made)
    stream = plan.program().stream()
    assert stream.push(np.ones((1, 0, 1), np.float32)).shape == (1, 0, 1)
    np.testing.assert_array_equal(stream.push(np.ones((1, 1, 1), np.float32)).ravel(), [0, 0, 1])
    assert play(plan.program(), np.ones((1, 0, 1), np.float32), []).ravel().tolist() == [0, 0]


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("chunks", [[], [1] * 9, [2, 0, 4]])
def test_a_kernel_gets_its_frame_number_and_the_length_once_it_is_known(rows, chunks):
    late, plan = 2, Plan(hop=3)
    made = plan.clock(1, -late)
    x = plan.buffer(1, 8, margin=rows - 1, tail=1)
    y = plan.buffer(3, 8, made=made, margin=rows - 1)
    plan.input(x)
    plan.call("numbers", made, 0, [[IN, x, 1], [FRAME, 0], [OUT, y, 1]], rows)
    plan.output(y, made, 0)
    data = noise(9, 1)
    got = play(plan.program(), data, chunks)[0]
    np.testing.assert_array_equal(got[:, 0], data[0, :, 0])
    np.testing.assert_array_equal(got[:, 1], np.arange(9))
    np.testing.assert_array_equal(got[:, 2], [-1] * (9 - late) + [9] * late)


@pytest.mark.parametrize("chunks", [[], [1] * 20, [3, 0, 7, 1]])
def test_a_kernel_finds_frames_in_a_ring_itself(chunks):
    hop, x_slots = 3, 7
    plan = Plan(hop=hop)
    x = plan.buffer(1, x_slots, lead=4)
    y = plan.buffer(1, 8)
    plan.input(x)
    plan.call("ring", 0, 0, [[RING, x, 1, -4, 5, 1], [OUT, y, 1]])
    plan.output(y, 0, 0)
    data = np.arange(20, dtype=np.float32).reshape(1, 20, 1)
    padded = np.concatenate([np.zeros(4), np.arange(20)])
    wanted = [padded[i : i + 5].sum() for i in range(20)]
    np.testing.assert_array_equal(play(plan.program(), data, chunks).ravel(), wanted)


def test_a_ring_keeps_the_frames_that_a_kernel_reads():
    plan = Plan(hop=1)
    x, y = plan.buffer(1, 4, lead=4), plan.buffer(1, 8)
    plan.input(x)
    plan.call("ring", 0, 0, [[RING, x, 1, -4, 5, 1], [OUT, y, 1]])
    plan.output(y, 0, 0)
    with pytest.raises(Exception, match="does not keep so many"):
        play(plan.program(), np.ones((1, 3, 1), np.float32), [])


def test_history_costs_what_a_step_writes_whatever_the_dilation():
    copied = []
    for dilation in (1, 64):
        plan, _ = conv_plan(3, 16, 16, dilation=dilation, pads=(2 * dilation, 0))
        stream = plan.program(poison=False).stream()
        for _ in range(500):
            stream.push(noise(1, 16))
        copied.append(stream.counters["margin_bytes"])
    assert copied == [0, 0]


def test_a_run_costs_at_most_its_margin_once_around():
    plan, _ = conv_plan(3, 4, 4, run=True)
    stream = plan.program().stream()
    stream.push(noise(500, 4))
    assert stream.counters["margin_bytes"] <= 500 * 16


def ending(hop, tail=0):
    """y = x, three frames late; once, at the end: y[-1] + 2 y[-3]."""
    plan = Plan(hop)
    made = plan.clock(1, -3)
    end = plan.ended(plan.clock(1, -3), 0)
    once = plan.const(1)
    x = plan.buffer(2, hop + 3, tail=tail)
    y = plan.buffer(2, hop + 3, made=made, tail=tail)
    z = plan.buffer(2, 1, made=end, length=once)
    plan.input(x)
    plan.copy(made, 0, x, y, 0, FILL, 0)
    params = plan.constant([2, 2, 1, 1, 0, 0], np.int32)
    weights = [WEIGHTS, plan.constant([2.0])]
    plan.call("leaky", end, once, [[LAST, y, 0, -1], [LAST, y, 0, -3], weights, [WEIGHTS, params], [OUT, z, 1]])
    plan.output(z, end, once)
    return plan


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("hop", [1, 2, 5])
def test_what_waits_for_the_end_is_made_once(hop, tail):
    data = noise(13, 2)
    for chunks in ([], [1] * 13, [4, 7, 2]):
        stream, at = ending(hop, tail).program().stream(), 0
        for n in [*chunks, 13 - sum(chunks)]:
            assert stream.push(data[:, at : at + n]).shape[1] == 0
            at += n
        assert stream.counters["kernel_calls"] == 0
        np.testing.assert_array_equal(stream.flush()[0, 0], data[0, -1] + np.float32(2) * data[0, -3])
        assert stream.counters["kernel_calls"] == 1


@pytest.mark.parametrize("change", ["offset", "clock", "taps", "stride"])
def test_a_frame_from_the_end_is_read_once(change):
    from runnel.errors import BundleError

    plan = ending(1)
    at = plan.code.index(1, 10)
    call = plan.code[at:]
    assert call[:2] == [1, len(call)]
    if change == "clock":
        plan.code[at + 2] = 0
    else:
        plan.code[at + 10 + {"stride": 2, "offset": 3, "taps": 4}[change]] = 2
    with pytest.raises(BundleError, match="counts a frame from the end"):
        plan.program()
