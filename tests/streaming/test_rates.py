"""Inputs of different rates, and outputs with different delays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from nets import Net
from oracle import Offline

import runnel
from runnel.errors import InputError, StreamError

LENGTHS = (1, 2, 3, 5, 8, 13, 21)


def two(fast: int = 4, slow: int = 1) -> tuple[Net, str, str]:
    """A net with inputs of ``fast`` and ``slow`` frames a tick."""
    net = Net()
    return net, net.input([1, 2, "samples"], "audio"), net.input([1, 3, "frames"], "video")


def joined(look: int = 0) -> bytes:
    """Audio brought to the rate of the video, joined with it; look: frames of the future of the video."""
    net, audio, video = two()
    a = net.conv(net.op("Relu", net.conv(audio, 2, 4, 5, pads=[2, 2])), 4, 3, 4, strides=[4])
    v = net.conv(video, 3, 3, 2 + look, pads=[1, look])
    return net.model(net.op("Concat", net.op("Add", a, v), v, axis=1))


RATES = {"audio": 100.0, "video": 25.0}


@pytest.mark.parametrize("look", [0, 2])
def test_audio_and_video_join_at_the_rate_of_the_video(check, look):
    check(joined(look), rate=RATES, lengths=LENGTHS)


def test_a_slow_input_is_brought_to_the_rate_of_a_fast_one(check):
    net, audio, video = two()
    v = net.conv_transpose(video, 3, 2, 4, strides=[4])
    check(net.model(net.conv(net.op("Mul", audio, v), 2, 2, 3, pads=[2, 0])), rate=RATES, lengths=LENGTHS)


def test_rates_without_a_common_multiple(check):
    net, audio, video = two()
    a = net.conv(audio, 2, 3, 3, strides=[3])
    v = net.conv(video, 3, 3, 2, strides=[2])
    check(net.model(net.op("Sub", a, v)), rate={"audio": 37.5, "video": 25}, lengths=LENGTHS)


def test_two_outputs_of_their_own_rates(check):
    net, audio, video = two()
    a = net.conv(audio, 2, 2, 9, pads=[0, 8])
    v = net.op("Relu", net.conv(video, 3, 2, 3, pads=[2, 0]))
    check(net.model(a, v), rate=RATES, lengths=LENGTHS)
    check(net.model(a, v), rate=RATES, lengths=LENGTHS, align=True)


def test_aligned_outputs_come_out_together(check):
    net = Net()
    x = net.input([1, 3, "T"])
    early = net.conv(x, 3, 2, 3, pads=[2, 0])
    late = net.conv(x, 3, 2, 9, pads=[4, 4])
    half = net.conv(x, 3, 2, 2, strides=[2])
    model = net.model(early, late, half)
    check(model, align=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("rates") / "m.rnl"
    runnel.compile(joined(2), path, rate=RATES)
    return path


@pytest.fixture(params=["native", "onnxruntime"])
def program(request, bundle):
    return runnel.load(bundle, backend=request.param)


def recording(ticks: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(ticks)
    audio, video = random.standard_normal((1, 2, 4 * ticks)), random.standard_normal((1, 3, ticks))
    return {"audio": audio.astype(np.float32), "video": video.astype(np.float32)}


def whole(program, x):
    stream = program.stream()
    return np.concatenate([stream.push(x), stream.flush()], axis=2)


def test_inputs_come_in_any_amounts(program):
    x = recording(30)
    expected = whole(program, x)
    random = np.random.default_rng(2)
    for _ in range(5):
        stream, at, parts = program.stream(), {"audio": 0, "video": 0}, []
        ends = {name: array.shape[2] for name, array in x.items()}
        while at != ends:
            part = {}
            for name, size in (("audio", 19), ("video", 5)):
                if at[name] / ends[name] <= min(at[n] / ends[n] for n in at) + 0.3 and random.random() < 0.8:
                    stop = min(ends[name], at[name] + int(random.integers(0, size)))
                    part[name], at[name] = x[name][..., at[name] : stop], stop
            parts.append(stream.push(part))
            if random.random() < 0.3:
                stream = random.choice([stream.clone(), program.stream(state=stream.save())])
        parts.append(stream.flush())
        assert np.concatenate(parts, axis=2).tobytes() == expected.tobytes()


def test_an_input_that_runs_ahead_is_named_and_nothing_is_lost(program):
    x = recording(60)
    stream = program.stream()
    ahead = program.manifest["clock"]["ahead"]
    stream.push({"audio": x["audio"][..., : 4 * ahead]})
    before = stream.save()
    for extra in (1, 50):
        with pytest.raises(StreamError, match="'audio' runs ahead of 'video'"):
            stream.push({"audio": x["audio"][..., :extra]})
    with pytest.raises(StreamError, match="'mouse' is no input"):
        stream.push({"mouse": x["audio"]})
    assert stream.save() == before
    assert stream.position == 0
    stream.push({"video": x["video"][..., :ahead]})
    assert stream.position == ahead


def test_an_end_at_different_times_says_what_is_missing(program):
    x = recording(10)
    stream = program.stream()
    stream.push({"audio": x["audio"][..., :38], "video": x["video"]})
    with pytest.raises(StreamError, match="2 frames of 'audio' missing"):
        stream.flush()
    stream.push({"audio": x["audio"][..., 38:]})
    stream.flush()


def test_samples_that_are_not_finite_are_told_when_they_come(program):
    x = recording(10)
    bad = x["audio"][..., :7].copy()
    bad[0, 1, 5] = np.nan
    stream = program.stream()
    with pytest.raises(StreamError, match="'audio' is nan"):
        stream.push({"audio": bad})
    zero = program.stream(on_nonfinite="zero")
    zero.push({"audio": bad})
    assert np.isfinite(zero.push({"audio": x["audio"][..., 7:], "video": x["video"]})).all()


def test_the_manifest_says_where_frames_belong(tmp_path):
    net, audio, video = two()
    a = net.conv(audio, 2, 2, 9, pads=[0, 8])
    info = runnel.compile(net.model(a, net.op("Relu", video)), tmp_path / "m.rnl", rate=RATES)
    slow, fast = sorted(info.manifest["outputs"], key=lambda port: port["rate"])
    assert (slow["ratio"], slow["rate"], slow["latency_frames"]) == ([1, 1], 25.0, 0)
    assert (fast["ratio"], fast["rate"], fast["latency_frames"], fast["latency_seconds"]) == ([4, 1], 100.0, 2, 0.08)
    program = runnel.load(tmp_path / "m.rnl")
    assert [(p.name, p.per_tick, p.rate) for p in program.inputs] == [("audio", 4, 100.0), ("video", 1, 25.0)]
    page = runnel.inspect(net.model(a, net.op("Relu", video)), rate=RATES)
    assert {p["name"]: p["look_ahead"] for p in page.inputs} == {"audio": 8, "video": 0}
    assert "2 late (80.0 ms)" in page.text()


def test_rates_in_the_metadata(tmp_path):
    model = onnx.load_from_string(joined())
    entry = model.metadata_props.add()
    entry.key, entry.value = "runnel.rate", "audio:100,video:25"
    assert runnel.inspect(model).rate == 25
    entry.value = "audio:fast"
    with pytest.raises(InputError, match=r"runnel\.rate"):
        runnel.inspect(model)


@pytest.mark.parametrize(
    ("rate", "why"),
    [
        ({"audio": 100.0}, "'video' has an open axis 2, so it needs a rate"),
        ({"audio": 100.0, "mouse": 25.0}, "'mouse' needs to be an input"),
        ({"audio": 0.0, "video": 25.0}, "rate 0.0 of input 'audio'"),
        ({"audio": 1000003.0, "video": 999983.0}, "meet only after 1000003 frames"),
    ],
)
def test_rates_that_do_not_fit(rate, why):
    with pytest.raises(InputError, match=why):
        runnel.inspect(joined(), rate=rate)


def test_receptive_fields_are_those_of_a_probe():
    """Frames of each input that change one output frame, found by changing them one by one."""
    model = joined(2)
    page = runnel.inspect(model, rate=RATES)
    offline = Offline(model)
    x = recording(12)
    (before,) = offline(x).values()
    for port in page.inputs:
        changed = []
        for frame in range(x[port["name"]].shape[2]):
            y = {name: array.copy() for name, array in x.items()}
            y[port["name"]][..., frame] += 1
            if (next(iter(offline(y).values()))[..., 5] != before[..., 5]).any():
                changed.append(frame)
        here = 5 * port["per_tick"]
        assert len(changed) == changed[-1] - changed[0] + 1 == port["receptive_field"], port["name"]
        assert changed[-1] - here == port["look_ahead"], port["name"]


def test_a_gap_is_one_of_all_inputs(program):
    x = recording(20)
    stream, other = program.stream(), program.stream()
    parts = [[s.push({name: a[..., : a.shape[2] // 2] for name, a in x.items()})] for s in (stream, other)]
    parts[0].append(stream.gap(3))
    parts[1].append(other.push({"audio": np.zeros((1, 2, 12), np.float32), "video": np.zeros((1, 3, 3), np.float32)}))
    assert parts[0][1].tobytes() == parts[1][1].tobytes() and stream.position == 13


def test_a_snapshot_of_another_size_is_refused(program):
    saved = program.stream().save()
    for state in (saved[:-1], saved + b"x", saved[: len(saved) // 2], b""):
        with pytest.raises(StreamError, match="another program"):
            program.stream(state=state)


def test_lanes_of_several_rates(program):
    x = recording(16)
    expected = whole(program, x)
    batch = program.batch(2)
    one, two = batch.join(), batch.join()
    got = {one: [], two: []}
    for i in range(0, 16, 4):
        half = {"video": x["video"][..., i : i + 4]}
        for lane, y in batch.push({one: half, two: {"audio": x["audio"][..., 4 * i : 4 * i + 16]}}).items():
            got[lane].append(y)
        rest = {"audio": x["audio"][..., 4 * i : 4 * i + 16]}
        for lane, y in batch.push({one: rest, two: half}).items():
            got[lane].append(y)
    before = batch.save(one), batch.save(two)
    much = np.zeros((1, 2, 4 * program.manifest["clock"]["ahead"] + 1), np.float32)
    with pytest.raises(StreamError, match="^lane 1: input 'audio' runs ahead"):
        batch.push({one: {"video": x["video"]}, two: {"audio": much}})
    assert (batch.save(one), batch.save(two)) == before
    for lane in (one, two):
        assert np.concatenate([*got[lane], batch.flush(lane)], axis=2).tobytes() == expected.tobytes()


def test_a_refused_push_takes_a_restart_of_another_lane_back(program):
    x = recording(16)
    batch = program.batch(2)
    restarting, strict = batch.join(on_nonfinite="reset"), batch.join()
    batch.push({restarting: x, strict: x})
    before = batch.save(restarting), batch.save(strict)
    bad = {name: array.copy() for name, array in x.items()}
    bad["audio"][0, 0, 3] = np.nan
    with pytest.raises(StreamError, match="^lane 1: input 'audio' is nan"):
        batch.push({restarting: bad, strict: bad})
    assert (batch.save(restarting), batch.save(strict)) == before
    batch.push({restarting: bad})
    assert batch.position(restarting) == 16
