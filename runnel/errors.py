"""Every error that runnel raises on purpose. Each message says what, what was got, what was needed, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class Reason:
    """Why one node cannot stream: its name, its op, the reason, and what to do about it."""

    node: str
    op: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.op} '{self.node}': {self.reason}; {self.remedy}"


class Refused(InputError):
    """The model does not stream exactly. ``reasons`` has one entry for each op that stands in the way."""

    def __init__(self, reasons: Sequence[Reason]) -> None:
        self.reasons = tuple(reasons)
        count = f"{len(self.reasons)} ops do" if len(self.reasons) != 1 else "1 op does"
        super().__init__(f"{count} not stream: " + " | ".join(str(r) for r in self.reasons))
