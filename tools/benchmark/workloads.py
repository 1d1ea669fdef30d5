"""What the bench measures, and the ratio to the best peer that each workload shall reach."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runnel import models, tools
from runnel.errors import InputError
from runnel.runtime.io import read_wav
from runnel.tools.benchmark import nets
from runnel.tools.benchmark.case import Array


def zoo(file: str) -> Path:
    """A model of the zoo, which RUNNEL_ZOO names (or ../shared/zoo). Raises InputError where it is not there."""
    root = Path(tools.__path__[0]).resolve().parent.parent
    path = Path(os.environ.get("RUNNEL_ZOO") or root / "shared" / "zoo") / file
    if not path.exists():
        raise InputError(f"there is no {path}; name the folder that has {file} in RUNNEL_ZOO.")
    return path


def only(model: bytes, *outputs: str) -> bytes:
    """The model without its other outputs."""
    import onnx

    proto = onnx.load_from_string(model)
    kept = [o for o in proto.graph.output if o.name in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(kept)
    return bytes(proto.SerializeToString())


class Noise:
    """Calibration data for onnxruntime's quantisation."""

    def __init__(self, frames: Iterable[dict[str, Array]]) -> None:
        self.left = iter(frames)

    def get_next(self) -> dict[str, Array] | None:
        return next(self.left, None)


@dataclass(frozen=True)
class Workload:
    """A row. model: the offline model. hop: frames of a step. kind: see case.py.

    options: of runnel.compile. step: the step by hand, where that is better for peers than the model's streaming form;
    batch_axis: where it takes several streams. states: {output: input} of a model that brings its own. quantise: the
    model is made integer first; codes: it computes in integers. scale: of the noise that it is fed, or record and
    steps: a recording, and how much of it. tflite: the same network for LiteRT. target: the ratio to the best peer to
    reach (window mode has a rule of its own); own_target: to our own step of ``of``.
    """

    name: str
    model: Callable[[], bytes]
    kind: str = "stream"
    hop: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    step: Callable[[], bytes] | None = None
    states: dict[str, str] = field(default_factory=dict)
    quantise: bool = False
    codes: bool = False
    window: int = 0
    lanes: int = 1
    batch_axis: int = -1
    target: float | None = None
    of: str = ""
    own_target: float | None = None
    scale: float = 0.3
    tflite: str = ""
    tolerance: float = 1e-3
    record: Callable[[], Array] | None = None
    steps: int = 0


def _file(name: str, *outputs: str) -> Callable[[], bytes]:
    return lambda: only(zoo(name).read_bytes(), *outputs) if outputs else zoo(name).read_bytes()


def _denoiser() -> bytes:
    return (Path(models.__path__[0]) / "denoiser" / "denoiser.onnx").read_bytes()


def _speech() -> Array:
    return read_wav(Path(models.__path__[0]) / "denoiser" / "demo_noisy.wav").samples


def _rnn(op: str, inside: int, hidden: int, lanes: int = 1) -> Workload:
    several = f" x{lanes}" if lanes > 1 else ""
    return Workload(
        f"{op.lower()} {inside}-{hidden}{several}", lambda: nets.recurrent(op, inside, hidden), lanes=lanes,
        step=lambda: nets.recurrent_step(op, inside, hidden, lanes), batch_axis=1,
        target=0.35 if lanes == 1 else None,
        of=f"{op.lower()} {inside}-{hidden}" if lanes > 1 else "", own_target=0.4 if lanes == 16 else None,
        scale=1.0,
    )  # fmt: skip


def _tcn(hop: int, target: float | None = None, lanes: int = 1) -> Workload:
    several = f" x{lanes}" if lanes > 1 else ""
    return Workload(
        f"tcn hop {hop}{several}", nets.tcn, hop=hop, options={"hop": hop}, step=lambda: nets.tcn_step(hop, lanes),
        batch_axis=0, target=target, lanes=lanes, of=f"tcn hop {hop}" if lanes > 1 else "",
        own_target=0.4 if lanes == 16 else None, scale=1.0,
    )  # fmt: skip


def _few_bits(bits: int, level: int) -> Workload:
    """Onnxruntime's own level of accuracy: 0 float32, 4 activations of 8 bits, for which ours take the named mode."""
    options: dict[str, Any] = {"hop": 1} | ({"activations": "int8"} if level else {})
    return Workload(
        f"product of {bits} bits, level {level}", lambda: nets.few_bits(bits, level), options=options, target=0.9,
        scale=1.0, tolerance=5e-2 if level else 1e-3,
    )  # fmt: skip


def _fire(hop: int, target: float | None, lanes: int = 1) -> Workload:
    several = f" x{lanes}" if lanes > 1 else ""
    return Workload(
        f"fireredvad hop {hop}{several}", _file("fireredvad/fireredvad_stream_vad.onnx", "probs"), hop=hop,
        options={"hop": hop}, target=target, lanes=lanes, of=f"fireredvad hop {hop}" if lanes > 1 else "",
        own_target=0.4 if lanes == 16 else None, scale=1.0,
    )  # fmt: skip


def _denoise(target: float | None, lanes: int = 1) -> Workload:
    several = f" x{lanes}" if lanes > 1 else ""
    return Workload(
        f"denoiser{several}", _denoiser, hop=512, options={"rate": 16000}, target=target, record=_speech, steps=60,
        lanes=lanes, of="denoiser" if lanes > 1 else "", own_target=0.4 if lanes == 16 else None,
    )  # fmt: skip


def _silero(target: float | None, lanes: int = 1) -> Workload:
    several = f" x{lanes}" if lanes > 1 else ""
    return Workload(
        f"silero-vad{several}", _file("silero-vad/silero_vad_openvino_16k.onnx"), "states", states={"stateN": "state"},
        target=target, lanes=lanes, of="silero-vad" if lanes > 1 else "", own_target=0.4 if lanes == 16 else None,
    )  # fmt: skip


MELS = "mlperf-tiny/"
GTCRN = {f"{name}_cache_out": f"{name}_cache" for name in ("conv", "tra", "inter")}
FACES = {"time_axis": {"input": 0}, "window": 1}  # its one frame is a window
WORKLOADS = [
    _tcn(1, 0.10), _tcn(4, 0.12), _tcn(16, 0.22),
    Workload("tcn int8 hop 1", nets.tcn, options={"hop": 1}, quantise=True, codes=True, of="tcn hop 1", target=0.9,
             own_target=0.5, scale=1.0),
    Workload("tcn without dilation", lambda: nets.tcn(growth=1), step=lambda: nets.tcn_step(1, growth=1), scale=1.0),
    _rnn("GRU", 32, 64), _rnn("GRU", 256, 256), _rnn("LSTM", 32, 64), _rnn("LSTM", 256, 256),
    _denoise(0.25),
    Workload("gtcrn", _file("gtcrn/gtcrn_simple.onnx"), "states", states=GTCRN, target=0.20),
    _silero(0.70),
    _fire(1, 0.10), _fire(10, None),
    _few_bits(8, 0), _few_bits(4, 0), _few_bits(8, 4), _few_bits(4, 4),
    Workload("sww", _file(MELS + "sww_fp32.onnx"), "window", window=30, options={"window": 30, "hop": 1}),
    Workload("sww int8", _file(MELS + "sww_fp32.onnx"), "window", window=30, options={"window": 30, "hop": 1},
             quantise=True, codes=True, of="sww", own_target=0.5),
    Workload("kws", _file(MELS + "kws_dscnn_fp32.onnx"), "window", hop=2, window=49, options={"window": 49, "hop": 2}),
    Workload("kws int8", _file(MELS + "kws_dscnn_int8_qdq.onnx"), "window", hop=2, window=49, codes=True, of="kws",
             options={"window": 49, "hop": 2}, own_target=0.75, tflite=MELS + "kws_ref_model.tflite", scale=60),
    Workload("vww96", _file(MELS + "vww96_fp32.onnx"), "frame", target=0.9),
    Workload("vww96 int8", _file(MELS + "vww96_fp32.onnx"), "frame", target=0.9, quantise=True, codes=True, of="vww96",
             own_target=0.75, tflite=MELS + "vww_96_int8.tflite"),
    Workload("ultraface", _file("ultraface/Ultraface.version-RFB-320.onnx"), "frame", target=0.9,
             options=FACES),
    Workload("ultraface int8", _file("ultraface/Ultraface.version-RFB-320.onnx"), "frame", target=0.9, quantise=True,
             codes=True, of="ultraface", own_target=0.5, options=FACES),
    Workload("movinet-a0", nets.movinet, target=0.9, step=lambda: nets.movinet(step=True), scale=1.0),
    Workload("soundstream 20 ms", nets.soundstream, hop=320, step=lambda: nets.soundstream(hop=320)),
    _tcn(1, lanes=4), _tcn(1, lanes=16), _rnn("GRU", 256, 256, 4), _rnn("GRU", 256, 256, 16),
    _rnn("LSTM", 256, 256, 4), _rnn("LSTM", 256, 256, 16), _fire(1, None, 4), _fire(1, None, 16),
    _denoise(None, 4), _denoise(None, 16), _silero(None, 4), _silero(None, 16),
]  # fmt: skip
