"""Sound cards and cameras of runnel-run: the binary with simulated devices behind the calls that it makes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import compiled

import runnel
from runnel.runtime import build_board, build_core

HERE = Path(__file__).resolve().parent
RATE = 16000
FORMATS = {"S16": 2, "S32": 10, "S24_3": 32, "FLOAT": 14}
EINTR, ESTRPIPE = 4, 86


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """runnel-run whose devices are files of text."""
    out = tmp_path_factory.mktemp("simulated") / "runnel-run"
    flags = ["-std=c++17", "-O1", "-fno-exceptions", "-fno-rtti", f"-I{build_core.CORE / 'include'}"]
    files = [f for f in build_board.sources() if f.name != "device.cc"]
    files.append(HERE / "simulated_devices.cc")
    command = [*build_core.find_compiler(), *flags, f"-I{build_board.BOARD}", *map(str, files), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("denoiser"), "denoiser")


def device(tmp_path, data=None, **facts):
    """The name of a device that does what the facts say; data: what it records."""
    lines = [f"{key} {value if isinstance(value, str) else ' '.join(map(str, value))}" for key, value in facts.items()]
    place = tmp_path / ("data.in" if data is not None else "data.out")
    if data is not None:
        place.write_bytes(data)
    (tmp_path / "device").write_text("\n".join([*lines, f"data {place}"]) + "\n")
    return str(tmp_path / "device")


def log(tmp_path):
    return (tmp_path / "device.log").read_text().splitlines()


def run(binary, *words, code=0):
    line = [binary, "run", *map(str, words), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    if code:
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr
    return json.loads(done.stdout)


def sound(channels=1, frames=4000):
    return (np.random.default_rng(3).standard_normal((channels, frames)) * 0.1).astype(np.float32)


def encoded(x, kind):
    """(channels, frames) as a card's memory, and what the samples are after rounding."""
    if kind == "FLOAT":
        return np.ascontiguousarray(x.T).tobytes(), x
    bits = {"S16": 16, "S32": 32, "S24_3": 24}[kind]
    codes = np.rint(x.T.astype(np.float64) * 2 ** (bits - 1)).astype("<i4")
    raw = codes.reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
    return raw, (codes.T / 2.0 ** (bits - 1)).astype(np.float32)


def whole(path, x):
    stream = runnel.load(path).stream()
    return np.concatenate([stream.push(x), stream.flush()], 1)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_card_is_heard_in_every_format(simulated, denoiser, tmp_path, kind, channels):
    raw, x = encoded(sound(channels), kind)
    name = device(tmp_path, raw, formats=[FORMATS[kind]], channels=[channels, 8], ends="")
    row = run(simulated, denoiser, "--in", f"alsa:{name}", "--out", tmp_path / "y.npy", "--rate", RATE)
    mono = x if channels == 1 else (x[:1] + x[1:]) / 2
    assert row["frames"] == 4000 and row["overruns"] == 0
    assert np.load(tmp_path / "y.npy").tobytes() == whole(denoiser, mono).tobytes()
    assert log(tmp_path)[0].startswith(f"setup rate {RATE} channels {channels}")
    assert log(tmp_path)[-2:] == ["dropped", "closed"]


@pytest.mark.parametrize("error", [None, ESTRPIPE, EINTR])
def test_overruns_are_counted_and_the_stream_goes_on(simulated, denoiser, tmp_path, error):
    raw, x = encoded(sound(), "S16")
    facts = {"error": [error]} if error else {}
    name = device(tmp_path, raw, formats=[2], breaks=[0, 333, 1600], most=[97], ends="", **facts)
    row = run(simulated, denoiser, "--in", f"alsa:{name}", "--out", tmp_path / "y.npy", "--rate", RATE)
    assert row["overruns"] == (0 if error == EINTR else 3)
    assert log(tmp_path).count("prepared") == 1 + row["overruns"]
    assert np.load(tmp_path / "y.npy").tobytes() == whole(denoiser, x).tobytes()


def test_a_card_that_is_pulled_out_ends_with_a_sentence(simulated, denoiser, tmp_path):
    name = device(tmp_path, encoded(sound(), "S16")[0], formats=[2])
    said = run(simulated, denoiser, "--in", f"alsa:{name}", "--out", tmp_path / "y.npy", "--rate", RATE, code=2)
    assert "is gone" in said
    assert not list(tmp_path.glob("y.npy*"))


@pytest.mark.parametrize("lies", [1, -160, 1 << 40])
def test_a_card_that_lies_about_what_it_moved_is_told(simulated, denoiser, tmp_path, lies):
    name = device(tmp_path, encoded(sound(), "S16")[0], formats=[2], lies=[lies])
    assert "says that it moved" in run(simulated, denoiser, "--in", f"alsa:{name}", "--rate", RATE, code=2)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"formats": [2], "rates": [44100, 96000]}, "does not go at 16000 Hz but at 44100 to 96000"),
        ({"formats": [2], "channels": [9, 10]}, "has 9 to 10 channels and the model takes 1"),
        ({"formats": [4]}, "of no kind that is understood"),
        ({}, "is no sound card"),
        ({"formats": [2], "busy": ""}, "in use by another program"),
    ],
)
def test_what_a_card_cannot_do_is_told(simulated, denoiser, tmp_path, facts, said):
    name = device(tmp_path, b"", **facts)
    if "busy" in facts:
        (tmp_path / "data.in").unlink()
    assert said in run(simulated, denoiser, "--in", f"alsa:{name}", "--rate", RATE, code=2)


@pytest.mark.parametrize("name", ["alsa:0", "alsa:a,b", "alsa:0,0,0", "alsa:999,0", "alsa"])
def test_names_of_cards_are_checked(binary, denoiser, name):
    assert "names no sound card" in run(binary, denoiser, "--in", name, "--rate", RATE, code=2)


def test_a_machine_without_that_device_is_told(binary, denoiser):
    assert "cannot be opened" in run(binary, denoiser, "--in", "alsa:31,7", "--rate", RATE, code=2)
    assert "rate of input" in run(binary, denoiser, "--in", "alsa:31,7", code=2)


@pytest.mark.parametrize(("kind", "channels", "breaks"), [("S16", 1, []), ("S32", 2, [0, 500]), ("S24_3", 2, [100])])
def test_what_is_played_is_what_comes_out(simulated, denoiser, tmp_path, kind, channels, breaks):
    x = sound()
    np.save(tmp_path / "x.npy", x)
    name = device(tmp_path, formats=[FORMATS[kind]], channels=[channels, 8], breaks=breaks, most=[61])
    words = ["--in", tmp_path / "x.npy", "--out", f"alsa:{name}", "--rate", RATE]
    row = run(simulated, denoiser, *words)
    assert row["underruns"] == len(breaks)
    expected = encoded(np.repeat(whole(denoiser, x), channels, 0), kind)[0]
    assert (tmp_path / "data.out").read_bytes() == expected
    assert log(tmp_path)[-2:] == ["drained", "closed"]
    started = int(next(line for line in log(tmp_path) if line.startswith("started")).split()[-1])
    assert started >= 320  # two periods


def test_late_chunks_of_a_card_are_dropped_when_asked(simulated, denoiser, tmp_path):
    name = device(tmp_path, encoded(sound(), "S16")[0], formats=[2], waits=[700], ends="")
    words = [denoiser, "--in", f"alsa:{name}", "--rate", RATE, "--realtime", "--late", "drop", "--json"]
    done = subprocess.run([simulated, "run", *map(str, words)], capture_output=True, text=True, check=False)
    if "memory cannot be locked" in done.stderr:
        pytest.skip("this system lets no memory be locked")
    row = json.loads(done.stdout)
    assert row["dropped_chunks"] == 1 and row["frames"] == 4000 - 160 and row["page_faults"] == 0


def test_a_recording_ends_after_the_seconds_asked_for(simulated, denoiser, tmp_path):
    name = device(tmp_path, encoded(sound(), "S16")[0], formats=[2])
    assert run(simulated, denoiser, "--in", f"alsa:{name}", "--rate", RATE, "--seconds", "0.11")["frames"] == 1760


SHAPES = {"planes": ["T", 3, 4, 6], "pixels": [1, "T", 4, 6, 3], "grey": ["T", 1, 4, 6]}


def pictures(tmp_path, kind, dtype=TensorProto.FLOAT):
    """A bundle whose output is its picture in float32."""
    shape = SHAPES[kind]
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Relu", ["f"], ["y"])]
    graph = helper.make_graph(
        nodes, kind, [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    runnel.compile(tmp_path / "m.onnx", out=tmp_path / "m.rnl")
    return tmp_path / "m.rnl"


def frames(count, channels):
    return np.random.default_rng(7).integers(0, 256, (count, 4, 6, channels)).astype(np.uint8)


def padded(x, padding):
    lines = x.reshape(x.shape[0], 4, -1)
    return np.pad(lines, ((0, 0), (0, 0), (0, padding))).tobytes()


@pytest.mark.parametrize(("kind", "code"), [("planes", "RGB3"), ("pixels", "BGR3"), ("grey", "GREY")])
@pytest.mark.parametrize("padding", [0, 10])
def test_a_camera_is_seen(simulated, tmp_path, kind, code, padding):
    path = pictures(tmp_path, kind)
    x = frames(5, 1 if kind == "grey" else 3)
    raw = padded(x[..., ::-1] if code == "BGR3" else x, padding)
    name = device(tmp_path, raw, pixels=f"MJPG {code}", size=[6, 4, padding], ends="")
    words = ["--in", f"v4l2:{name}", "--out", tmp_path / "y.npy", "--chunk", "2"]
    row = run(simulated, path, *words, "--pixels", "-1:2")
    assert row["frames"] == 5 and row["lost_frames"] == 0
    y = np.load(tmp_path / "y.npy")
    order = {"planes": x.transpose(0, 3, 1, 2), "pixels": x[None], "grey": x.transpose(0, 3, 1, 2)}[kind]
    np.testing.assert_allclose(y, (order.astype(np.float32) + 1) / 2, rtol=1e-6)


def test_pixels_are_parts_of_one_and_codes_stay(simulated, tmp_path):
    x = frames(3, 3)
    for dtype, scale in ((TensorProto.FLOAT, 255.0), (TensorProto.UINT8, 1.0)):
        path = pictures(tmp_path, "planes", dtype)
        name = device(tmp_path, padded(x, 0), pixels="RGB3", size=[6, 4], ends="")
        run(simulated, path, "--in", f"v4l2:{name}", "--out", tmp_path / "y.npy")
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), x.transpose(0, 3, 1, 2) / scale, rtol=1e-6)


@pytest.mark.parametrize("kind", ["planes", "grey"])
def test_colour_differences_become_colours(simulated, tmp_path, kind):
    """Against BT.601 written out; grey takes the luma."""
    path = pictures(tmp_path, kind)
    rng = np.random.default_rng(5)
    luma, u, v = (rng.integers(16, 236, (2, 4, n)).astype(np.uint8) for n in (6, 3, 3))
    raw = np.stack([luma[..., ::2], u, luma[..., 1::2], v], -1).reshape(2, 4, 12)
    name = device(tmp_path, raw.tobytes(), pixels="YUYV", size=[6, 4], ends="")
    run(simulated, path, "--in", f"v4l2:{name}", "--out", tmp_path / "y.npy", "--pixels", "0:1")
    y = (luma.astype(float) - 16) * 255 / 219
    pb, pr = ((np.repeat(c, 2, -1).astype(float) - 128) / 224 for c in (u, v))
    kr, kb = 0.299, 0.114
    red, blue = y + 255 * 2 * (1 - kr) * pr, y + 255 * 2 * (1 - kb) * pb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    expected = np.stack([red, green, blue] if kind == "planes" else [y], 1)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.clip(expected, 0, 255), atol=0.51)


def test_lost_and_damaged_frames_are_counted(simulated, tmp_path):
    path = pictures(tmp_path, "grey")
    x = frames(6, 1)
    name = device(tmp_path, padded(x, 0), pixels="GREY", size=[6, 4], skips=[2], damages=[4], ends="")
    row = run(simulated, path, "--in", f"v4l2:{name}", "--out", tmp_path / "y.npy", "--pixels", "0:1", "--chunk", "1")
    assert row["lost_frames"] == 2 and row["frames"] == 5
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy")[:, 0], np.delete(x[..., 0], 3, 0))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"pixels": "MJPG H264", "size": [6, 4]}, "it has the formats MJPG, H264"),
        ({"pixels": "RGB3", "size": [8, 4]}, "gives no frames of 6 x 4 in RGB, BGR or YUYV"),
        ({}, "is no camera"),
        ({"pixels": "RGB3", "size": [6, 4]}, "is gone"),
    ],
)
def test_what_a_camera_cannot_do_is_told(simulated, tmp_path, facts, said):
    name = device(tmp_path, padded(frames(2, 3), 0), **facts)
    assert said in run(simulated, pictures(tmp_path, "planes"), "--in", f"v4l2:{name}", code=2)


def test_what_is_no_picture_is_told(binary, denoiser, tmp_path):
    assert "is no picture" in run(binary, denoiser, "--in", "v4l2:/dev/video63", code=2)
    path = pictures(tmp_path, "grey")
    assert "cannot be opened" in run(binary, path, "--in", "v4l2:/dev/video63", code=2)
    assert "OFFSET:SCALE" in run(binary, path, "--in", "v4l2:/dev/video63", "--pixels", "3", code=2)
