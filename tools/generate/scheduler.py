"""Several texts at once on one thread: each turn decodes a token of every text and takes in one chunk of one prompt.

So a long prompt delays the others by one chunk a token, not by the whole of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runnel.errors import InputError
from runnel.tools.generate.options import Decoder
from runnel.tools.generate.sampling import Sampling
from runnel.tools.generate.session import Session, Text

Emit = Callable[[str, "str | None"], None]  # text, and why it ended: "stop", "length", "error: …", or None


@dataclass
class Job:
    """A text that is being made. emit is called on the scheduler's thread; once cancelled it ends at its next turn."""

    session: Session
    text: Text
    left: int
    endings: frozenset[int]
    emit: Emit
    cancelled: bool = False


class Scheduler:
    """Runs jobs until it is closed. most: texts at once; others wait their turn."""

    def __init__(self, decoder: Decoder, most: int) -> None:
        self._decoder, self._most = decoder, most
        self._new: deque[Job] = deque()
        self._jobs: list[Job] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, prompt: str, tokens: int, sampling: Sampling, stops: Sequence[str], emit: Emit) -> Job:
        """A text after ``prompt`` of up to ``tokens`` tokens. Raises InputError for a prompt that has no tokens."""
        session = self._decoder.session(sampling)
        session.prompt(self._decoder.tokenizer.encode(prompt))
        tokenizer = self._decoder.tokenizer
        job = Job(session, Text(tokenizer, stops), tokens, tokenizer.endings, emit)
        with self._wake:
            if self._closed:
                raise InputError("the server is closing; try again later.")
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
        filling = [job for job in self._jobs if job.session.waiting > 1 and not job.cancelled]
        ended = []
        for job in self._jobs:
            try:
                if job.cancelled or (job not in filling and self._step(job)):
                    ended.append(job)
            except InputError as error:
                job.emit("", f"error: {error}")
                ended.append(job)
        if filling:
            job = filling[0]
            try:
                job.session.prefill()
            except InputError as error:
                job.emit("", f"error: {error}")
                ended.append(job)
            self._jobs.remove(job)  # the next prompt's chunk is another text's
            self._jobs.append(job)
        self._jobs = [job for job in self._jobs if job not in ended]

    @staticmethod
    def _step(job: Job) -> bool:
        """One token; whether the text has ended."""
        token = job.session.next()
        job.left -= 1
        text = job.text.push(token)
        why = "stop" if token in job.endings or job.text.stopped else "length" if job.left <= 0 else None
        job.emit(text + (job.text.end() if why else ""), why)
        return why is not None
