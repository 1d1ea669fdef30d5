"""Named modes: what a person allows a model that cannot stream exactly to compute instead.

``norm=running``, ``pool=cumulative``, ``attention=left:64,right:8``, ``rnn=lookahead:32``, ``position=wrap``,
``weights=int4``, ``activations=int8``, ``experts=4.5``. A mode that no node of the model needs changes nothing. What a
mode costs is measured and written into the bundle.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from runnel.errors import InputError

FORMS = {
    "norm": "running",
    "pool": "cumulative",
    "attention": "left:FRAMES,right:FRAMES",
    "rnn": "lookahead:FRAMES",
    "position": "wrap",
    "weights": "int8, int4, fp16, or int8:BLOCK, int4:BLOCK",
    "activations": "int8 or fp16",
    "experts": "2 to 16 bits a weight, such as 4.5, or 4.5:BLOCK",
}
"""Every named mode and what its value looks like; words in capitals stand for numbers of frames."""

PATTERNS = {
    "weights": r"fp16|int[48](:(16|32|64|128|256))?",
    "activations": "int8|fp16",
    "experts": r"(([2-9]|1[0-5])(\.\d{1,6})?|16(\.0)?)(:(16|32|64|128|256))?",
}
"""What the values of modes that are no counts of frames match."""

LEAST = {"lookahead": 1}
"""The fewest frames that a number may be, where it is not 0."""


def parse_modes(given: str | Mapping[str, str] | Iterable[str] | None) -> dict[str, str]:
    """{mode: value} from "norm=running", several of these, or a mapping. Raises InputError for an unknown one."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = [(str(k), str(v)) for k, v in given.items()]
    else:
        words = [given] if isinstance(given, str) else list(given)
        pairs = [(w.partition("=")[0], w.partition("=")[2]) for w in words]
    modes: dict[str, str] = {}
    for name, value in pairs:
        if name not in FORMS:
            known = ", ".join(f"{k}={v}" for k, v in FORMS.items())
            raise InputError(f"there is no mode '{name}'; modes are exact and reuse (of windows), {known}.")
        if modes.setdefault(name, value) != value:
            raise InputError(f"the mode '{name}' is given twice, as {modes[name]} and {value}; give it once.")
        _check(name, value)
    return modes


def numbers(value: str) -> dict[str, int]:
    """{"left": 64, "right": 8} from "left:64,right:8"."""
    return {word.partition(":")[0]: int(word.partition(":")[2]) for word in value.split(",")}


def _check(name: str, value: str) -> None:
    form = FORMS[name]
    if name in PATTERNS:
        if not re.fullmatch(PATTERNS[name], value):
            raise InputError(f"the mode {name}={value} is not understood; write {name}= and one of {form}.")
        return
    wanted = [w.partition(":")[0] for w in form.split(",")]
    if ":" not in form:
        fits = value == form
    else:
        words = [w.partition(":") for w in value.split(",")]
        fits = all(k in wanted and n.isascii() and n.isdigit() and len(n) < 8 for k, _, n in words)
        fits &= len({k for k, _, _ in words}) == len(words)
        fits = fits and all(int(n) >= LEAST.get(k, 0) for k, _, n in words)
    if not fits:
        raise InputError(f"the mode {name}={value} is not understood; write {name}={form}.")
