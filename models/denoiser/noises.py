"""Noise made from nothing: a generator takes a random source and a length and gives (samples,) float64 of unit RMS.

`TRAINING` are heard in training; `HELD_OUT` are other kinds of sound that only the evaluation hears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .constants import SAMPLE_RATE

Signal = NDArray[np.floating[Any]]
Generator = Callable[[np.random.Generator, int], Signal]


def unit(x: Signal) -> Signal:
    """`x` scaled to an RMS of one."""
    return x / max(float(np.sqrt(np.mean(x * x))), 1e-12)


def shaped(rng: np.random.Generator, samples: int, decibels: Callable[[Signal], Signal]) -> Signal:
    """Gaussian noise whose spectrum follows `decibels(frequency in Hz)`."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    return unit(np.fft.irfft(spectrum * 10 ** (decibels(frequency) / 20), samples))


def slope(octave_decibels: float) -> Callable[[Signal], Signal]:
    """A spectrum that falls by `octave_decibels` an octave above 20 Hz."""
    return lambda frequency: -octave_decibels * np.log2(np.maximum(frequency, 20.0) / 20.0)


def random_curve(rng: np.random.Generator, depth: float, points: int = 9) -> Callable[[Signal], Signal]:
    """A smooth random spectrum: `points` levels of +-`depth` dB spread evenly over the octaves from 50 Hz to 8 kHz."""
    centres = np.geomspace(50.0, 8000.0, points)
    levels = rng.uniform(-depth, depth, points)
    return lambda frequency: np.interp(np.log(np.maximum(frequency, 1.0)), np.log(centres), levels)


def slow_envelope(rng: np.random.Generator, samples: int, rate: float) -> Signal:
    """A smooth random walk in 0..1 that changes about `rate` times a second, (samples,)."""
    knots = rng.uniform(0, 1, max(int(samples / SAMPLE_RATE * rate) + 2, 2))
    position = np.linspace(0, len(knots) - 1, samples)
    index = np.minimum(position.astype(int), len(knots) - 2)
    blend = 0.5 - 0.5 * np.cos(np.pi * (position - index))
    return knots[index] * (1 - blend) + knots[index + 1] * blend


def events(rng: np.random.Generator, samples: int, rate: float, make: Callable[[], Signal]) -> Signal:
    """Sounds from `make` laid at random times, `rate` a second on average."""
    out = np.zeros(samples)
    for start in rng.integers(0, samples, max(int(rate * samples / SAMPLE_RATE), 1)):
        sound = make()[: samples - start]
        out[start : start + len(sound)] += sound
    return out


def burst(rng: np.random.Generator, seconds: float, low: float, high: float) -> Signal:
    """A decaying burst of noise between two frequencies."""
    samples = max(int(seconds * SAMPLE_RATE), 64)
    band = shaped(rng, samples, lambda f: np.where((f > low) & (f < high), 0.0, -40.0))
    return band * np.exp(-5 * np.arange(samples) / samples)


def harmonic(rng: np.random.Generator, pitch: Signal, partials: int, fall: float) -> Signal:
    """Harmonics of a moving pitch in Hz, (samples,); partial k is about k ** -fall strong."""
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    out = np.zeros(len(pitch))
    for k in range(1, partials + 1):
        if k * pitch.max() < SAMPLE_RATE / 2:
            out += k**-fall * rng.uniform(0.2, 1.0) * np.sin(k * phase + rng.uniform(0, 2 * np.pi))
    return unit(out)


def white(rng: np.random.Generator, samples: int) -> Signal:
    """Flat noise."""
    return unit(rng.standard_normal(samples))


def pink(rng: np.random.Generator, samples: int) -> Signal:
    """Noise that falls 3 dB an octave, more or less."""
    return shaped(rng, samples, slope(rng.uniform(2.0, 4.0)))


def brown(rng: np.random.Generator, samples: int) -> Signal:
    """Noise that falls 6 dB an octave, more or less."""
    return shaped(rng, samples, slope(rng.uniform(5.0, 7.0)))


def coloured(rng: np.random.Generator, samples: int) -> Signal:
    """Noise with a random smooth spectrum."""
    return shaped(rng, samples, random_curve(rng, 18.0))


def band(rng: np.random.Generator, samples: int) -> Signal:
    """Noise in one band between 100 Hz and 7.5 kHz, over a faint floor."""
    low = np.exp(rng.uniform(np.log(100), np.log(4000)))
    high = min(low * rng.uniform(1.3, 6.0), 7500.0)
    return shaped(rng, samples, lambda f: np.where((f > low) & (f < high), 0.0, -30.0))


def modulated(rng: np.random.Generator, samples: int) -> Signal:
    """Coloured noise whose level swings, slowly or as a machine does."""
    noise = coloured(rng, samples)
    if rng.random() < 0.5:
        return unit(noise * (0.1 + slow_envelope(rng, samples, rng.uniform(0.3, 6.0))))
    beat = np.sin(2 * np.pi * rng.uniform(1.0, 25.0) * np.arange(samples) / SAMPLE_RATE)
    return unit(noise * (1 + rng.uniform(0.3, 0.9) * beat))


def hum(rng: np.random.Generator, samples: int) -> Signal:
    """Mains-like hum with harmonics and a little noise."""
    pitch = np.full(samples, rng.uniform(45.0, 250.0))
    tone = harmonic(rng, pitch, int(rng.integers(4, 40)), rng.uniform(0.2, 1.2))
    return unit(tone + rng.uniform(0.05, 0.5) * pink(rng, samples))


def clicks(rng: np.random.Generator, samples: int) -> Signal:
    """Short impulses and knocks over a faint floor."""

    def click() -> Signal:
        low = rng.uniform(100, 3000)
        return rng.uniform(0.2, 1) * burst(rng, rng.uniform(0.004, 0.08), low, low * rng.uniform(2, 5))

    return unit(unit(events(rng, samples, rng.uniform(2, 15), click)) + rng.uniform(0.05, 0.3) * coloured(rng, samples))


def tones(rng: np.random.Generator, samples: int) -> Signal:
    """Music-like: notes of a scale with soft attacks and harmonics, several at a time."""
    root = rng.uniform(80, 200)

    def note() -> Signal:
        length = int(rng.uniform(0.2, 1.2) * SAMPLE_RATE)
        pitch = np.full(length, root * 2 ** (rng.choice([0, 2, 4, 5, 7, 9, 11, 12, 16, 19, 24]) / 12))
        shape = np.minimum(1, np.arange(length) / 300) * np.exp(-rng.uniform(1, 4) * np.arange(length) / length)
        return harmonic(rng, pitch, int(rng.integers(2, 12)), rng.uniform(0.6, 1.8)) * shape

    return unit(events(rng, samples, rng.uniform(3, 8), note) + 0.01 * rng.standard_normal(samples))


def siren(rng: np.random.Generator, samples: int) -> Signal:
    """A tone that glides up and down, with few harmonics."""
    swing = slow_envelope(rng, samples, rng.uniform(0.5, 3.0))
    pitch = rng.uniform(200, 900) * 2 ** (rng.uniform(0.2, 1.5) * swing)
    return unit(harmonic(rng, pitch, int(rng.integers(1, 6)), 1.0) + 0.1 * pink(rng, samples))


def wind(rng: np.random.Generator, samples: int) -> Signal:
    """Gusts: low noise with a wandering level, and a whistle now and then."""
    low = shaped(rng, samples, slope(rng.uniform(5, 9))) * (0.1 + slow_envelope(rng, samples, 1.0) ** 2)
    centre = rng.uniform(400, 1200)
    whistle = shaped(rng, samples, lambda f: -40 * np.abs(np.log2(np.maximum(f, 1) / centre)))
    return unit(unit(low) + rng.uniform(0, 0.4) * whistle * slow_envelope(rng, samples, 0.7))


def crackle(rng: np.random.Generator, samples: int) -> Signal:
    """Dense random impulses through a random spectrum."""
    sparse = rng.standard_normal(samples) * (rng.random(samples) < rng.uniform(0.002, 0.05))
    curve = random_curve(rng, 12.0)(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE))
    return unit(np.fft.irfft(np.fft.rfft(sparse) * 10 ** (curve / 20), samples))


def rain(rng: np.random.Generator, samples: int) -> Signal:
    """A hiss of far drops and near drops that ring briefly."""

    def drop() -> Signal:
        length = int(rng.uniform(0.005, 0.02) * SAMPLE_RATE)
        time = np.arange(length) / SAMPLE_RATE
        return rng.exponential(1.0) * np.sin(2 * np.pi * rng.uniform(1500, 6000) * time) * np.exp(-time * 400)

    hiss = shaped(rng, samples, lambda f: -12 * np.abs(np.log2(np.maximum(f, 1) / 3000)))
    return unit(hiss * (0.7 + 0.3 * slow_envelope(rng, samples, 2.0)) + unit(events(rng, samples, 120, drop)))


def fan(rng: np.random.Generator, samples: int) -> Signal:
    """Broad air noise chopped by the blades, and the motor's tones."""
    time = np.arange(samples) / SAMPLE_RATE
    blade = rng.uniform(20, 60)
    air = shaped(rng, samples, lambda f: -6 * np.abs(np.log2(np.maximum(f, 20) / 400)))
    chopped = air * (1 + 0.3 * np.sin(2 * np.pi * blade * time) + 0.15 * np.sin(4 * np.pi * blade * time))
    motor = harmonic(rng, np.full(samples, 4 * blade), 8, 0.8)
    return unit(unit(chopped) + 0.25 * motor)


def keyboard(rng: np.random.Generator, samples: int) -> Signal:
    """Typing: a press and a release a key, over room noise."""

    def key() -> Signal:
        press = burst(rng, 0.03, 800, 6000)
        release = 0.4 * burst(rng, 0.02, 1500, 7000)
        pause = np.zeros(int(rng.uniform(0.05, 0.1) * SAMPLE_RATE))
        return rng.uniform(0.4, 1) * np.concatenate([press, pause, release])

    return unit(unit(events(rng, samples, 7, key)) + 0.4 * shaped(rng, samples, slope(3.5)))


def engine(rng: np.random.Generator, samples: int) -> Signal:
    """A motor whose speed wanders, with combustion noise in step, as in a car."""
    pitch = rng.uniform(28, 45) * (1 + 0.4 * slow_envelope(rng, samples, 0.5))
    firing = np.sin(2 * np.pi * np.cumsum(2 * pitch) / SAMPLE_RATE)
    road = shaped(rng, samples, lambda f: -8 * np.log2(np.maximum(f, 80) / 80))
    exhaust = white(rng, samples) * np.maximum(firing, 0) ** 4
    return unit(harmonic(rng, pitch, 30, 0.9) + road + 0.25 * unit(exhaust))


TRAINING: Mapping[str, Generator] = {
    f.__name__: f
    for f in (white, pink, brown, coloured, band, modulated, hum, clicks, tones, siren, wind, crackle)
}  # fmt: skip
HELD_OUT: Mapping[str, Generator] = {f.__name__: f for f in (rain, fan, keyboard, engine)}
