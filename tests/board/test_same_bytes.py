"""runnel-run and Python give the same bytes, and verify agrees, for every kind of model."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
from small_models import MODELS, compiled

import runnel
from runnel.tools.measure import by_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundles")


def offered(program, frames, seed=1):
    rng = np.random.default_rng(seed)
    arrays = {}
    for port in program.inputs:
        shape = port.sized(frames * port.per_tick)
        if port.dtype.kind == "f":
            arrays[port.name] = (rng.standard_normal(shape) * 0.1).astype(port.dtype)
        else:
            arrays[port.name] = rng.integers(-100, 100, shape).astype(port.dtype)
    return arrays


def from_python(program, arrays):
    stream = program.stream(inputs={p.name: arrays[p.name] for p in program.statics})
    parts = [
        by_name(stream.push({p.name: arrays[p.name] for p in program.timed}), program.outputs),
        by_name(stream.flush(), program.outputs),
    ]
    return {
        p.name: np.concatenate([part[p.name] for part in parts], p.axis) if p.axis is not None else parts[1][p.name]
        for p in program.outputs
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_run_gives_the_bytes_that_python_gives(binary, folder, tmp_path, name):
    path = compiled(folder, name)
    program = runnel.load(path)
    arrays = offered(program, 1500 if name == "denoiser" else 61)
    expected = from_python(program, arrays)
    words = []
    for i, port in enumerate(program.inputs):
        np.save(tmp_path / f"in{i}.npy", arrays[port.name])
        words += ["--in" if port.per_tick else "--set", f"{port.name}={tmp_path}/in{i}.npy"]
    for chunk in ("1", "7", "all"):
        outs = [w for i, p in enumerate(program.outputs) for w in ("--out", f"{p.name}={tmp_path}/out{i}.npy")]
        done = subprocess.run(
            [binary, "run", path, *words, *outs, "--chunk", chunk], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        for i, port in enumerate(program.outputs):
            got = np.load(tmp_path / f"out{i}.npy")
            assert got.shape == expected[port.name].shape
            assert got.dtype == port.dtype
            assert got.tobytes() == expected[port.name].tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_verify_agrees_with_python(binary, folder, name):
    from runnel.tools.golden import verify

    path = compiled(folder, name)
    done = subprocess.run([binary, "verify", path, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    given = json.loads(done.stdout)
    expected = {row["chunking"]: row for row in verify(path, "native")}
    assert given["ok"] and [row["chunking"] for row in given["results"]] == list(expected)
    for row in given["results"]:
        same = expected[row["chunking"]]
        assert row["error"] == pytest.approx(same["error"], rel=1e-6)
        assert row["tolerance"] == pytest.approx(same["tolerance"])
        assert row["frames"] == same["frames"] and row["same_bits"]


def test_verify_tells_outputs_that_differ(binary, folder, tmp_path):
    import io
    import zipfile

    path = compiled(folder, "gru")
    with zipfile.ZipFile(path) as archive:
        entries = {n: archive.read(n) for n in archive.namelist() if not n.startswith((".pad/", "manifest"))}
        manifest = json.loads(archive.read("manifest.json"))
    array = np.load(io.BytesIO(entries["golden/output_0.npy"])) * np.float32(1.01)
    file = io.BytesIO()
    np.save(file, array)
    entries["golden/output_0.npy"] = file.getvalue()
    for key in ("schema", "program_hash", "entries"):
        del manifest[key]
    from runnel.compiler.bundle.write import write_bundle

    write_bundle(tmp_path / "m.rnl", manifest, entries)
    done = subprocess.run([binary, "verify", tmp_path / "m.rnl"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "NOT verified" in done.stdout
