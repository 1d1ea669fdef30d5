"""A tensor of window mode: columns of time, most of them shared by windows, the edges made anew for each window."""

from __future__ import annotations

from dataclasses import dataclass

from runnel.compiler.streaming.ir import Stream


@dataclass(eq=False)
class Columns:
    """A tensor that has ``frames`` columns in every window, counted from the window's start.

    Column c of window i is frame ``hop·i + offset + spacing·c`` of ``stream``, whatever the window, for left_columns <=
    c < frames - right_columns. The columns before and after touch the window's edges, where padding is, and belong to
    one window: they are the stacked tensors ``left`` and ``right``.
    """

    stream: Stream
    frames: int
    offset: int
    hop: int
    spacing: int
    left: Stream | None = None
    right: Stream | None = None

    @property
    def axis(self) -> int:
        return self.stream.axis

    @property
    def left_columns(self) -> int:
        return 0 if self.left is None else int(self.left.shape[self.axis] or 0)

    @property
    def right_columns(self) -> int:
        return 0 if self.right is None else int(self.right.shape[self.axis] or 0)

    @property
    def inner(self) -> tuple[int, int]:
        """The first shared column and the first one after them."""
        return self.left_columns, self.frames - self.right_columns

    def shape(self, columns: int | None) -> tuple[int | None, ...]:
        """The tensor's shape with so many columns."""
        return tuple(columns if d is None else d for d in self.stream.shape)
