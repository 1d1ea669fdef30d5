"""Bundles for other machines: what they say, what the proof left out, how they are refused where they do not run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import runnel
from runnel import targets
from runnel.compiler.codegen import Target
from runnel.errors import BundleError, InputError
from runnel.runtime import bundle as bundles
from runnel.tools import build, cli


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A convolution over time."""
    w = np.random.default_rng(0).standard_normal((16, 16, 3)).astype(np.float32)
    shape = [1, 16, "T"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[2, 0])], "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(made, tmp_path / "conv.onnx")
    return tmp_path / "conv.onnx"


@pytest.mark.parametrize(
    ("name", "arch", "feature", "page"),
    [("rpi5", "aarch64", "dotprod", 16384), ("armv7", "armv7", "vfp4", 4096), ("aarch64", "aarch64", "neon", 65536)],
)
def test_a_bundle_for_a_board(name: str, arch: str, feature: str, page: int, model: Path, tmp_path: Path) -> None:
    info = runnel.compile(model, tmp_path / "m.rnl", target=name)
    made = info.manifest["target"]
    assert (made["name"], made["arch"], made["os"], made["page_bytes"]) == (name, arch, "linux", page)
    assert feature in made["features"] and made["glibc"].startswith("2.")
    assert f"kernels/{name}" in info.manifest["entries"] and info.manifest["backends"][0] == "native"
    assert f"the native kernels, which are for {arch}" in info.manifest["proof"]["not_covered"]
    with pytest.raises(BundleError, match=f"is made for {arch} \\({name}\\) and this machine is"):
        runnel.load(info.path)
    x = np.ones((1, 16, 5), np.float32)
    assert runnel.load(info.path, backend="onnxruntime").stream().push(x).shape == (1, 16, 5)
    again = runnel.compile(model, tmp_path / "n.rnl", target=name)
    assert again.path.read_bytes() == info.path.read_bytes()


@pytest.mark.skipif(bundles.processor()[0] != "x86_64", reason="needs an x86-64 processor")
def test_a_missing_feature_is_named(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch, flags = bundles.processor()
    less = (arch, flags - {"fma", "avx2"})
    monkeypatch.setattr(build, "processor", lambda: less)
    info = runnel.compile(model, tmp_path / "m.rnl", target="x86-64-v3")
    assert "for x86_64 with avx2, fma" in info.manifest["proof"]["not_covered"]
    assert "native" not in info.manifest["proof"]["error"]
    monkeypatch.setattr(bundles, "processor", lambda: less)
    monkeypatch.setattr(bundles.mmap, "PROT_EXEC", None)  # mapping kernels would fail in another way
    with pytest.raises(BundleError, match="needs a processor with avx2, fma, which this one lacks"):
        runnel.load(info.path)


@pytest.mark.skipif(bundles.processor()[0] != "x86_64", reason="needs an x86-64 processor")
def test_levels_of_this_processor_are_proved_here(model: Path, tmp_path: Path) -> None:
    for level in ("x86-64-v2", "x86-64-v3"):
        if build.runs_here(build.kernel_target(targets.load(level)))[0]:
            info = runnel.compile(model, tmp_path / "m.rnl", target=level)
            assert info.manifest["proof"]["error"]["native"] < 1e-5


def test_a_target_of_ones_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = tmp_path / "shed.toml"
    board.write_text(
        'summary = "in the shed"\ntriple = "aarch64-linux-gnu"\nglibc = "2.31"\ncpu = "cortex-a55"\n'
        'features = ["+dotprod"]\ncores = 4\nram_mib = 2048\npage_kib = 4\nstorage_mb_s = 30\n'
    )
    out = tmp_path / "m.rnl"
    assert cli.main(["compile", str(model), "--target", str(board), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["manifest"]["target"]["name"] == "shed"
    board.write_text(board.read_text().replace("cortex-a55", "cortex-a555"))
    with pytest.raises(InputError, match="no processor 'cortex-a555' .*near are: cortex-a55"):
        runnel.compile(model, tmp_path / "n.rnl", target=str(board))
    assert not (tmp_path / "n.rnl").exists()


def test_this_machine_needs_what_it_has() -> None:
    flags = bundles.processor()[1]
    assert bundles.missing_features(Target.host().needs, flags) == []
