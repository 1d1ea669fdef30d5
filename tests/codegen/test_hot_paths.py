"""Of whole models: no kernel that counts does its multiply-adds one at a time, on x86-64 or on Arm."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from test_hot_loops import SCALAR, innermost_loops

from runnel import targets
from runnel.compiler.codegen import KernelModule
from runnel.compiler.lowering.lower import lower
from runnel.compiler.lowering.plan import Planner
from runnel.tools.build import kernel_target, rewrite
from runnel.tools.request import Request

ROOT = Path(__file__).resolve().parents[2]
ZOO = Path(os.environ.get("RUNNEL_ZOO") or ROOT.parent / "shared" / "zoo")
MODELS: dict[str, tuple[Path, dict[str, Any]]] = {
    "denoiser": (ROOT / "models" / "denoiser" / "denoiser.onnx", {"rate": 16000}),
    "fireredvad": (ZOO / "fireredvad" / "fireredvad_stream_vad.onnx", {}),
    "silero": (ZOO / "silero-vad" / "silero_vad_openvino_16k.onnx", {}),
    "kws": (ZOO / "mlperf-tiny" / "kws_dscnn_fp32.onnx", {"window": 49, "hop": 2}),
    "vww96": (ZOO / "mlperf-tiny" / "vww96_fp32.onnx", {}),
}
PACKED = {"x86-64-v3": r"vfn?madd\d+ps", "rpi5": r"fmla\s+v\d+\.[24]s"}
COUNTS = 0.01  # of a step's multiply-adds


@pytest.mark.parametrize("target", PACKED)
@pytest.mark.parametrize("name", MODELS)
def test_no_kernel_that_counts_is_scalar(name: str, target: str) -> None:
    file, options = MODELS[name]
    if not file.exists():
        pytest.skip(f"{file} is missing; name the zoo's folder in RUNNEL_ZOO")
    module = KernelModule(kernel_target(targets.load(target)))
    planner = Planner(lower(rewrite(file, Request(**options)).graph), 1, module)
    planner.build()
    text = str(module.lowered().inspect_source("asm"))
    total = sum(macs for _, _, macs in planner.symbols)
    checked = 0
    for symbol, _, macs in planner.symbols:
        if macs < COUNTS * total:
            continue
        code = re.split(r"\n\.Lfunc_end", text.split(f"\n{symbol}:")[1])[0]
        loops = ["\n".join(loop) for loop in innermost_loops(code)] or [code]
        packed, scalar = (sum(len(re.findall(p, loop)) for loop in loops) for p in (PACKED[target], SCALAR))
        assert packed and scalar <= packed / 8, f"{symbol} of {name}: {scalar} scalar, {packed} vector multiply-adds"
        checked += 1
    assert checked >= 3
