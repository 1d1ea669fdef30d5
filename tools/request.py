"""What a user asks of the compiler, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from runnel.compiler.graph.rates import ticks
from runnel.compiler.streaming.modes import parse_modes
from runnel.errors import InputError
from runnel.kv import parse as parse_kv
from runnel.runtime.manifest import MAX_HOP as MOST_FRAMES
from runnel.runtime.program import BACKENDS
from runnel.tools.calibrate import Calibration

WINDOW_MODES = ("exact", "reuse")
PADDINGS = ("zero", "signal")
Progress = Callable[[str, "float | None"], None]


@dataclass
class Request:
    """What the user asked for; the keyword arguments of ``compile_model`` and ``inspect_model``."""

    target: str = "host"
    hop: int | Sequence[int] | None = None
    rate: float | Mapping[str, float] | None = None
    align: bool = False
    time_axis: Mapping[str, int] | None = None
    window: int | None = None
    mode: str | Mapping[str, str] | Sequence[str] = "exact"
    max_frames: int | None = None
    calibration: Calibration | None = None
    reuse_threshold: float = 0.05
    padding: str = "zero"
    kv: str | None = None
    state: Mapping[str, str] | None = None
    static: Sequence[str] = ()
    bind: Mapping[str, Any] | None = None
    shape: Mapping[str, Sequence[int]] | None = None
    weights: str | None = None
    activations: str | None = None
    expert_bits: float | str | None = None
    sparse: str | None = None
    backend: str | None = None
    tuning: str | Path | None = None
    tokenizer: str | None = None
    progress: Progress | None = None
    window_mode: str = field(init=False, default="exact")
    modes: dict[str, str] = field(init=False, default_factory=dict)
    rates: dict[str, float] = field(init=False, default_factory=dict)
    tick_rate: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.kv is not None:
            parse_kv(self.kv)
        for name in ("window", "max_frames"):
            if isinstance(value := getattr(self, name), np.integer):
                setattr(self, name, int(value))
        if self.max_frames is not None and not (isinstance(self.max_frames, Integral) and self.max_frames >= 1):
            raise InputError(f"max_frames {self.max_frames} is not a number of frames; give 1 or more.")
        named = [self.mode] if isinstance(self.mode, str) else self.mode
        if isinstance(named, Mapping):
            self.window_mode, self.modes = "exact", parse_modes(named)
        else:
            of_windows = [m for m in named if "=" not in m]
            for word in of_windows:
                if word not in WINDOW_MODES:
                    parse_modes(word)
            self.window_mode = of_windows[-1] if of_windows else "exact"
            self.modes = parse_modes([m for m in named if "=" in m])
        bits = (
            self.expert_bits
            if self.expert_bits is None or isinstance(self.expert_bits, str)
            else (f"{self.expert_bits:g}")
        )
        for name, value in (("weights", self.weights), ("activations", self.activations), ("experts", bits)):
            if value is not None:
                self.modes = parse_modes([*(f"{k}={v}" for k, v in self.modes.items()), f"{name}={value}"])
        if "experts" in self.modes and self.calibration is None:
            raise InputError(
                "bits of experts go by how a recording uses them; give one that is like what the model will read, with "
                "--calibration."
            )
        if self.sparse is not None and self.sparse != "exact" and not self.sparse.startswith("predicted="):
            raise InputError(f"sparse='{self.sparse}' is not understood; write exact or predicted=FILE.")
        if not 0 <= self.reuse_threshold < np.inf:
            raise InputError(f"reuse_threshold {self.reuse_threshold} is no deviation; give 0 or more, such as 0.05.")
        if self.window_mode == "reuse" and self.window is None:
            raise InputError("the mode 'reuse' is about windows; give a window too.")
        if self.padding not in PADDINGS:
            raise InputError(f"there is no padding '{self.padding}'; use one of {', '.join(PADDINGS)}.")
        if self.padding == "signal" and self.window_mode != "reuse":
            raise InputError("signal padding is for windows that reuse what they share; give mode=reuse and a window.")
        for what, value in [("hop", h) for h in self.hops] + [("window", self.window)]:
            if value is not None and not (isinstance(value, Integral) and 1 <= value <= MOST_FRAMES):
                raise InputError(f"{what} {value} is not a number of frames; give 1 to {MOST_FRAMES}.")
        self.set_rate(self.rate)
        if self.backend not in (None, *BACKENDS):
            raise InputError(f"there is no backend '{self.backend}'; use one of {', '.join(BACKENDS)}.")

    def set_rate(self, rate: float | Mapping[str, float] | None) -> None:
        """Take one rate, or those of inputs by name; figures in seconds are then of their ticks."""
        if isinstance(rate, Mapping):
            self.rates = dict(rate)
            self.tick_rate = float(ticks(self.rates)[1]) if rate else None
        elif rate is not None and not 0 < rate < np.inf:
            raise InputError(f"rate {rate} is not a number of frames a second; give one above 0.")
        else:
            self.tick_rate = rate

    @property
    def hops(self) -> list[int]:
        """Every hop asked for."""
        if self.hop is None:
            return []
        several = not isinstance(self.hop, str) and isinstance(self.hop, Iterable)
        given: list[Any] = list(self.hop) if several else [self.hop]  # type: ignore[arg-type]
        return [int(h) if isinstance(h, Integral) else h for h in given]

    @property
    def most_frames(self) -> int | None:
        """The largest hop asked for."""
        return max(self.hops, default=None)

    def say(self, stage: str, fraction: float | None = None) -> None:
        if self.progress:
            self.progress(stage, fraction)
