"""runnel-run with weights that pass through memory, under a limit that the kernel enforces."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel.tools.decoding import limit

RNG = np.random.default_rng(11)
MIB = 1 << 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 24 MiB."""
    weights, nodes, x = [], [], "x"
    for i in range(6):
        weights.append(numpy_helper.from_array((0.03 * RNG.standard_normal((1024, 1024))).astype(np.float32), f"w{i}"))
        nodes += [helper.make_node("MatMul", [x, f"w{i}"], [f"p{i}"]), helper.make_node("Relu", [f"p{i}"], [f"h{i}"])]
        x = f"h{i}"
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "T", 1024]) for n in ("x", x)]
    graph = helper.make_graph(nodes, "large", ports[:1], ports[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("large") / "large.rnl"
    runnel.compile(model, path, backend="native", hop=1)
    return path


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", RNG.standard_normal((1, 9, 1024)).astype(np.float32))
    return tmp_path / "x.npy"


@pytest.mark.parametrize("ram", ["8M", "16M", "64M"])
def test_outputs_are_the_same_bytes(binary: Path, bundle: Path, sound: Path, tmp_path: Path, ram: str) -> None:
    for name, words in (("whole", []), ("paged", ["--ram", ram])):
        subprocess.run(
            [binary, "run", bundle, "--in", sound, "--out", tmp_path / f"{name}.npy", *words], check=True,
            capture_output=True,
        )  # fmt: skip
    assert (tmp_path / "whole.npy").read_bytes() == (tmp_path / "paged.npy").read_bytes()


def test_the_mode_is_said_and_memory_stays_below_the_budget(binary: Path, bundle: Path) -> None:
    done = subprocess.run(
        [binary, "bench", bundle, "--ram", "12M", "--seconds", "0.3", "--json"], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    row = json.loads(done.stdout)
    assert done.stderr.startswith("mode: pinned ")
    assert row["ram_budget"] == 12 * MIB
    assert row["ram_peak"] <= row["ram_budget"]
    assert row["resident_bytes"] <= row["ram_budget"]
    assert row["streamed_bytes_per_step"] + row["pinned_bytes"] == row["weights_bytes"]
    assert row["read_bytes_per_s"] > 0


def test_what_comes_out_of_long_pushes_counts(binary: Path, bundle: Path) -> None:
    """2,000 frames of 4 KiB go in, and as many come out."""
    budget, frames = 48 * MIB, 2000
    done = subprocess.run(
        [binary, "bench", bundle, "--ram", str(budget), "--chunk", str(frames), "--seconds", "0.1", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    row = json.loads(done.stdout)
    assert row["resident_bytes"] <= row["ram_peak"] <= budget
    assert row["pinned_bytes"] < budget - 3 * frames * 4096


@pytest.fixture(scope="module")
def active(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 16 MiB of neurons, of which those that are active are read."""
    weights = [0.03 * RNG.standard_normal(shape).astype(np.float32) for shape in ((512, 4096), (4096, 512))]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["u"]), helper.make_node("Relu", ["u"], ["h"]),
        helper.make_node("MatMul", ["h", "w1"], ["y"]),
    ]  # fmt: skip
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "T", 512]) for n in "xy"]
    constants = [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "active", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("active") / "active.rnl"
    runnel.compile(model, path, backend="native", hop=1, sparse="exact")
    return path


def test_what_a_small_read_costs_is_measured_where_it_decides(binary: Path, active: Path) -> None:
    """Which neurons come in one read, and how much of the budget they have."""
    said = {}
    for ram in ("13M", "64M"):
        done = subprocess.run(
            [binary, "bench", active, "--seconds", "0.05", "--json", "--ram", ram], capture_output=True, text=True,
            check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["steps"] > 0
        said[ram] = re.findall(r"storage: one more read takes as long as reading ([0-9.]+) KiB more\n", done.stderr)
    assert not said["64M"]
    assert len(said["13M"]) == 1
    assert 0 < float(said["13M"][0]) < 1 << 14


def test_the_least_budget_is_named(binary: Path, bundle: Path) -> None:
    done = subprocess.run([binary, "info", bundle, "--ram", "4M"], capture_output=True, text=True, check=False)
    assert done.returncode == 0  # info opens nothing
    done = subprocess.run([binary, "verify", bundle, "--ram", "4M"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    least = int(done.stderr.split("at least ")[1].split()[0])
    words = ["--seconds", "0.1", "--json", "--ram"]
    assert (
        subprocess.run([binary, "bench", bundle, *words, str(least)], capture_output=True, check=False).returncode == 0
    )
    short = subprocess.run([binary, "bench", bundle, *words, str(least - 1)], capture_output=True, check=False)
    assert short.returncode == 2


@pytest.mark.parametrize(
    "words",
    [["--io", "threads"], ["--io", "tape"], ["--ram", "much"], ["--ram", "0"], ["--ram", "16M", "--slow", "warn"]],
)
def test_bad_words_get_one_sentence(binary: Path, bundle: Path, words: list[str]) -> None:
    done = subprocess.run([binary, "bench", bundle, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_the_kernel_charges_no_more_than_the_budget(binary: Path, bundle: Path, group: limit.Group) -> None:
    """From a cold cache with half as much again to spare, and with the limit at the budget itself."""
    budget, runs = 14 * MIB, int(os.environ.get("RUNNEL_LIMITED", "1"))
    command = [binary, "bench", bundle, "--ram", budget, "--seconds", "0.3", "--json"]
    for run in range(runs):
        for most in (budget * 3 // 2, budget):
            limit.forget(bundle)
            limit.forget(binary)
            done, peak = group.run(command, most)
            assert done.returncode == 0, (run, done.stderr)
            assert peak <= budget, run
            assert json.loads(done.stdout)["steps"] > 0
    assert group.kills == 0


SWITCHING = """
import sys
import numpy as np
import runnel

def anonymous():
    line = next(l for l in open("/proc/self/status") if l.startswith("RssAnon"))
    return int(line.split()[1]) << 10

path, ram = sys.argv[1], int(sys.argv[2])
x = np.ones((1, 1, 1024), np.float32)
runnel.load(path, ram=ram).stream().push(x)  # what Python and numpy need themselves
before = anonymous()
runtime = runnel.Runtime(ram=ram)
streams = [runtime.load(path, priority=p).stream() for p in (0, 0, 1)]
most = 0
for turn in [0] * 20 + [1] * 40 + [2] * 4 + [0, 1] * 10 + [0] * 20:
    streams[turn].push(x)
    most = max(most, anonymous() - before)
print(most, max(s.program.paging.pinned for s in streams))
"""


def test_what_programs_that_switch_have_in_memory_stays_below_their_budget(bundle: Path) -> None:
    """As the kernel counts it, not as we do."""
    budget = 44 * MIB
    done = subprocess.run(
        [sys.executable, "-c", SWITCHING, bundle, str(budget)], capture_output=True, text=True, check=True
    )  # fmt: skip
    most, pinned = map(int, done.stdout.split())
    assert pinned > 20 * MIB  # of 24: the one before all others has everything
    assert pinned < most <= budget


def test_real_time_that_storage_is_too_slow_for_is_refused_beforehand(binary: Path, bundle: Path) -> None:
    words = [binary, "bench", bundle, "--ram", "8M", "--seconds", "0.2", "--realtime", "--json", "--rate"]
    done = subprocess.run([*words, "1000000"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "too slow for real time\n" in done.stderr
    assert "too slow for --realtime" in done.stderr
    done = subprocess.run([*words, "5"], capture_output=True, text=True, check=False)
    if "cannot be locked" in done.stderr:
        pytest.skip("this system lets no memory be locked")
    assert done.returncode == 0
    assert "fast enough for real time\n" in done.stderr
    row = json.loads(done.stdout)
    assert row["resident_bytes"] <= 8 * MIB  # what is reserved for weights is not locked
    go_on = subprocess.run(
        [*words, "1000000", "--slow", "warn", "--patience", "9"], capture_output=True, text=True, check=False
    )
    assert go_on.returncode == 0
    assert json.loads(go_on.stdout)["deadline_misses"] > 0


def test_memory_that_others_take(binary: Path, bundle: Path, sound: Path, tmp_path: Path, group: limit.Group) -> None:
    """A process beside it fills the group with memory and pages of files; the outputs are the same bytes."""
    budget, held = 12 * MIB, 24 * MIB
    big = tmp_path / "pages.bin"
    big.write_bytes(os.urandom(16 * MIB))
    hog = (
        "import sys; m = bytearray(int(sys.argv[2])); m[::4096] = bytes(len(m[::4096])); f = open(sys.argv[1], 'rb')\n"
        "print(flush=True)\nwhile True:\n f.seek(0)\n while f.read(1 << 16): pass"
    )
    whole, paged = tmp_path / "whole.npy", tmp_path / "paged.npy"
    subprocess.run([binary, "run", bundle, "--in", sound, "--out", whole], check=True, capture_output=True)
    group.set_limit(budget + held + 12 * MIB)
    other = subprocess.Popen(
        [sys.executable, "-c", hog, str(big), str(held)], stdout=subprocess.PIPE, preexec_fn=group.enter
    )
    try:
        assert other.stdout is not None
        other.stdout.readline()
        command = [binary, "run", bundle, "--in", sound, "--out", paged, "--ram", budget]
        done, peak = group.run(command, budget + held + 12 * MIB)
        assert done.returncode == 0, done.stderr
        assert other.poll() is None
        assert peak > budget + held
    finally:
        other.kill()
        other.wait()
    assert paged.read_bytes() == whole.read_bytes()
