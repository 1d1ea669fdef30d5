"""Instructions of a step, counted by valgrind on code for x86-64-v3: the same on a busy machine, unlike times."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nets import TIME, Net, stack

import runnel
from runnel.runtime import build_core

HERE = Path(__file__).resolve().parent
DENOISER = HERE.parents[1] / "models" / "denoiser" / "denoiser.onnx"
STEPS = 32

pytestmark = [
    pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind: apt-get install valgrind"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="counts instructions of x86-64"),
]


def tcn() -> bytes:
    net, x = stack(64)
    for i in range(10):
        y = net.conv(x, 64, 64, 3, pads=[2 << i, 0], dilations=[1 << i])
        x = net.op("Add", net.op("Relu", y), x)
    return net.model(x)


def recurrent(op: str, size: int, hidden: int) -> bytes:
    net = Net()
    after = {"linear_before_reset": 1} if op == "GRU" else {}
    y = net.recurrent(op, net.input([TIME, 1, size]), size, hidden, outputs=2, **after)
    return net.model(net.op("Squeeze", y[0], net.const([1])))


def chain() -> bytes:
    """Fifty layers that do next to nothing: what is left is the interpreter."""
    net, x = stack(4)
    for _ in range(50):
        x = net.conv(x, 4, 4, 2, pads=[1, 0])
    return net.model(x)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("driver") / "steps"
    flags = ["-std=c++17", "-O2", "-pthread", f"-I{build_core.CORE / 'include'}", f"-I{HERE.parent / 'runtime'}"]
    sources = [HERE / "steps.cc", *build_core.sources()]
    subprocess.run([*build_core.find_compiler(), *flags, *map(str, sources), "-o", str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def cost(driver: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[float, float, float]]:
    """Instructions, kernel calls and multiply-adds of a step: means over the first 32."""

    def of(model: bytes | Path) -> tuple[float, float, float]:
        bundle = tmp_path_factory.mktemp("bundle") / "m.rnl"
        runnel.compile(model, bundle, target="x86-64-v3")
        command = ["valgrind", "--tool=callgrind", "--toggle-collect=rn_push", "--callgrind-out-file=/dev/null"]
        done = subprocess.run(
            [*command, driver, bundle, str(STEPS)], capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found, done.stderr[-2000:]
        steps, calls, macs = (int(n) for n in done.stdout.split())
        assert steps == STEPS
        return int(found[1]) / steps, calls / steps, macs / steps

    return of


# The most instructions of a step, a tenth above what was counted. A quarter of them asks for weights ahead of use.
MODELS: dict[str, tuple[Callable[[], bytes | Path], int]] = {
    "tcn": (tcn, 36_000),
    "gru": (lambda: recurrent("GRU", 256, 256), 104_200),
    "lstm": (lambda: recurrent("LSTM", 32, 64), 10_700),
    "denoiser": (lambda: DENOISER, 387_300),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_step_takes_few_instructions(name: str, cost: Callable[..., tuple[float, float, float]]) -> None:
    build, most = MODELS[name]
    instructions, calls, macs = cost(build())
    print(f"{name}: {instructions:.0f} instructions, {calls:.1f} calls and {macs:.0f} multiply-adds a step")
    assert macs / 8 <= instructions <= most  # a vector instruction of this machine has 8 lanes


def test_a_call_costs_the_interpreter_little(cost: Callable[..., tuple[float, float, float]]) -> None:
    instructions, calls, _ = cost(chain())
    print(f"{instructions / calls:.0f} instructions a call, 20 of them in the kernel")
    assert calls == 50
    assert instructions / calls <= 345
