"""Speech, mixtures and the demo recording, all made here: nothing is downloaded.

    python -m runnel.models.denoiser.synthesis          # writes demo_noisy.wav and demo_clean.wav beside this file

Speech comes from espeak-ng (`apt-get install espeak-ng`) in many languages and voice variants; texts are made up by the
script; noise comes from noises.py. Held-out languages, variants and kinds of noise are never heard in training.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import noises
from .constants import SAMPLE_RATE

Audio = NDArray[np.float32]
HERE = Path(__file__).resolve().parent
CORPUS_SPEECH_CLIPS = 1800
CORPUS_NOISE_CLIPS = 40
NOISE_SECONDS = 12

TRAIN_LANGUAGES = (
    "en-us", "en-us", "en-us", "en-gb", "en-gb", "en-gb-x-rp", "en-029", "en-us-nyc", "de", "de", "fr-fr", "fr-fr",
    "fr-ch", "es", "es", "es-419", "pt", "pt-br", "pl", "cs", "da", "fi", "hu", "tr", "ro", "hr", "sk", "id", "ms",
    "sw", "vi", "ca", "lv", "lt", "et", "cy", "ga", "eo", "eu", "sq", "az", "af", "hi", "ru", "cmn", "ja", "el", "ar",
)  # fmt: skip
# An empty name is the language's own voice, drawn more often than any one variant.
TRAIN_VARIANTS = (
    "", "", "adam", "Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "aunty", "belinda", "benjamin", "boris",
    "caleb", "david", "ed", "edward", "", "gustave", "Henrique", "Hugo", "iven", "iven3", "Jacky", "john", "Lee",
    "", "", "Mario", "max", "", "miguel", "", "f1", "f2", "f3", "f4", "anika", "grandpa",
    "klatt", "klatt3", "klatt5", "m1", "m2", "m3", "m4", "m6", "m7", "norbert", "sandro", "steph2", "travis",
    "whisper", "croak", "quincy", "pablo",
)  # fmt: skip
TEST_LANGUAGES = ("en-gb-scotland", "it", "nl", "sv", "nb")
TEST_VARIANTS = ("Denis", "linda", "m8", "f5", "m5", "steph", "victor", "shelby", "rob", "zac", "grandma", "paul")

WORDS = (  # noqa: SIM905
    "the a small stream runs under old bridge and turns north past seven quiet houses where people stop to listen "
    "morning light falls on water we heard about nothing else until someone asked for more time because every chair "
    "was taken please bring your own cup five trains left this station before noon but only two came back with mail "
    "yes no maybe she thinks that weather changes quickly near mountains open window close door large green field "
    "speak slowly when they measure sound first then check whether numbers agree zebra judge vision church fashion "
    "thick bath whisper young fox jumped over lazy dogs choosing azure shapes how far away could it be now"
).split()
CONSONANTS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "st", "tr", "pl", "kr", "sh")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ou")


@dataclass(frozen=True)
class Corpus:
    """What training draws crops from."""

    speech: list[Audio]
    noise: dict[str, list[Audio]]


def sentence(rng: np.random.Generator) -> str:
    """A made-up sentence: words, invented words and numbers, which espeak-ng reads in the voice's own language."""
    words: list[str] = []
    for _ in range(int(rng.integers(4, 12))):
        kind = rng.random()
        if kind < 0.55:
            words.append(str(rng.choice(WORDS)))
        elif kind < 0.85:
            parts = int(rng.integers(1, 4))
            words.append("".join(str(rng.choice(CONSONANTS)) + str(rng.choice(VOWELS)) for _ in range(parts)))
        else:
            words.append(str(rng.integers(0, 10 ** int(rng.integers(1, 4)))))
    return " ".join(words) + str(rng.choice([".", "?", "!", ","]))


def resample(x: Audio, rate_in: float, rate_out: float) -> Audio:
    """Band-limited resampling of (samples,) through the Fourier transform."""
    length = round(len(x) * rate_out / rate_in)
    padded = np.pad(x, (0, 1024))
    total = round(len(padded) * rate_out / rate_in)
    y = np.fft.irfft(np.fft.rfft(padded), total) * (total / len(padded))
    return y[:length].astype(np.float32)


def read_wav(path: Path | io.BytesIO) -> tuple[Audio, int]:
    """A mono 16-bit wav file as ((samples,) float32 in -1..1, sample rate)."""
    with wave.open(str(path) if isinstance(path, Path) else path) as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2:
            raise ValueError(f"{path}: need a mono 16-bit wav file; convert it first")
        rate, data = file.getframerate(), file.readframes(file.getnframes())
    return np.frombuffer(data, np.int16).astype(np.float32) / np.float32(32768), rate


def write_wav(path: Path, x: Audio) -> None:
    """Write (samples,) float32 in -1..1 as a mono 16-bit wav file at SAMPLE_RATE."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.clip(np.round(x * 32768), -32768, 32767).astype(np.int16).tobytes())


def speak(text: str, voice: str, words_per_minute: int, pitch: int, tempo: float = 1.0) -> Audio:
    """One utterance, (samples,) float32 at SAMPLE_RATE with an RMS of 0.1; `tempo` moves pitch and speed together."""
    command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "--stdin", "--stdout"]
    try:
        done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    except FileNotFoundError:
        raise SystemExit("espeak-ng is not installed: apt-get install espeak-ng") from None
    # The header that espeak-ng writes to a pipe carries no length.
    header, body = done.stdout[:44], done.stdout[44:]
    rate = int.from_bytes(header[24:28], "little")
    x = np.frombuffer(body[: len(body) // 2 * 2], np.int16).astype(np.float32)
    return (0.1 * noises.unit(resample(x, rate * tempo, SAMPLE_RATE).astype(np.float64))).astype(np.float32)


def speak_many(rng: np.random.Generator, count: int, languages: Sequence[str], variants: Sequence[str]) -> list[Audio]:
    """`count` utterances of two sentences, each with a random voice, rate, pitch and tempo."""
    jobs = []
    for _ in range(count):
        variant = str(rng.choice(variants))
        voice = str(rng.choice(languages)) + (f"+{variant}" if variant else "")
        text = sentence(rng) + " " + sentence(rng)
        jobs.append((text, voice, int(rng.integers(115, 215)), int(rng.integers(15, 85)), rng.uniform(0.88, 1.15)))
    with ThreadPoolExecutor(2) as pool:
        spoken = pool.map(lambda job: speak(*job), jobs)
        return [x for x in spoken if len(x) > SAMPLE_RATE and np.abs(x).max() > 0.05]


def babble(rng: np.random.Generator, speech: Sequence[Audio], samples: int, talkers: int) -> Audio:
    """`talkers` voices at once, (samples,) float32 of unit RMS."""
    out = np.zeros(samples)
    for _ in range(talkers):
        parts: list[Audio] = []
        while sum(map(len, parts)) < samples + SAMPLE_RATE:
            parts.append(speech[int(rng.integers(len(speech)))])
        start = int(rng.integers(0, SAMPLE_RATE))
        out += rng.uniform(0.4, 1.0) * np.concatenate(parts)[start : start + samples]
    return noises.unit(out).astype(np.float32)


def noise_clips(
    rng: np.random.Generator, kinds: Mapping[str, noises.Generator], count: int, seconds: float
) -> dict[str, list[Audio]]:
    """`count` clips of each kind of noise."""
    samples = int(seconds * SAMPLE_RATE)
    return {name: [make(rng, samples).astype(np.float32) for _ in range(count)] for name, make in kinds.items()}


def build_corpus(seed: int = 1) -> Corpus:
    """The training corpus, 3.7 hours of speech and 1.9 hours of noise; takes about a minute."""
    rng = np.random.default_rng(seed)
    speech = speak_many(rng, CORPUS_SPEECH_CLIPS, TRAIN_LANGUAGES, TRAIN_VARIANTS)
    noise = noise_clips(rng, noises.TRAINING, CORPUS_NOISE_CLIPS, NOISE_SECONDS)
    length = NOISE_SECONDS * SAMPLE_RATE
    noise["babble"] = [babble(rng, speech, length, int(rng.integers(4, 12))) for _ in range(2 * CORPUS_NOISE_CLIPS)]
    return Corpus(speech, noise)


def mix(clean: Audio, noise: Audio, snr: float) -> Audio:
    """clean plus noise at `snr` dB over the whole length; both (samples,)."""
    ratio = np.mean(clean.astype(np.float64) ** 2) / max(float(np.mean(noise.astype(np.float64) ** 2)), 1e-12)
    return (clean + noise * np.sqrt(ratio / 10 ** (snr / 10))).astype(np.float32)


def held_out_mixtures(
    count: int, seed: int = 99, snr: tuple[float, float] = (0.0, 5.0)
) -> list[tuple[str, Audio, Audio]]:
    """Held-out (kind of noise, clean, noisy), `count` of each kind, with unseen languages, variants and noises."""
    rng = np.random.default_rng(seed)
    speech = speak_many(rng, count, TEST_LANGUAGES, TEST_VARIANTS)
    crowd = speak_many(rng, 20, TEST_LANGUAGES, TEST_VARIANTS)
    mixtures = []
    for kind in (*noises.HELD_OUT, "cafe"):
        for clean in speech:
            if kind == "cafe":
                talk = babble(rng, crowd, len(clean), 9)
                noise = talk + 0.3 * noises.keyboard(rng, len(clean)).astype(np.float32)
            else:
                noise = noises.HELD_OUT[kind](rng, len(clean)).astype(np.float32)
            mixtures.append((kind, clean, mix(clean, noise, rng.uniform(*snr))))
    return mixtures


def demo(seconds: float = 10.0, snr: float = 2.5) -> tuple[Audio, Audio]:
    """The demo recording, (clean, noisy): a held-out voice reads over held-out engine noise and rain."""
    rng = np.random.default_rng(2024)
    text = (
        "A runnel is a small stream. This is a recording with a lot of noise on it, as if it came out of a car "
        "in the rain. What you hear after the network should be the voice, and hardly anything else."
    )
    voice = speak(text, "en-gb-scotland+Denis", 190, 45)
    samples = int(seconds * SAMPLE_RATE)
    lead = SAMPLE_RATE // 2
    clean = np.pad(voice, (lead, samples))[:samples]
    fade = np.minimum(1.0, np.arange(samples, 0, -1) / (0.05 * SAMPLE_RATE))
    clean = (clean * fade).astype(np.float32)
    noise = (noises.engine(rng, samples) + 0.7 * noises.rain(rng, samples)).astype(np.float32)
    noisy = mix(clean, noise, snr)
    gain = np.float32(0.7 / np.abs(noisy).max())
    return clean * gain, noisy * gain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE, help="where the two wav files go")
    folder = parser.parse_args().folder
    clean, noisy = demo()
    write_wav(folder / "demo_clean.wav", clean)
    write_wav(folder / "demo_noisy.wav", noisy)
    print(f"wrote {folder / 'demo_clean.wav'} and {folder / 'demo_noisy.wav'}")


if __name__ == "__main__":
    main()
