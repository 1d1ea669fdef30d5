"""What code generation refuses, and what would be a fault of ours."""

from __future__ import annotations

from runnel.errors import InputError, InternalError


class Unsupported(InputError):
    """An op, as used here, has no kernel. ``op`` is its name in the vocabulary, ``reason`` says what is missing."""

    def __init__(self, op: str, reason: str) -> None:
        self.op = op
        self.reason = reason
        super().__init__(f"no kernel for {op}: {reason}")


class CodegenError(InternalError):
    """The compiler's output cannot be used: an import, a writable section, an unknown relocation."""
