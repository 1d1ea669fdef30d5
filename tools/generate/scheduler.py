"""Several texts at once on one thread: each turn decodes a token of every text and takes in one chunk of one prompt.

So a long prompt delays the others by one chunk a token, not by the whole of it.
"""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runnel.errors import RunnelError
from runnel.tools.generate.figures import Timing
from runnel.tools.generate.options import Decoder
from runnel.tools.generate.sampling import Sampling
from runnel.tools.generate.session import Session, Text

Emit = Callable[[str, "str | None"], None]  # text, and why it ended: "stop", "length", "error: …", or None
WAITING = 256
FAULT = "error: a fault of the server"


class Busy(RunnelError):
    """More texts wait than a scheduler lets wait."""


@dataclass
class Job:
    """A text that is to be made. emit is called on the scheduler's thread; once cancelled it ends at its next turn.
    session: None until its turn comes, so that those that wait have no cache."""

    prompt: list[int]
    sampling: Sampling
    text: Text
    left: int
    endings: frozenset[int]
    emit: Emit
    cancelled: bool = False
    session: Session | None = None

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens that went in, and that were made."""
        timing = self.session.timing if self.session else Timing()
        return timing.prompt_tokens, timing.decode.count


class Scheduler:
    """Runs jobs until it is closed. most: texts at once; up to ``waiting`` others wait their turn."""

    def __init__(self, decoder: Decoder, most: int, waiting: int = WAITING) -> None:
        self._decoder, self._most, self._waiting = decoder, most, waiting
        self._new: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(
        self, prompt: str | Sequence[int], tokens: int, sampling: Sampling, stops: Sequence[str], emit: Emit
    ) -> Job:
        """A text after ``prompt``, text or its tokens, of up to ``tokens`` tokens. Raises InputError for a prompt that
        the tokenizer cannot read, Busy where too many wait."""
        tokenizer = self._decoder.tokenizer
        words = tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        job = Job(words, sampling, Text(tokenizer, stops), tokens, tokenizer.endings, emit)
        with self._wake:
            if self._closed:
                raise Busy("the server is closing; try again later.")
            if len(self._new) >= self._waiting:
                raise Busy(f"{len(self._new)} texts wait already; try again later.")
            self._new.append(job)
            self._wake.notify()
        return job

    def close(self) -> None:
        """Ends all jobs."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._closed and not self._new and not self._jobs:
                    self._wake.wait()
                if self._closed:
                    break
                while self._new and len(self._jobs) < self._most:
                    self._jobs.append(self._new.popleft())
            self._turn()
        for job in [*self._jobs, *self._new]:
            job.emit("", "error: the server is closing")

    def _turn(self) -> None:
        ended = [job for job in self._jobs if self._ends(job, self._begin)]
        going = [job for job in self._jobs if job not in ended]
        filling = [job for job in going if job.session is not None and job.session.waiting > 1]
        ended += [job for job in going if job not in filling and self._ends(job, self._step)]
        if filling:
            job = filling[0]
            if self._ends(job, self._fill):
                ended.append(job)
            self._jobs.remove(job)  # the next prompt's chunk is another text's
            self._jobs.append(job)
        self._jobs = [job for job in self._jobs if job not in ended]

    @staticmethod
    def _ends(job: Job, run: Callable[[Job], bool]) -> bool:
        """Whether a text has ended after a part of its work, by itself or by what went wrong."""
        try:
            return job.cancelled or run(job)
        except Exception as error:  # what is wrong with one text is nothing to the others
            job.emit("", f"error: {error}" if isinstance(error, RunnelError) else FAULT)
            if not isinstance(error, RunnelError):
                traceback.print_exc()
            return True

    def _begin(self, job: Job) -> bool:
        if job.session is None:
            job.session = self._decoder.session(job.sampling)
            job.session.prompt(job.prompt)
        return False

    @staticmethod
    def _fill(job: Job) -> bool:
        assert job.session is not None
        job.session.prefill()
        return False

    @staticmethod
    def _step(job: Job) -> bool:
        """One token; whether the text has ended."""
        assert job.session is not None
        token = job.session.next()
        job.left -= 1
        text = job.text.push(token)
        why = "stop" if token in job.endings or job.text.stopped else "length" if job.left <= 0 else None
        job.emit(text + (job.text.end() if why else ""), why)
        return why is not None
