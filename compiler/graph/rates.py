"""Inputs of different rates: the tick that they share, and how many frames each brings in one."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import gcd
from typing import Any

from runnel.errors import InputError

METADATA = "runnel.rate"  # of a model: "16000", or "audio:16000,video:25"
MOST_FRAMES = 1 << 17


def ticks(rates: Mapping[str, float]) -> tuple[dict[str, int], Fraction]:
    """Frames of each input in a tick, the longest time in which all bring whole numbers of frames; ticks a second.

    rates: frames a second, by input name. Raises InputError for one that is not above 0, and where a tick is too long.
    """
    exact = {}
    for name, rate in rates.items():
        if not 0 < rate < float("inf"):
            raise InputError(f"rate {rate} of input '{name}' is not a number of frames a second; give one above 0.")
        exact[name] = Fraction(rate).limit_denominator(1 << 20)
    tick = Fraction(0)
    for value in exact.values():
        over = tick.denominator * value.denominator
        tick = Fraction(gcd(tick.numerator * value.denominator, value.numerator * tick.denominator), over)
    per_tick = {name: int(value / tick) for name, value in exact.items()}
    if (most := max(per_tick.values())) > MOST_FRAMES:
        listed = ", ".join(f"'{name}' {rate:g} Hz" for name, rate in rates.items())
        raise InputError(
            f"the rates {listed} meet only after {most} frames (the limit is {MOST_FRAMES}); resample an input so that "
            "the rates have a larger common divisor."
        )
    return per_tick, tick


def rates_in(metadata: Any) -> float | dict[str, float] | None:
    """The rates that a model's metadata name, None where it names none. Raises InputError for what is no rate."""
    text = next((entry.value for entry in metadata if entry.key == METADATA), None)
    if text is None:
        return None
    try:
        if ":" not in text:
            return float(text)
        pairs = [part.rpartition(":") for part in text.split(",")]
        return {name.strip(): float(rate) for name, _, rate in pairs}
    except ValueError:
        raise InputError(
            f"the model's metadata '{METADATA}' is '{text}'; it has to be a rate, or INPUT:RATE,INPUT:RATE."
        ) from None
