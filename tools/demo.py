"""The main job, end to end: compile the denoiser for this machine and stream a noisy recording through it.

Run by ``make demo``. Leaves clean.wav, denoiser.rnl and spectrogram.png in build/demo.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import runnel
from runnel import models
from runnel.errors import InternalError
from runnel.runtime.io import read_wav, write_wav
from runnel.tools import terminal
from runnel.tools.bench import measure
from runnel.tools.facts import saved_work
from runnel.tools.measure import Timing, by_name, drive, one_cpu
from runnel.tools.peer import BoundProgram
from runnel.tools.replay import cut

RATE = 16000
CHUNK = RATE // 100  # 10 ms, as a microphone would deliver it
OUT = Path("build/demo")
Samples = NDArray[np.float32]


def si_sdr(estimate: Samples, clean: Samples) -> float:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019), of one-dimensional signals."""
    e, c = estimate.astype(np.float64), clean.astype(np.float64)
    target = (e @ c) / (c @ c) * c
    return float(10 * np.log10((target @ target) / ((e - target) @ (e - target))))


def offline(model: Path, samples: Samples) -> tuple[Samples, float]:
    """The offline model on the whole recording, on onnxruntime with one thread, and the seconds it took."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    start = time.perf_counter()
    (result,) = session.run(None, {session.get_inputs()[0].name: samples[None]})
    return np.asarray(result)[0], time.perf_counter() - start


def stream_through(program: Any, samples: Samples) -> tuple[Samples, Timing]:
    """The recording in chunks of 10 ms and a flush; what came out and what it took."""
    parts: list[Samples] = []
    whole = samples[None]
    chunks = (cut(whole, 1, at, min(at + CHUNK, samples.size)) for at in range(0, samples.size, CHUNK))
    with one_cpu():
        timing = drive(
            program.stream(),
            chunks,
            1,
            RATE,
            lambda values: parts.extend(np.array(v) for v in by_name(values, program.outputs).values()),
        )
    return np.concatenate(parts, 1)[0], timing


def draw(before: Samples, after: Samples, path: Path) -> None:
    """Spectrograms of a recording before and after, one above the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 1, figsize=(10, 6.4), sharex=True, constrained_layout=True)
    image = None
    for panel, samples, title in zip(panels, (before, after), ("before: the noisy recording", "after: streamed")):
        window = np.hanning(512)
        frames = np.lib.stride_tricks.sliding_window_view(samples, 512)[::128] * window
        power = 20 * np.log10(np.abs(np.fft.rfft(frames)).T / window.sum() * 2 + 1e-9)
        span = (0.0, samples.size / RATE, 0.0, RATE / 2000)
        image = panel.imshow(power, origin="lower", aspect="auto", extent=span, vmin=-100, vmax=-20, cmap="magma")
        panel.set_title(title, loc="left")
        panel.set_ylabel("frequency in kHz")
    panels[-1].set_xlabel("time in s")
    figure.colorbar(image, ax=panels, label="level in dB of full scale")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> int:
    """The whole demo; returns the exit code."""
    folder = Path(models.__path__[0]) / "denoiser"
    model, bundle = folder / "denoiser.onnx", OUT / "denoiser.rnl"
    OUT.mkdir(parents=True, exist_ok=True)
    noisy, clean = (read_wav(folder / f"demo_{name}.wav").samples[0] for name in ("noisy", "clean"))

    progress = terminal.Progress()
    start = time.perf_counter()
    try:
        manifest = runnel.compile(model, bundle, rate=RATE, progress=progress).manifest
        taken = time.perf_counter() - start
        progress("streaming the recording")
        program = runnel.load(bundle)
        cleaned, timing = stream_through(program, noisy)
        progress("comparing with the offline model")
        expected, offline_seconds = offline(model, noisy)
        error = float(np.abs(cleaned - expected).max() / np.abs(expected).max())
        progress("comparing with onnxruntime")
        backends: dict[str, Any] = {"native": program, "onnxruntime": BoundProgram(bundle)}
        rows = measure(backends, backends["onnxruntime"].hop)
        progress("drawing")
        write_wav(OUT / "clean.wav", cleaned, RATE)
        draw(noisy, cleaned, OUT / "spectrogram.png")
    finally:
        progress.close()

    limit = float(manifest["proof"].get("limit", 1e-5))
    exact = cleaned.shape == expected.shape and error <= limit
    native, other = (row.timing for row in rows)
    facts = {
        "compiled": f"in {taken:.1f} s, {terminal.size(bundle.stat().st_size)}, for {manifest['target']['arch']}",
        "recording": f"{noisy.size / RATE:.1f} s, streamed in {timing.steps} chunks of {terminal.frames(CHUNK, RATE)}",
        "exact": f"{'yes' if exact else 'NO'}: the largest error against the offline model is {error:.1e} of the "
        f"output's range (allowed {limit:.0e}), start and end included",
        "hop": terminal.frames(program.hop, RATE),
        "look-ahead": terminal.frames(program.latency_frames, RATE),
        "state": terminal.size(program.state_bytes),
        "real-time factor": f"{timing.rtf:.4f} ({1 / (timing.rtf or 1):.0f} times faster than real time, one thread)",
        "chunk": f"p50 {terminal.duration(timing.p50)}, p99 {terminal.duration(timing.p99)}",
        "native hop": f"p50 {terminal.duration(native.p50)}, p99 {terminal.duration(native.p99)}",
        "onnxruntime hop": f"p50 {terminal.duration(other.p50)}, p99 {terminal.duration(other.p99)}; "
        f"the same streaming graph, buffers bound, {other.p50 / native.p50:.1f} times slower",
        "work": saved_work(manifest) or "not counted",
        "offline": f"the offline model on the whole recording took {terminal.duration(offline_seconds)}",
        "SI-SDR": f"{si_sdr(noisy, clean):.1f} dB before, {si_sdr(cleaned, clean):.1f} dB after",
        "written": ", ".join(str(OUT / name) for name in ("clean.wav", "spectrogram.png", "denoiser.rnl")),
    }
    print(terminal.pairs(facts))
    if not exact:
        raise InternalError("the stream differs from the offline model.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
