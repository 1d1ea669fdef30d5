"""After a bundle is opened nothing is allocated: every call of the allocator passes through a counter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from small_models import compiled

import runnel
from runnel.runtime import build_core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "streaming"))
from mixtures import layer
from nets import TIME, Net

RUNTIME = Path(__file__).resolve().parents[1] / "runtime"
ALLOCATORS = ("malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "_Znwm")


@pytest.fixture(scope="module")
def count_allocations(tmp_path_factory):
    out = tmp_path_factory.mktemp("counted") / "count_allocations"
    flags = ["-std=c++17", "-O1", f"-I{build_core.CORE / 'include'}", *(f"-Wl,--wrap={name}" for name in ALLOCATORS)]
    files = [RUNTIME / "count_allocations.cc", *build_core.sources()]
    command = [*build_core.find_compiler(), *flags, "-pthread", *map(str, files), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the compiler lacks what this test needs: {done.stderr[-300:]}")
    return out


@pytest.mark.parametrize("name", ["denoiser", "gru", "strided", "int8", "at-the-end"])
def test_real_models_allocate_nothing_after_opening(count_allocations, tmp_path, name):
    done = subprocess.run([count_allocations, compiled(tmp_path, name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "0"


def test_experts_that_pass_through_memory_allocate_nothing_after_opening(count_allocations, tmp_path):
    net = Net(1)
    x = net.input([1, TIME, 32])
    for _ in range(2):
        x = layer(net, x, experts=8, k=2)
    path = tmp_path / "m.rnl"
    runnel.compile(net.model(x), path, backend="native", hop=8)
    facts = runnel.load(path, runtime=runnel.Runtime(ram=1 << 30, streams=4)).paging
    ram = facts.least + facts.units.all // 4
    done = subprocess.run([count_allocations, path, str(ram)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "0"
