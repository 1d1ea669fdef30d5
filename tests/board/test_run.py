"""The command line of runnel-run: formats, statics, limits, signals, real time, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from small_models import compiled

import runnel
from runnel.runtime.io.wav import read_wav, wav_header, write_wav

RATE = 16000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture
def denoiser(folder):
    return compiled(folder, "denoiser")


def run(binary, *words, data=None, code=0):
    done = subprocess.run([binary, "run", *map(str, words)], input=data, capture_output=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr.decode()
    return done


def sound(frames=4000):
    return (np.random.default_rng(3).standard_normal((1, frames)) * 0.1).astype(np.float32)


def whole(path, x):
    stream = runnel.load(path).stream()
    return np.concatenate([stream.push(x), stream.flush()], 1)


def encoded(x, bits, kind):
    frames = np.ascontiguousarray(x.T.astype(np.float64))
    if kind == "float":
        data = frames.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        data = (np.rint(frames * 127) + 128).astype(np.uint8).tobytes()
    else:
        values = np.rint(frames * (2 ** (bits - 1) - 1)).astype("<i8")
        data = values.reshape(-1, 1).view(np.uint8)[:, : bits // 8].tobytes()
    header = bytearray(wav_header(x.shape[0], RATE, len(data)))
    block = x.shape[0] * bits // 8
    for at, value, size in ((20, 3 if kind == "float" else 1, 2), (28, RATE * block, 4), (32, block, 2), (34, bits, 2)):
        header[at : at + size] = value.to_bytes(size, "little")
    return bytes(header) + data


@pytest.mark.parametrize(
    ("bits", "kind"), [(8, "int"), (16, "int"), (24, "int"), (32, "int"), (32, "float"), (64, "float")]
)
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_of_every_kind_is_read_as_python_reads_it(binary, denoiser, tmp_path, bits, kind, channels):
    x = (np.random.default_rng(bits).standard_normal((channels, 900)) * 0.1).astype(np.float32)
    (tmp_path / "x.wav").write_bytes(encoded(x, bits, kind))
    run(binary, denoiser, "--in", tmp_path / "x.wav", "--out", tmp_path / "y.npy")
    read = read_wav(tmp_path / "x.wav").samples
    mono = read.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32) if channels > 1 else read
    assert np.load(tmp_path / "y.npy").tobytes() == whole(denoiser, mono).tobytes()


def test_every_way_out_gives_the_same(binary, denoiser, tmp_path):
    x = sound()
    write_wav(tmp_path / "x.wav", x, RATE)
    samples = read_wav(tmp_path / "x.wav").samples
    expected = whole(denoiser, samples)
    for name in ("y.wav", "y.npy", "y.raw", "y.json", "y.txt"):
        run(binary, denoiser, "--in", tmp_path / "x.wav", "--out", tmp_path / name)
    write_wav(tmp_path / "z.wav", expected, RATE)
    assert (tmp_path / "y.wav").read_bytes() == (tmp_path / "z.wav").read_bytes()
    assert np.load(tmp_path / "y.npy").tobytes() == expected.tobytes()
    assert (tmp_path / "y.raw").read_bytes() == expected.tobytes()
    lines = [json.loads(line) for line in (tmp_path / "y.json").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(expected.shape[1]))
    assert np.float32([line["values"][0] for line in lines]).tobytes() == expected.tobytes()
    assert np.loadtxt(tmp_path / "y.txt", dtype=np.float32).tobytes() == expected.tobytes()
    pcm = (samples * 32768).astype("<i2").tobytes()
    done = run(binary, denoiser, "--in", "-", "--out", "-", "--rate", RATE, data=pcm)
    assert (tmp_path / "z.wav").read_bytes()[44:] == done.stdout
    assert run(binary, denoiser, "--in", "raw:-", "--out", "raw:-", data=samples.tobytes()).stdout == expected.tobytes()


def test_pipes_devices_and_links_stay_what_they_are(binary, denoiser, tmp_path):
    """Even where the user may replace them."""
    x = sound()
    np.save(tmp_path / "x.npy", x)
    run(binary, denoiser, "--in", tmp_path / "x.npy", "--out", f"raw:{tmp_path / 'y.raw'}")
    expected = (tmp_path / "y.raw").read_bytes()
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "z.raw").write_bytes(b"old")
    (tmp_path / "link.raw").symlink_to("real/z.raw")
    run(binary, denoiser, "--in", tmp_path / "x.npy", "--out", f"raw:{tmp_path / 'link.raw'}")
    assert (tmp_path / "link.raw").is_symlink()
    assert (tmp_path / "real" / "z.raw").read_bytes() == expected
    os.mkfifo(tmp_path / "pipe.raw")
    with subprocess.Popen(["cat", tmp_path / "pipe.raw"], stdout=subprocess.PIPE) as reader:
        run(binary, denoiser, "--in", tmp_path / "x.npy", "--out", f"raw:{tmp_path / 'pipe.raw'}")
        assert reader.communicate(timeout=30)[0] == expected
    assert (tmp_path / "pipe.raw").is_fifo()
    (tmp_path / "nowhere").symlink_to(os.devnull)
    for out in (tmp_path / "nowhere", os.devnull):
        run(binary, denoiser, "--in", tmp_path / "x.npy", "--out", f"raw:{out}")
    assert (tmp_path / "nowhere").is_symlink()
    assert Path(os.devnull).is_char_device()
    done = run(binary, denoiser, "--in", tmp_path / "x.npy", "--out", f"raw:{tmp_path / 'real'}", code=2)
    assert b"cannot be written: Is a directory." in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.raw", "nowhere", "pipe.raw", "real", "x.npy", "y.raw"]


def test_frames_of_several_axes_go_frame_by_frame(binary, folder):
    path = compiled(folder, "strided")
    program = runnel.load(path)
    x = np.random.default_rng(5).standard_normal((1, 3, 40)).astype(np.float32)
    stream = program.stream()
    name = program.outputs[0].name
    expected = np.concatenate([stream.push(x)[name], stream.flush()[name]], 2)
    done = run(binary, path, "--in", "raw:-", "--out", f"{name}=raw:-", data=np.ascontiguousarray(x[0].T).tobytes())
    assert done.stdout == np.ascontiguousarray(expected[0].T).tobytes()


@pytest.mark.parametrize("late", ["catch-up", "drop"])
def test_real_time_keeps_the_pace(binary, denoiser, tmp_path, late):
    x = sound(4000)
    np.save(tmp_path / "x.npy", x)
    words = [denoiser, "--in", tmp_path / "x.npy", "--out", tmp_path / "y.npy", "--realtime", "--rate", str(RATE)]
    start = time.monotonic()
    done = subprocess.run(
        [binary, "run", *words, "--late", late, "--json"], capture_output=True, text=True, check=False
    )
    if "memory cannot be locked" in done.stderr:
        pytest.skip("this system lets no memory be locked")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start >= 0.24
    row = json.loads(done.stdout)
    assert row["frames"] == 4000 - 160 * row["dropped_chunks"]
    if row["dropped_chunks"] == 0:
        assert np.load(tmp_path / "y.npy").tobytes() == whole(denoiser, x).tobytes()


def test_what_comes_late_is_dropped_when_asked(binary, denoiser, tmp_path):
    np.save(tmp_path / "x.npy", sound(16000))
    words = ["--in", tmp_path / "x.npy", "--realtime", "--rate", 10**9, "--chunk", 16, "--json"]
    done = subprocess.run(
        [binary, "run", denoiser, *map(str, words), "--late", "drop"], capture_output=True, text=True, check=False
    )
    if "memory cannot be locked" in done.stderr:
        pytest.skip("this system lets no memory be locked")
    if done.returncode:  # everything was late
        assert "no frames came in" in done.stderr
        return
    row = json.loads(done.stdout)
    assert row["dropped_chunks"] > 0
    assert row["frames"] == 16 * (1000 - row["dropped_chunks"])


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_flushes_the_stream(binary, denoiser, tmp_path, which):
    x = sound(3200)
    live = subprocess.Popen(
        [binary, "run", denoiser, "--in", "raw:-", "--out", tmp_path / "y.npy", "--chunk", "160", "--json"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert live.stdin is not None
    live.stdin.write(x.tobytes())
    live.stdin.flush()
    time.sleep(0.5)
    live.send_signal(which)
    out, said = live.communicate(timeout=20)
    assert live.returncode == 0, said
    row = json.loads(out)
    assert row["stopped"] is True
    assert row["frames"] == 3200
    assert np.load(tmp_path / "y.npy").tobytes() == whole(denoiser, x).tobytes()


def test_non_finite_samples(binary, denoiser, tmp_path):
    x = sound()
    x[0, 1234] = np.nan
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "y.npy"
    done = run(binary, denoiser, "--in", tmp_path / "x.npy", "--out", out, code=2)
    assert b"NaN or infinite" in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "x.npy"]  # nothing unfinished is left
    run(binary, denoiser, "--in", tmp_path / "x.npy", "--out", out, "--on-nonfinite", "zero")
    assert np.load(out).tobytes() == whole(denoiser, np.nan_to_num(x)).tobytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--in", "missing.wav"], "cannot be read"),
        (["--in", "x.flac"], "is not known"),
        (["--in", "{wide}"], "type and shape"),
        (["--in", "{x}", "--out", "y.wav"], "rate of the output is not known"),
        (["--in", "{x}", "--realtime"], "--rate"),
        (["--in", "{x}", "--late", "never"], "does not know"),
        (["--in", "{x}", "--chunk", "0"], "takes a number"),
        (["--in", "{x}", "--colour", "red"], "is not known"),
        (["--in", "{x}", "--core", "1000"], "cannot be used"),
        (["--in", "raw:-", "--chunk", "all"], "needs a file"),
        ([], "is given nothing"),
        (["--in", "{x}", "extra.rnl"], "too many"),
    ],
)
def test_refusals_are_one_sentence(binary, denoiser, tmp_path, words, said):
    np.save(tmp_path / "x.npy", sound(100))
    np.save(tmp_path / "wide.npy", np.zeros((1, 10, 3), np.float32))
    words = [w.format(x=tmp_path / "x.npy", wide=tmp_path / "wide.npy") for w in words]
    done = subprocess.run([binary, "run", denoiser, *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("runnel-run: ")


def test_lengths_and_limits_are_those_of_the_bundle(binary, folder, tmp_path):
    path = compiled(folder, "at-the-end")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 2), np.float32))
    done = run(binary, path, "--in", tmp_path / "x.npy", code=2)
    assert b"takes no fewer than 3" in done.stderr
    path = compiled(folder, "conditioned")
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 9), np.float32))
    done = run(binary, path, "--in", tmp_path / "x.npy", code=2)
    assert b"the static input 'emb' has no value" in done.stderr
    path = compiled(folder, "two-rates")
    np.save(tmp_path / "a.npy", np.zeros((1, 2, 40), np.float32))
    np.save(tmp_path / "v.npy", np.zeros((1, 3, 9), np.float32))
    done = run(binary, path, "--in", f"audio={tmp_path}/a.npy", "--in", f"video={tmp_path}/v.npy", code=2)
    assert b"do not end together" in done.stderr


def test_threads_change_no_bit_and_need_more_than_one_core(binary, denoiser, tmp_path):
    np.save(tmp_path / "in.npy", sound())
    words = [denoiser, "--in", f"npy:{tmp_path}/in.npy", "--rate", RATE]
    for threads in (1, 3):
        run(binary, *words, "--out", f"npy:{tmp_path}/{threads}.npy", "--threads", threads)
    assert (tmp_path / "3.npy").read_bytes() == (tmp_path / "1.npy").read_bytes()
    said = run(binary, *words, "--out", f"npy:{tmp_path}/x.npy", "--threads", 2, "--core", 0, code=2).stderr.decode()
    assert "--core keeps all on one core" in said
    assert "--threads" in run(binary, *words, "--out", f"npy:{tmp_path}/x.npy", "--threads", 33, code=2).stderr.decode()
