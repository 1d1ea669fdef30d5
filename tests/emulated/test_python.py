"""The Python binding and the tflite backend on emulated 64-bit ARM, in a Debian root made of packages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zoo

import runnel
from runnel import targets
from runnel.errors import InputError
from runnel.tools import arm_root, toolchain

Python = Callable[..., str]
TFLITE = {
    "vad": "pymicro-vad/vad_stream.tflite", "kws": "mlperf-tiny/kws_ref_model.tflite",
    "micro_speech": "clips/micro_speech_quantized.tflite",
}  # fmt: skip


@pytest.fixture(scope="session")
def arm_python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """arm_python(script, *words) → what the script prints, runnel being installed there."""
    try:
        root = arm_root.cached()
        python = arm_root.command(root)
    except arm_root.Unreachable as error:
        pytest.skip(f"no arm64 root: {error}")
    place = tmp_path_factory.mktemp("arm") / "runnel"
    shutil.copytree(zoo.ROOT / "runnel", place)
    for part in ("runtime", "tools", "targets"):
        shutil.copytree(zoo.ROOT / part, place / part, ignore=shutil.ignore_patterns("_lib", "__pycache__"))
    (place / "runtime" / "_lib").mkdir()
    try:
        toolchain.build_core(targets.load("aarch64"), place / "runtime" / "_lib" / "librunnel.so")
    except InputError as error:
        pytest.skip(str(error))

    def run(script: str, *words: object) -> str:
        line = [*python, "-c", script, *map(str, words)]
        path = f"{place.parent}:{root / 'site'}"
        env = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300, env=env)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


VERIFY = """
import json, sys
from runnel.tools.golden import verify
print(json.dumps({path: verify(path, "native") for path in sys.argv[1:]}))
"""


def test_the_binding_gives_the_golden_outputs(arm_python: Python, tmp_path: Path) -> None:
    paths = [zoo.bundle(name, "rpi5", tmp_path) for name in zoo.MODELS]
    for path, rows in json.loads(arm_python(VERIFY, *paths)).items():
        assert len(rows) >= 3
        assert all(row["ok"] for row in rows), f"{path}: {rows}"


REFUSE = """
import sys, platform, runnel
from runnel.runtime.processor import processor
print(platform.machine(), *sorted(processor()[1]))
try:
    runnel.load(sys.argv[1])
except runnel.errors.BundleError as error:
    print(error)
"""


def test_the_processor_is_known_by_what_the_kernel_says(arm_python: Python, tmp_path: Path) -> None:
    """/proc/cpuinfo of the root tells of less, and that of the machine below of others."""
    told, refusal = arm_python(REFUSE, zoo.bundle("denoiser", "host", tmp_path)).splitlines()
    assert told.split()[0] == "aarch64"
    assert {"asimd", "asimddp", "neon"} <= set(told.split()) and "sse2" not in told
    assert "compile the model for this machine" in refusal


TFLITE_SCRIPT = """
import sys, numpy as np, runnel
from ai_edge_litert.interpreter import Interpreter
for path, x, y in zip(*[iter(sys.argv[1:])] * 3):
    program = runnel.load(path, backend="tflite")
    x = np.load(x)
    stream = program.stream()
    first = stream.push(x[:5])
    rest = program.stream(stream.save()).push(x[5:])
    assert stream.push(x[5:]).tobytes() == rest.tobytes()
    got = np.concatenate([first, rest])
    lite = Interpreter(path, num_threads=1)  # with its own variables
    lite.allocate_tensors()
    for frame, given in zip(x, got):
        lite.set_tensor(lite.get_input_details()[0]["index"], frame[None])
        lite.invoke()
        assert lite.get_tensor(lite.get_output_details()[0]["index"])[0].tobytes() == given.tobytes()
    np.save(y, got)
"""


def test_tflite_files_run_with_their_state(arm_python: Python, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install 'runnel[tflite]')")
    words, expected = [], {}
    for name, file in TFLITE.items():
        path = zoo.there(zoo.FOLDER / file)
        program = runnel.load(path, backend="tflite")
        port = program.inputs[0]
        x = np.random.default_rng(1).integers(-128, 128, port.sized(12)).astype(port.dtype)
        np.save(tmp_path / f"{name}.npy", x)
        expected[name] = program.stream().push(x)
        words += [path, tmp_path / f"{name}.npy", tmp_path / f"{name}-y.npy"]
    arm_python(TFLITE_SCRIPT, *words)
    for name, y in expected.items():
        got = np.load(tmp_path / f"{name}-y.npy")
        assert got.dtype == y.dtype and got.shape == y.shape
        assert np.abs(got.astype(int) - y.astype(int)).max() <= 1, name  # codes, rounded by other kernels
