"""Numbers of frames as a person gives them: ``160``, ``10ms``, ``0.5s``."""

from __future__ import annotations

import argparse
import re
from fractions import Fraction

import numpy as np

from runnel.errors import InputError

_SECONDS = {"s": Fraction(1), "ms": Fraction(1, 1000), "us": Fraction(1, 1_000_000)}


def frame_count(text: str, rate: float | None, option: str) -> int:
    """Frames of ``text`` at ``rate`` (frames a second). Raises InputError if that is not a whole number above 0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms|us)?", text.strip())
    if match is None:
        raise InputError(f"{option} {text} is not understood; give frames or a time, such as 160 or 10ms.")
    number, unit = Fraction(match[1]), match[2]
    if unit is not None:
        if rate is None:
            raise InputError(f"{option} {text} needs the rate of the input; give --rate, or give frames.")
        number *= _SECONDS[unit] * Fraction(rate)
    if number.denominator != 1 or number < 1:
        at = "" if rate is None else f" at {rate:g} Hz"
        raise InputError(f"{option} {text} is {float(number):g} frames{at}; give a whole number of at least 1.")
    return int(number)


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def rate(text: str) -> float:
    """Frames a second, for argparse: a number above 0, such as 16000 or 62.5."""
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of frames a second above 0")
    return float(text) if "." in text else int(text)


def named_rate(text: str) -> tuple[str, float]:
    """``HZ`` or ``NAME:HZ``, for argparse; the name is empty where there is none."""
    name, _, value = text.rpartition(":")
    return name, rate(value)


def named(text: str) -> tuple[str, str]:
    """``NAME:VALUE``, for argparse; the name may hold colons."""
    name, colon, value = text.rpartition(":")
    if not (name and colon and value):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME:VALUE")
    return name, value


def named_axis(text: str) -> tuple[str, int]:
    """``NAME:AXIS``, for argparse."""
    name, value = named(text)
    try:
        return name, int(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not INPUT:AXIS, such as feat:1") from None


def named_shape(text: str) -> tuple[str, list[int]]:
    """``NAME:D,D,D``, for argparse."""
    name, value = named(text)
    try:
        return name, [int(size) for size in value.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not INPUT:SIZE,SIZE,..., such as state:2,1,128") from None


def named_file(text: str) -> tuple[str, np.ndarray]:
    """``NAME=NUMBER`` or ``NAME=FILE.npy``, for argparse."""
    name, _, value = text.partition("=")
    return name, _value(text, value)


def named_value(text: str) -> tuple[str, np.ndarray]:
    """``NAME:NUMBER`` or ``NAME:FILE.npy``, for argparse."""
    name, value = named(text)
    return name, _value(text, value)


def _value(text: str, value: str) -> np.ndarray:
    try:
        if value.endswith(".npy"):
            return np.asarray(np.load(value, allow_pickle=False))
        return np.array(int(value) if value.lstrip("-").isdigit() else float(value))
    except (OSError, ValueError, EOFError):
        raise argparse.ArgumentTypeError(f"'{text}' gives neither a number nor a .npy file that can be read") from None
