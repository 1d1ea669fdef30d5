"""Every error that runnel raises on purpose. Each message says what, what was got, what was needed, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class RunnelError(Exception):
    """Base of runnel's errors; ``exit_code`` is what the command line returns."""

    exit_code = 1


class InternalError(RunnelError):
    """A fault of ours."""


class InputError(RunnelError):
    """The user's input cannot be used; the message says what to do."""

    exit_code = 2


class BundleError(InputError):
    """A bundle is broken, altered, too new or for another machine."""


class StreamError(InputError):
    """A stream was used in a way that its contract does not allow."""


class SlowStorage(UserWarning):
    """Weights come slower than patience allows, and the program goes on, as it was told to."""


@dataclass(frozen=True)
class Reason:
    """Why one node cannot stream: its name, its op, the reason, what to do about it, and the named modes (such as
    "norm=running") that would run it, with a result that differs from the offline model's."""

    node: str
    op: str
    reason: str
    remedy: str
    modes: tuple[str, ...] = ()

    def __str__(self) -> str:
        modes = " or ".join(f"--mode {mode}" for mode in self.modes)
        would = f"; {modes} would run it, with its deviation measured" if modes else ""
        return f"{self.op} '{self.node}': {self.reason}; {self.remedy}{would}"


class Refused(InputError):
    """The model does not stream exactly. ``reasons`` has one entry for each op that stands in the way.

    decided: {"exact", "refused", "undecided" (behind a refused one) or a named mode: {op: nodes}}.
    """

    def __init__(self, reasons: Sequence[Reason], decided: Mapping[str, Mapping[str, int]] | None = None) -> None:
        self.reasons, self.decided = tuple(reasons), dict(decided or {})
        count = f"{len(self.reasons)} ops do" if len(self.reasons) != 1 else "1 op does"
        super().__init__(f"{count} not stream: " + " | ".join(str(r) for r in self.reasons))
