"""What programs run on: threads that share a step, none unless asked for."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from runnel.errors import InputError, RunnelError

if TYPE_CHECKING:
    from runnel.runtime.paging import Budget
    from runnel.runtime.program import Program

MOST_WORKERS = 32


class Runtime:
    """Threads that programs share. workers: how many work on a step, the caller's thread among them.

    With one, none is started. Outputs do not depend on their number. They pay for large steps only: kernels that are
    too small to share, as the compiler judged, run on the caller's thread; a batch is shared by lanes. One step uses
    them at a time. They sleep between steps and end with ``close``, or with the last program that uses them. Raises
    InputError for a number outside 1 to 32.

    ram: bytes (or "256M", "auto") that programs may use together, with ``streams`` streams each; what of their weights
    does not fit passes through memory (docs/memory.md). None: all weights are mapped. io: how they are read, "auto",
    "io_uring", "threads" (``io_threads`` of them) or "plain". patience: seconds that a read may take, None for any
    time. slow: what happens then, "stop" (the push fails) or "warn" (it goes on, with one SlowStorage warning).
    experts: what leaves memory for an expert that was chosen and is not there, "lru", "lfu", "cost", "predict", or
    "none" to keep none; experts_ahead: whether experts are read before they are
    chosen, "on", "off", or "auto" where that pays.
    """

    def __init__(
        self, workers: int = 1, ram: int | str | None = None, io: str = "auto", io_threads: int = 0, streams: int = 1,
        patience: float | None = None, slow: str = "stop", experts: str = "cost", experts_ahead: str = "auto",
    ) -> None:  # fmt: skip
        self.budget: Budget | None = None
        if ram is not None:
            from runnel.runtime.paging import AHEAD, KEPT, SLOW, WAYS, Budget, SharedBudget, parse_ram

            if io not in WAYS:
                raise InputError(f"there is no way of reading '{io}'; use one of {', '.join(WAYS)}.")
            if not 0 <= io_threads <= MOST_WORKERS or (io == "threads" and not io_threads):
                raise InputError(f"reads run on 1 to {MOST_WORKERS} threads, not {io_threads}; give io_threads.")
            if streams < 0 or (patience is not None and not patience > 0):
                raise InputError("streams are 0 or more, and patience is more than 0 seconds.")
            if slow not in SLOW or (slow == "warn" and patience is None):
                raise InputError("slow is 'stop', or 'warn' with a patience in seconds; give one of these.")
            if experts not in KEPT:
                raise InputError(f"there is no way of keeping experts '{experts}'; use one of {', '.join(KEPT)}.")
            count = parse_ram(ram)
            if experts_ahead not in AHEAD:
                raise InputError(f"experts_ahead is one of {', '.join(AHEAD)}, not '{experts_ahead}'.")
            told = (io, io_threads, streams, patience, slow, SharedBudget(count), experts, experts_ahead)
            self.budget = Budget(count, *told)
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= MOST_WORKERS:
            raise InputError(f"a runtime has 1 to {MOST_WORKERS} workers, not {workers!r}.")
        self.workers = workers
        self._handle = ctypes.c_void_p()
        if workers > 1:
            from runnel.runtime import native

            code = native.library().rn_workers_open(workers, ctypes.byref(self._handle))
            if code != native.OK:
                raise RunnelError(f"the system does not give {workers - 1} threads: {native.message(code)}.")

    @property
    def handle(self) -> ctypes.c_void_p:
        """What the core is given; null for one worker. Raises RunnelError after ``close``."""
        if self.workers > 1 and not self._handle:
            raise RunnelError("the runtime is closed; open another one, and load the program with it.")
        return self._handle

    def load(self, path: str | os.PathLike[str], poison: bool = False, priority: int = 0) -> Program:
        """``runnel.load`` on the native backend with these workers and this memory.

        priority: of the program where several share ``ram``: one with a higher number takes what it can use from those
        with lower ones when it runs, and from those with the same number when they rest.
        """
        from runnel.runtime.program import load

        return load(path, poison=poison, runtime=self, priority=priority)

    def close(self) -> None:
        """End the threads. No program that was loaded with them may be stepping, nor be stepped again."""
        if self._handle:
            from runnel.runtime import native

            native.library().rn_workers_close(self._handle)
            self._handle = ctypes.c_void_p()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self.close()
