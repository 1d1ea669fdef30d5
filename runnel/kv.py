"""What caches of keys and values keep, as people write it: ``sink=4,window=512,keys=int8`` (docs/kv.md)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from runnel.errors import InputError

POLICIES = ("full", "window", "heavy", "scissorhands", "retain", "snap", "merge", "external", "pools")
"""In the order of a plan's numbers."""
POSITIONS = ("absolute", "contiguous")
TOKEN_CLASSES = ("text", "system", "vision", "audio")
STORAGE = {"float32": 32, "float16": 16, "int8": 8, "int4": 4}
MOST = 1 << 24
PARAMETERS = ("slots", "sink", "window", "heavy", "observe", "spare", "system", "vision", "audio")
"""In the order of a stream's choice."""
_NUMBERS = {
    "full": "slots", "external": "slots", "sink": "sink", "window": "window", "heavy": "heavy", "scissorhands": "heavy",
    "budget": "heavy", "snap": "heavy", "merge": "heavy", "observe": "observe", "spare": "spare",
    "system": "system", "vision": "vision", "audio": "audio",
}  # fmt: skip
_RANKED = ("heavy", "scissorhands", "retain", "snap", "merge")
_OBSERVED = 16
"""Queries that rank frames where nothing else is said (SnapKV)."""
_EXAMPLE = "write for example full, window=512 or sink=4,window=512"


@dataclass(frozen=True)
class KvSpec:
    """policy: one of POLICIES. positions: "absolute", as in the model, or "contiguous", counted among what is kept;
    None: not said.

    slots: frames that heads hold which keep everything, 0: as many as a stream may have. sink: first frames that stay.
    window: latest frames that stay. heavy: frames that stay for their rank. observe: queries that rank frames. spare:
    frames that a stream can go back. system, vision, audio: latest frames of these classes that stay. keys, values:
    bits of a stored element; 0: not said. heads: for each layer and KV head, 1 where it keeps everything, 0 as the
    policy says, else its slots at most; None: all as the policy says. retain: the model's output that frames are ranked
    by.
    """

    policy: str = "full"
    positions: str | None = None
    slots: int = 0
    sink: int = 0
    window: int = 0
    heavy: int = 0
    observe: int = 0
    spare: int = 0
    system: int = 0
    vision: int = 0
    audio: int = 0
    keys: int = 0
    values: int = 0
    heads: tuple[tuple[int, ...], ...] | None = None
    retain: str = ""

    @property
    def params(self) -> list[int]:
        """The numbers in the order of PARAMETERS."""
        return [getattr(self, name) for name in PARAMETERS]

    def most(self, head: int) -> int:
        """The most slots of a head, which is as in ``heads``."""
        if head == 1 or self.policy in ("full", "external"):
            return self.slots
        every = self.sink + self.window + self.heavy + self.system + self.vision + self.audio
        return min(every, head) if head else every

    def __str__(self) -> str:
        name = {"full": "full", "external": "external", "retain": "budget"}.get(self.policy, self.policy)
        parts = [f"retain={self.retain}"] if self.retain else []
        if self.policy in ("full", "external"):
            parts.append(f"{name}={self.slots}" if self.slots else name)
        elif self.policy not in ("window", "pools"):
            parts.append(f"{name}={self.heavy}")
        shown = [n for n in (*PARAMETERS[1:3], *PARAMETERS[4:]) if getattr(self, n)]
        parts += [f"{n}={getattr(self, n)}" for n in shown]
        parts += [f"positions={self.positions}"] if self.positions else []
        bits = {b: name for name, b in STORAGE.items()}
        return ",".join(parts + [f"{n}={bits[getattr(self, n)]}" for n in ("keys", "values") if getattr(self, n)])


def parse(text: str) -> KvSpec:
    """The meaning of a policy. Raises InputError, in one sentence, for what is none."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (x.strip() for x in part.partition("="))
        if name in found:
            raise InputError(f"kv='{text}' says {name} twice; say it once.")
        if not name or (not equals and name != "full"):
            raise InputError(f"kv='{text}' has the part '{part.strip()}', which is no name=value; {_EXAMPLE}.")
        found[name] = value
    known = {*_NUMBERS, "positions", "keys", "values", "heads", "budgets", "retain"}
    if odd := [name for name in found if name not in known]:
        raise InputError(f"kv='{text}' names '{odd[0]}', which caches do not know; {_EXAMPLE}.")
    given = [(name, field) for name, field in _NUMBERS.items() if name in found]
    numbers: dict[str, Any] = {field: _number(text, name, found[name]) for name, field in given}
    spec = KvSpec(
        _policy(text, found),
        _one_of(text, found, "positions", POSITIONS),
        keys=STORAGE[_one_of(text, found, "keys", STORAGE) or "float32"] if "keys" in found else 0,
        values=STORAGE[_one_of(text, found, "values", STORAGE) or "float32"] if "values" in found else 0,
        retain=found.get("retain", ""),
    )
    spec = _checked(text, found, replace(spec, **numbers))
    if "heads" in found:
        if spec.policy == "full" or not spec.slots:
            raise InputError(
                f"kv='{text}' has a table of heads; say what its two kinds of heads keep, as in "
                "heads=table.tsv,full=4096,sink=16,window=64."
            )
        spec = replace(spec, heads=read_heads(found["heads"], False))
    if "budgets" in found:
        if "heads" in found or spec.policy in ("full", "external", "pools"):
            raise InputError(
                f"kv='{text}' has budgets a head, which go with a window or a rank and with no other table."
            )
        heads = read_heads(found["budgets"], True)
        least = spec.sink + 1 + (spec.window if spec.policy in _RANKED else 0)
        if min(min(row) for row in heads) < max(least, 2):
            raise InputError(f"kv='{text}' has a head with fewer slots than {max(least, 2)}, what its policy needs.")
        spec = replace(spec, heads=heads)
    return spec


def _policy(text: str, found: dict[str, str]) -> str:
    named = [p for p in (*_RANKED, "external") if p in found]
    whole = ["full"] if "full" in found and "heads" not in found else []
    if len(named + whole) > 1 or (whole and "window" in found):
        both = (named + whole + ["window"])[:2]
        raise InputError(f"kv='{text}' is {both[0]} and {both[1]} at once; choose one policy.")
    pools = [c for c in TOKEN_CLASSES[1:] if c in found]
    if pools and (named or whole):
        raise InputError(
            f"kv='{text}' has a pool for {pools[0]} tokens, which goes with a window; leave {named[0]} out."
        )
    return named[0] if named else "pools" if pools else "window" if "window" in found else "full"


def _checked(text: str, found: dict[str, str], spec: KvSpec) -> KvSpec:
    """The spec with what it leaves open. Raises InputError where its numbers do not go together."""
    policy = spec.policy
    if "sink" in found and policy in ("full", "external"):
        raise InputError(f"kv='{text}' keeps sinks and no window; add the latest tokens that stay, as in window=512.")
    if policy == "external" and spec.spare:
        raise InputError(f"kv='{text}' leaves slots to your program and cannot go back; leave spare out.")
    if policy == "external" and not spec.slots:
        raise InputError(f"kv='{text}' has no slots; say how many, as in external=512.")
    if policy in ("full", "external"):
        return spec
    if spec.window < 1:
        raise InputError(f"kv='{text}' has no room for the token itself; make the window 1 or more.")
    if policy in _RANKED and spec.heavy < 1:
        name = "budget" if policy == "retain" else policy
        raise InputError(f"kv='{text}' keeps no tokens for their rank; give {name} 1 or more, or leave it out.")
    if spec.spare and policy in ("snap", "merge"):
        raise InputError(f"kv='{text}' changes many slots at once and cannot go back; leave spare out.")
    if policy == "merge" and not {spec.keys, spec.values} <= {0, 32}:
        raise InputError(f"kv='{text}' would round what it merges at every merge; leave keys and values at float32.")
    if "observe" in found and policy not in ("scissorhands", "snap"):
        raise InputError(f"kv='{text}' observes queries, which {policy} does not; leave observe out.")
    if policy == "scissorhands":
        return replace(spec, observe=spec.observe or spec.window)
    if policy == "snap":
        if spec.window < 2:
            raise InputError(f"kv='{text}' has a window too small to rank tokens by it; make it 2 or more.")
        observe = spec.observe or min(_OBSERVED, spec.window // 2)
        if observe >= spec.window:
            raise InputError(f"kv='{text}' ranks tokens by {observe} queries and more than those must fit its window.")
        return replace(spec, observe=observe)
    return spec


def _one_of(text: str, found: dict[str, str], name: str, choices: Iterable[str]) -> str | None:
    value = found.get(name)
    if value is not None and value not in choices:
        raise InputError(f"kv='{text}' has {name}={value}; use one of {', '.join(choices)}.")
    return value


def _number(text: str, name: str, value: str) -> int:
    if name == "full" and not value:
        return 0
    if not (value.isascii() and value.isdigit()) or int(value) > MOST:
        raise InputError(f"kv='{text}' has {name}={value}; give a whole number of tokens up to 2^24.")
    return int(value)


def read_heads(path: str, budgets: bool) -> tuple[tuple[int, ...], ...]:
    """A table of heads: a line a layer, a column a KV head. Values from 0.5 on for heads that keep everything
    (DuoAttention's form), or ``budgets``: slots of each. Raises InputError."""
    try:
        lines = [line.split() for line in Path(path).read_text("utf-8").splitlines() if line.strip()]
        rows = [tuple(int(x) if budgets else int(float(x) >= 0.5) for x in line) for line in lines]
    except (OSError, ValueError) as error:
        raise InputError(f"the table of heads '{path}' cannot be read ({error}); give lines of numbers.") from None
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        raise InputError(f"the table of heads '{path}' has lines of unlike length; give a number a KV head in each.")
    return tuple(rows)


def chosen(text: str, compiled: KvSpec) -> list[int]:
    """The words of a stream's choice within what was compiled. Raises InputError."""
    spec = parse(text)
    if spec.policy != compiled.policy:
        raise InputError(
            f"kv='{text}' is another policy than the program's, which was compiled with kv='{compiled}'; choose its "
            "numbers within these, or compile again."
        )
    for field in fields(KvSpec):
        name = field.name
        asked, most = getattr(spec, name), getattr(compiled, name)
        if name in ("positions", "keys", "values") and asked and asked != most:
            raise InputError(f"kv='{text}' has other {name} than the program, compiled with kv='{compiled}'.")
        if name == "observe":
            continue
        if name in PARAMETERS and asked > most:
            raise InputError(
                f"kv='{text}' asks for more than the program was compiled with, kv='{compiled}'; compile it again "
                f"with {name}={asked}."
            )
    if spec.observe > compiled.observe:
        spec = replace(spec, observe=compiled.observe)
    return [p or (most if name == "slots" else 0) for name, p, most in zip(PARAMETERS, spec.params, compiled.params)]
