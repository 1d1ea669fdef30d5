"""Progress on a terminal and nothing in a pipe; sizes and times in words."""

from __future__ import annotations

import io

from runnel.tools import terminal


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_drawn_on_a_terminal_and_wiped() -> None:
    page = Tty()
    progress = terminal.Progress(page)
    progress("reading")
    progress("kernels", 0.5)
    progress.close()
    assert "kernels  [############............]  50 %" in page.getvalue()
    assert page.getvalue().endswith("\r\x1b[K")


def test_progress_is_silent_in_a_pipe() -> None:
    page = io.StringIO()
    progress = terminal.Progress(page)
    progress("kernels", 0.5)
    progress.close()
    assert page.getvalue() == ""


def test_words() -> None:
    assert [terminal.size(n) for n in (0, 1023, 1024, 2.5 * 2**20, 3 * 2**30)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "2.5 MiB", "3.00 GiB",
    ]  # fmt: skip
    assert [terminal.duration(s) for s in (3.3e-6, 1.5e-3, 2)] == ["3.3 µs", "1.50 ms", "2.00 s"]
    assert terminal.frames(1, None) == "1 frame"
    assert terminal.frames(160, 16000) == "160 frames (10.0 ms)"
    assert terminal.table(["a", "b"], [["long", "1"], ["x", "22"]]) == "a      b\nlong   1\nx     22"
