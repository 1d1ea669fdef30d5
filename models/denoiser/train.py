"""Train the denoiser on the CPU.

    python -m runnel.models.denoiser.train --build build/denoiser

Builds the corpus once (cached in the build folder), trains with fixed seeds and saves `denoiser.pt` there; then run
export.py. Crops are mixed on the fly: random voice, noise, SNR, level, spectrum of the voice and of the noise.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .constants import SAMPLE_RATE
from .network import COMPRESSION, Denoiser, stft
from .noises import random_curve
from .synthesis import Audio, Corpus, build_corpus

CROP = 2 * SAMPLE_RATE
BATCH = 16
STEPS = 11000
WARMUP = 100
PEAK_RATE = 2e-3
AVERAGE = 0.995
BOTH_NOISES = 0.25
SNR_RANGE = (-5.0, 15.0)


def load_corpus(build: Path) -> Corpus:
    """The corpus from `build`, made there first if it is missing."""
    path = build / "corpus.npz"
    if not path.exists():
        print("building the corpus", flush=True)
        corpus = build_corpus()
        arrays = {f"speech/{i}": to_int16(x) for i, x in enumerate(corpus.speech)}
        for kind, clips in corpus.noise.items():
            arrays |= {f"noise/{kind}/{i}": to_int16(x * 0.05) for i, x in enumerate(clips)}
        build.mkdir(parents=True, exist_ok=True)
        np.savez(path, **arrays)  # type: ignore[arg-type]
    loaded = Corpus([], {})
    with np.load(path) as stored:
        for key in stored.files:
            x = stored[key].astype(np.float32) / 32768
            if key.startswith("speech/"):
                loaded.speech.append(x)
            else:
                loaded.noise.setdefault(key.split("/")[1], []).append(x)
    return loaded


def to_int16(x: Audio) -> NDArray[np.int16]:
    """(samples,) float32 in -1..1 as int16."""
    return np.clip(np.round(x * 32768), -32768, 32767).astype(np.int16)


def crop(rng: np.random.Generator, clips: list[Audio]) -> Audio:
    """A random crop of CROP samples from a random clip, padded with silence where the clip is short."""
    x = clips[int(rng.integers(len(clips)))]
    start = int(rng.integers(-SAMPLE_RATE // 4, max(len(x) - CROP, 0) + SAMPLE_RATE // 4))
    piece = x[max(start, 0) : max(start, 0) + CROP]
    left = min(max(-start, 0), CROP - 1)
    return np.pad(piece, (left, CROP))[:CROP]


def equalise(rng: np.random.Generator, x: Audio, depth: float) -> Audio:
    """`x` through a random smooth spectrum of +-`depth` dB."""
    curve = random_curve(rng, depth)(np.fft.rfftfreq(CROP, 1 / SAMPLE_RATE))
    return np.fft.irfft(np.fft.rfft(x) * 10 ** (curve / 20), CROP).astype(np.float32)


def examples(corpus: Corpus, seed: int, babble: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (clean, noisy), each (BATCH, CROP) float32; `babble` is its extra share among the noises."""
    rng = np.random.default_rng(seed)
    kinds = list(corpus.noise)

    def noise() -> Audio:
        more = babble > 0 and rng.random() < babble
        kind = "babble" if more else kinds[int(rng.integers(len(kinds)))]
        x = equalise(rng, crop(rng, corpus.noise[kind]), 8.0)
        return x / max(float(np.sqrt(np.mean(x * x))), 1e-6)

    while True:
        clean = np.zeros((BATCH, CROP), np.float32)
        noisy = np.zeros((BATCH, CROP), np.float32)
        for row in range(BATCH):
            voice = crop(rng, corpus.speech)
            while np.mean(voice * voice) < 1e-3:
                voice = crop(rng, corpus.speech)
            voice = equalise(rng, voice, 6.0)
            sound = noise()
            if rng.random() < BOTH_NOISES:
                sound = sound + rng.uniform(0.2, 1.0) * noise()
            level = np.sqrt(np.mean(voice * voice) / np.mean(sound * sound))
            sound = sound * level * 10 ** (-rng.uniform(*SNR_RANGE) / 20)
            total = voice + sound
            gain = 10 ** (rng.uniform(-40, -14) / 20) / np.sqrt(np.mean(total * total))
            gain = min(gain, 0.99 / np.abs(total).max())
            clean[row], noisy[row] = gain * voice, gain * total
        yield torch.from_numpy(clean), torch.from_numpy(noisy)


def signal_to_error(clean: Tensor, estimate: Tensor) -> Tensor:
    """Signal to error ratio in dB of each row; unlike SI-SDR it also holds the level."""
    error = (clean - estimate).square().sum(1)
    power = clean.square().sum(1)
    return 10 * torch.log10(power / (error + 1e-3 * power) + 1e-8)


def spectral_distance(clean: Tensor, estimate: Tensor, window: Tensor) -> Tensor:
    """Mean squared distance of compressed spectra, magnitudes (0.7) and complex values (0.3), each level-normalised."""
    level = clean.square().mean(1, keepdim=True).sqrt()
    parts = []
    for x in (clean / level, estimate / level):
        re, im = stft(x, window)
        magnitude = torch.sqrt(re * re + im * im + 1e-5)
        compressed = magnitude**COMPRESSION
        ratio = compressed / magnitude
        parts.append((compressed, re * ratio, im * ratio))
    (m, r, i), (n, s, j) = parts
    return 0.7 * (m - n).square().mean() + 0.3 * ((r - s).square() + (i - j).square()).mean()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / max(steps - WARMUP, 1))))


def train(options: argparse.Namespace) -> None:
    """Train for `options.steps` batches; every 500 steps the averaged weights go to the build folder."""
    build, steps, start = options.build, options.steps, options.start
    torch.manual_seed(options.seed)
    batches = examples(load_corpus(build), options.seed, options.babble)
    net = Denoiser()
    if start is not None:
        net.load_state_dict(torch.load(start, weights_only=True)["model"])
    average = torch.optim.swa_utils.AveragedModel(
        net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(AVERAGE), use_buffers=True
    )
    optimiser = torch.optim.Adam(net.parameters(), lr=PEAK_RATE)
    began, total = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = options.rate * learning_rate(step, steps)
        clean, noisy = next(batches)
        estimate = net(noisy)
        ratio = signal_to_error(clean, estimate).mean()
        loss = -0.1 * ratio + 4 * spectral_distance(clean, estimate, net.window)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 3.0)
        optimiser.step()
        average.update_parameters(net)
        total += float(ratio.detach())
        if step % 100 == 99:
            minutes = (time.monotonic() - began) / 60
            print(
                f"step {step + 1}/{steps}: {total / 100:.2f} dB, loss {loss.item():.3f}, {minutes:.1f} min", flush=True
            )
            total = 0.0
        if step % 500 == 499 or step + 1 == steps:
            torch.save({"model": average.module.state_dict(), "step": step + 1}, build / options.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=Path("build/denoiser"), help="cache and checkpoint folder")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--start", type=Path, help="checkpoint to go on from")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rate")
    parser.add_argument("--babble", type=float, default=0.0, help="extra share of babble among the noises")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", default="denoiser.pt", help="name of the checkpoint in the build folder")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.build.mkdir(parents=True, exist_ok=True)
    train(options)


if __name__ == "__main__":
    main()
