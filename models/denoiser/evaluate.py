"""Measure the exported denoiser with onnxruntime.

    python -m runnel.models.denoiser.evaluate --json build/denoiser/figures.json

SI-SDR before and after on held-out voices and held-out noises at 0 to 5 dB, on the demo recording, and on the
recordings of the zoo where there is one (`RUNNEL_ZOO`, or ../shared/zoo beside the repository). Also prints what the
network costs and how far it looks ahead. SI-SDR follows Le Roux et al., "SDR - half-baked or well done?", 2019.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from .constants import HOP, SAMPLE_RATE, WINDOW
from .synthesis import Audio, held_out_mixtures, read_wav

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
Figures = dict[str, dict[str, float]]


def si_sdr(reference: Audio, estimate: Audio) -> float:
    """Scale-invariant signal to distortion ratio in dB; both (samples,)."""
    s, e = (x.astype(np.float64) - np.mean(x, dtype=np.float64) for x in (reference, estimate))
    target = (e @ s) / max(float(s @ s), 1e-20) * s
    residue = e - target
    return float(10 * np.log10(max(float(target @ target), 1e-20) / max(float(residue @ residue), 1e-20)))


def level(x: Audio) -> float:
    """RMS level in dB of full scale."""
    return float(10 * np.log10(max(float(np.mean(x.astype(np.float64) ** 2)), 1e-10)))


class Model:
    """The ONNX file, run on whole recordings."""

    def __init__(self, path: Path) -> None:
        self.session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, noisy: Audio) -> Audio:
        """noisy: (samples,) float32. Returns (samples,) float32."""
        (clean,) = self.session.run(None, {"noisy": noisy[None]})
        return clean[0]


def held_out(model: Model, count: int) -> Figures:
    """Mean SI-SDR before and after for each held-out kind of noise, and over all."""
    rows: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for kind, clean, noisy in held_out_mixtures(count):
        rows[kind].append((si_sdr(clean, noisy), si_sdr(clean, model(noisy))))
    rows["all"] = [pair for pairs in rows.values() for pair in pairs]
    return {kind: summary(pairs) for kind, pairs in rows.items()}


def summary(rows: list[tuple[float, float]]) -> dict[str, float]:
    """Means and the 10th percentile of the gain, from the SI-SDR before and after of each mixture."""
    pairs = np.array(rows)
    gain = pairs[:, 1] - pairs[:, 0]
    return {
        "mixtures": len(pairs),
        "before_db": float(pairs[:, 0].mean()),
        "after_db": float(pairs[:, 1].mean()),
        "gain_db": float(gain.mean()),
        "gain_p10_db": float(np.percentile(gain, 10)),
    }


def pair(model: Model, clean: Path, noisy: Path) -> dict[str, float]:
    """SI-SDR before and after on two wav files; the longer one is cut."""
    reference, _ = read_wav(clean)
    recording, _ = read_wav(noisy)
    samples = min(len(reference), len(recording))
    reference, recording = reference[:samples], recording[:samples]
    return summary([(si_sdr(reference, recording), si_sdr(reference, model(recording)))])


def quiet_level(x: Audio) -> float:
    """Level in dB of full scale of the quietest tenth of the 20 ms frames: the noise floor between words."""
    frames = x[: len(x) // 320 * 320].reshape(-1, 320).astype(np.float64)
    levels = np.sort(np.mean(frames**2, axis=1))
    return float(10 * np.log10(max(float(levels[: max(len(levels) // 10, 1)].mean()), 1e-10)))


def recordings(model: Model, zoo: Path) -> Figures:
    """The recordings of the zoo: pairs where there is a reference, levels before and after for the others."""
    figures: Figures = {}
    synth, gtcrn = zoo / "synth-speech", zoo / "gtcrn"
    if synth.is_dir():
        figures["synth-speech"] = pair(model, synth / "espeak_16k.wav", synth / "espeak_noisy_16k.wav")
    if gtcrn.is_dir():
        figures["gtcrn mix, towards another model's output"] = pair(model, gtcrn / "enh.wav", gtcrn / "mix.wav")
    names = (
        "gtcrn/mix.wav", "clips/yes_1000ms.wav", "clips/no_1000ms.wav", "clips/noise_1000ms.wav",
        "fireredvad/hello_en.wav", "pymicro-vad/speech.wav", "pymicro-vad/music.wav",
    )  # fmt: skip
    for name in names:
        if (zoo / name).is_file():
            x, rate = read_wav(zoo / name)
            if rate == SAMPLE_RATE:
                y = model(x)
                figures[name] = {
                    "level_before_db": level(x),
                    "level_after_db": level(y),
                    "floor_before_db": quiet_level(x),
                    "floor_after_db": quiet_level(y),
                    "si_sdr_to_input_db": si_sdr(x, y),
                }
    return figures


def look_ahead(model: Model) -> int:
    """Furthest input sample, counted from an output sample, that changes it: measured by altering the input's tail."""
    rng = np.random.default_rng(0)
    x = (0.1 * rng.standard_normal(24000)).astype(np.float32)
    whole = model(x)
    furthest = 0
    for start in range(12000, 12000 + 2 * HOP):
        altered = x.copy()
        altered[start:] += rng.standard_normal(len(x) - start).astype(np.float32)
        furthest = max(furthest, start - int(np.flatnonzero(model(altered) != whole)[0]))
    return furthest


def cost(path: Path) -> dict[str, float]:
    """Parameters (the transform's basis apart) and multiply-accumulates for each second of audio."""
    graph = onnx.load(path).graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    frames = SAMPLE_RATE / HOP
    rates = {"wave": frames, "down": frames / 2, "up": frames / 2}
    macs = 0.0
    for node in graph.node:
        rate = frames / 2 if node.name.startswith(("coarse", "gru")) else rates.get(node.name, frames)
        sizes = [np.prod(shapes[name]) for name in node.input if name in shapes and len(shapes[name]) >= 2]
        if node.op_type in ("Conv", "ConvTranspose", "MatMul"):
            macs += rate * float(sizes[0])
        elif node.op_type == "GRU":
            macs += rate * float(sizes[0] + sizes[1])
    parameters = sum(
        int(np.prod(dims)) for name, dims in shapes.items() if name not in ("fourier_basis", "inverse_scale")
    )
    return {"parameters": parameters, "macs_per_second": macs, "bytes": path.stat().st_size, "window": WINDOW}


def find_zoo() -> Path | None:
    """The folder of recordings, or None."""
    for folder in (os.environ.get("RUNNEL_ZOO"), ROOT.parent / "shared" / "zoo"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "denoiser.onnx")
    parser.add_argument("--count", type=int, default=60, help="utterances; each is mixed with every kind of noise")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    model, zoo = Model(options.model), find_zoo()
    sections: dict[str, Figures] = {
        "held-out voices and noises, 0 to 5 dB": held_out(model, options.count),
        "recordings": {"demo": pair(model, HERE / "demo_clean.wav", HERE / "demo_noisy.wav")}
        | (recordings(model, zoo) if zoo else {}),
        "the network": {"cost": cost(options.model), "look-ahead": {"samples": look_ahead(model)}},
    }
    for title, rows in sections.items():
        print(f"\n{title}")
        for name, figures in rows.items():
            print(
                f"  {name:40s} " + "  ".join(f"{key} {value:.2f}".removesuffix(".00") for key, value in figures.items())
            )
    if options.json:
        options.json.write_text(json.dumps(sections, indent=1) + "\n")


if __name__ == "__main__":
    main()
