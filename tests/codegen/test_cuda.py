"""Kernels for NVIDIA's GPUs: PTX for the capabilities of Jetson boards, and the bundles that carry it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kernel_harness import SHARES, Runner
from test_elementwise import built
from test_hot_loops import kernels, of_codes

import runnel
from runnel import targets
from runnel.compiler.codegen import KernelModule, Target
from runnel.errors import InputError
from runnel.runtime.bundle import Bundle
from runnel.tools import golden

ROOT = Path(__file__).resolve().parents[2]
CAPABILITIES = ("5.3", "7.2", "8.7")


def assembler() -> str | None:
    """NVIDIA's ptxas, where it is here."""
    if path := shutil.which("ptxas"):
        return path
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    except ModuleNotFoundError:
        return None
    places = spec.submodule_search_locations if spec is not None else None
    found = [Path(place) / "bin" / "ptxas" for place in places or ()]
    return next((str(path) for path in found if path.exists()), None)


def assembled(text: bytes, folder: Path) -> None:
    """ptxas takes the text, where it is here; a new one knows old GPUs no longer, but their PTX."""
    if (tool := assembler()) is None:
        return
    (folder / "m.ptx").write_bytes(text)
    words = [tool, "-arch=sm_87", folder / "m.ptx", "-o", folder / "m.cubin"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_kernels_of_every_kind_compile(capability: str, tmp_path: Path) -> None:
    module = KernelModule(Target.cuda(capability))
    cases = {**kernels(), "codes": of_codes("int8", 3, 512, 64)}
    added = {kind: module.add(case.group) for kind, case in cases.items()}
    image = module.build()
    text = image.code.decode()
    assert f".target sm_{capability.replace('.', '')}" in text
    assert set(re.findall(r"^\.visible \.entry (k\d+)\(", text, re.M)) == set(image.entries)
    assert sorted(image.entries.values()) == list(range(len(image.entries)))
    for kind in ("conv over time", "matmul", "codes"):
        one = added[kind].variants[1]
        assert module.threads[one] == SHARES
        body = text.split(f".visible .entry {one}(")[1].split("\n}")[0]
        assert "%tid.x" in body
        assert "fma.rn.f32" in body if kind != "codes" else re.search(r"(mad|mul)\.(lo|wide)\.(s32|s16)|dp4a", body)
        assert [arg.role for arg in added[kind].args][-1] == "out" and "share" not in [a.role for a in added[kind].args]
    assembled(image.code, tmp_path)


def test_shares_of_the_work_make_the_whole() -> None:
    """What threads do, done by this processor one after the other: the bits are those of one that does it all."""
    every = [case for case, _ in built()[1]]
    alone = Runner(every)
    outputs = [alone.run(case) for case in every]
    together = Runner([replace(case, group=replace(case.group, shared=True)) for case in every])
    shared = [case for case in together.cases if case.kernel.args and "share" in [a.role for a in case.kernel.args]]
    assert len(shared) > 20
    for case, expected in zip(together.cases, outputs):
        if case in shared:
            assert [a.tobytes() for a in together.run(case)] == [a.tobytes() for a in expected], case.name


def test_a_capability_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="no processor 'sm_999'"):
        Target.cuda("99.9")


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("jetson") / "m.rnl"
    runnel.compile(ROOT / "models/denoiser/denoiser.onnx", out, target="jetson-orin-nano", backend="native")
    return Bundle(out)


def words(plan: bytes) -> np.ndarray:
    return np.frombuffer(plan, "<i8")


def test_a_bundle_carries_both_forms(denoiser: Bundle, tmp_path: Path) -> None:
    described = denoiser.manifest["target"]["cuda"]
    assert described["capability"] == "8.7"
    text = denoiser.read("cuda/kernels")
    assert {symbol for symbol, _ in described["launches"]} == set(re.findall(r"entry (k\d+)\(", text.decode()))
    assert {threads for _, threads in described["launches"]} == {1, SHARES}
    assembled(text, tmp_path)
    cpu, gpu = words(denoiser.read("plan")), words(denoiser.read("cuda/plan"))
    sizes = slice(10, 16)  # bytes of state, scratch and weights, hop, most frames: a state fits both forms
    assert cpu[sizes].tolist() == gpu[sizes].tolist()
    clocks, buffers, count = (int(n) for n in gpu[3:6])
    table = gpu[16 + 6 * clocks + 12 * buffers :][: 3 * count].reshape(count, 3)
    assert table[:, 0].min() >= 0 and table[:, 0].max() < len(described["launches"])
    assert described["weights"] == "" or len(denoiser.read("cuda/weights")) == int(gpu[12])
    denoiser.verify()
    assert golden.verify(denoiser.path, "onnxruntime")[0]["ok"]


def test_a_board_without_such_a_gpu_carries_none(tmp_path: Path) -> None:
    info = runnel.compile(ROOT / "models/denoiser/denoiser.onnx", tmp_path / "m.rnl", target="rpi5", backend="native")
    assert "cuda" not in info.manifest["target"]
    assert not [name for name in info.manifest["entries"] if name.startswith("cuda/")]


def test_every_jetson_has_a_capability_that_kernels_are_made_for() -> None:
    boards = [targets.load(name) for name in targets.names() if name.startswith("jetson")]
    assert len(boards) >= 4
    for board in boards:
        (gpu,) = [a for a in board.accelerators if a.kind == "cuda"]
        assert Target.cuda(str(gpu.capability)).gpu
