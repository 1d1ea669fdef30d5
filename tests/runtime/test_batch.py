"""Batches: lanes that come and go give bit for bit what streams of their own give."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from plans import SKIP, conv_plan, needs_core

from runnel.errors import StreamError

pytestmark = pytest.mark.skipif(needs_core, reason=SKIP)
X = np.random.default_rng(6).standard_normal((1, 400, 4)).astype(np.float32)


PLANS = {
    "single": {"hop": 3, "dilation": 2, "pads": (4, 4)},
    "apart": {"hop": 3, "dilation": 2, "pads": (4, 4), "apart": True},
    "rows-and-apart": {"hop": 5, "stride": 2, "pads": (2, 2), "rows": 2, "run": True, "apart": True},
    "shared": {"hop": 2, "pads": (4, 0), "apart": True, "shared": True},
}


@pytest.fixture(params=PLANS)
def program(request):
    return conv_plan(5, 4, 4, **PLANS[request.param])[0].program()


def whole(program, x):
    stream = program.stream()
    return np.concatenate([stream.push(x), stream.flush()], axis=1)


@pytest.mark.parametrize("lanes", [1, 3, 16, 17, 40])
def test_lanes_at_any_positions_equal_single_streams(program, lanes):
    random = np.random.default_rng(lanes)
    batch = program.batch(lanes)
    fed = {batch.join(): [X[:, k : k + 60]] for k in range(lanes)}
    got = {lane: [] for lane in fed}
    at = dict.fromkeys(fed, 0)
    while any(at[lane] < 60 for lane in fed):
        part = {}
        for lane in random.permutation(lanes)[: random.integers(1, lanes + 1)]:
            size = int(random.integers(0, 11))
            part[int(lane)] = fed[lane][0][:, at[lane] : at[lane] + size]
            at[lane] = min(60, at[lane] + size)
        for lane, y in batch.push(part).items():
            got[lane].append(y)
    for lane, (x,) in fed.items():
        got[lane].append(batch.flush(lane))
        assert np.concatenate(got[lane], axis=1).tobytes() == whole(program, x).tobytes()


def test_states_lie_in_one_block_and_snapshots_serve_streams_and_batches(program):
    batch = program.batch(4)
    first, second = batch.join(), batch.join()
    batch.push({first: X[:, :20], second: X[:, :7]})
    twin = batch.clone(first)
    alone = program.stream(state=batch.save(second))
    back = batch.join(state=alone.save())
    assert batch.lanes == (0, 1, 2, 3) and [batch.position(i) for i in batch.lanes] == [20, 7, 20, 7]
    y = batch.push({first: X[:, 20:50], twin: X[:, 20:50], second: X[:, 7:30], back: X[:, 7:30]})
    assert y[first].tobytes() == y[twin].tobytes()
    assert y[second].tobytes() == y[back].tobytes() == alone.push(X[:, 7:30]).tobytes()
    batch.restore(first, batch.save(second))
    assert batch.push({first: X[:, 30:40]})[first].tobytes() == batch.push({second: X[:, 30:40]})[second].tobytes()
    for state in (b"", bytes(len(batch.save(first)))):
        with pytest.raises(StreamError, match="^lane 0: .*another program"):
            batch.restore(first, state)
    batch.leave(twin)
    assert twin not in batch.lanes and batch.join() == twin and batch.position(twin) == 0


def test_a_refused_input_names_its_lane_and_leaves_all_lanes_as_they_were(program):
    batch = program.batch(20)
    for _ in range(20):
        batch.join()
    batch.push({lane: X[:, : lane + 1] for lane in batch.lanes})
    batch.flush(5)
    before = [batch.save(lane) for lane in batch.lanes]
    nan = X[:, :3].copy()
    nan[0, 1, 2] = np.nan
    fine = {lane: X[:, :9] for lane in batch.lanes if lane != 5}
    for lane in (0, 11, 19):
        for bad, why in [(nan, "nan at"), (X[0], "shape"), (X.astype(np.int16), "int16"), ("x", "numpy array")]:
            with pytest.raises(StreamError, match=f"^lane {lane}: .*{why}"):
                batch.push(fine | {lane: bad})
    with pytest.raises(StreamError, match="^lane 5: the stream has ended"):
        batch.push(fine | {5: X[:, :0]})
    with pytest.raises(StreamError, match="there is no lane 20"):
        batch.push(fine | {20: X})
    assert [batch.save(lane) for lane in batch.lanes] == before
    batch.reset(5)
    assert batch.push(fine | {5: X[:, :9]}).keys() == set(batch.lanes)


def test_policies_and_gaps_are_those_of_the_lane(program):
    batch = program.batch(3)
    zero, reset, strict = (batch.join(on_nonfinite=policy) for policy in ("zero", "reset", "error"))
    batch.push(dict.fromkeys(batch.lanes, X[:, :10]))
    bad, clean = X[:, 10:80].copy(), X[:, 10:80].copy()
    bad[0, 3, 1], clean[0, 3, 1] = np.inf, 0
    alone, fresh = program.stream(), program.stream()
    alone.push(X[:, :10])
    y = batch.push({zero: bad, reset: bad})
    assert y[zero].tobytes() == alone.push(clean).tobytes()
    assert y[reset].tobytes() == fresh.push(clean).tobytes()
    assert batch.gap(zero, 4).tobytes() == alone.gap(4).tobytes()
    assert batch.gap(reset, 4, "reset").shape[1] == 0 and batch.position(reset) == 0
    with pytest.raises(StreamError, match="^lane 2: there is no gap policy"):
        batch.gap(strict, 1, "hold")


def test_lanes_run_out_and_a_capacity_is_positive(program):
    batch = program.batch(1)
    batch.join()
    for act in (batch.join, lambda: batch.clone(0)):
        with pytest.raises(StreamError, match="all 1 lanes"):
            act()
    with pytest.raises(StreamError, match="capacity"):
        program.batch(0)
    for act in (batch.leave, batch.reset, batch.save, batch.clone, batch.flush, batch.position):
        with pytest.raises(StreamError, match="there is no lane 3 in the batch; those in use are 0"):
            act(3)


def test_a_failing_join_takes_no_lane(program):
    batch = program.batch(1)
    for wrong in ({"state": b""}, {"on_nonfinite": "ignore"}, {"inputs": {"emb": X}}):
        with pytest.raises(StreamError):
            batch.join(**wrong)
    assert batch.lanes == () and batch.join() == 0


def test_batches_and_streams_of_one_program_on_threads(program):
    expected = whole(program, X)
    wrong: list[str] = []

    def run_batch() -> None:
        batch = program.batch(4)
        lanes = [batch.join() for _ in range(4)]
        got = [batch.push(dict.fromkeys(lanes, X[:, i : i + 10])) for i in range(0, 400, 10)]
        for lane in lanes:
            y = np.concatenate([g[lane] for g in got] + [batch.flush(lane)], axis=1)
            if y.tobytes() != expected.tobytes():
                wrong.append(f"lane {lane}")

    def run_stream() -> None:
        for _ in range(5):
            stream = program.stream()
            y = np.concatenate([stream.push(X[:, i : i + 10]) for i in range(0, 400, 10)] + [stream.flush()], axis=1)
            if y.tobytes() != expected.tobytes():
                wrong.append("stream")

    threads = [threading.Thread(target=f) for f in (run_batch, run_stream, run_batch, run_stream)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
