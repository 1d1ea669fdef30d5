"""Opens every contender for a case, lets those that are right take turns, and keeps what each turn took."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any

from runnel.tools.benchmark.case import Case
from runnel.tools.benchmark.contenders.base import Contender

MODULES = ("native", "ort", "tract", "litert", "ncnn", "mnn", "tvm", "continual")
OURS, OURS_FROM_PYTHON = "runnel", "runnel, Python"
PHASES = 50  # times that a net with strides goes through all of its phases


@dataclass(frozen=True)
class Settings:
    """rounds: turns of each contender. seconds: of a turn. patience: seconds that getting ready may take."""

    rounds: int = 9
    seconds: float = 0.05
    patience: float = 900


@dataclass
class Entry:
    """A contender in a row. verdict: right, wrong, cannot, absent. rounds: the median step of each turn, in seconds.

    phases: what each push of one frame takes, where they differ, as a net with strides goes through them.
    """

    name: str
    package: str
    version: str = ""
    verdict: str = ""
    reason: str = ""
    error: float | None = None
    rounds: list[float] = field(default_factory=list)
    phases: list[float] = field(default_factory=list)

    @property
    def step(self) -> float | None:
        return median(self.rounds) if self.rounds else None


class Process:
    """A worker and the lines that go to and fro. ask raises Died when it does not answer in time."""

    class Died(Exception):
        pass

    def __init__(self, module: str, folder: str, patience: float) -> None:
        self.patience = patience
        line = [sys.executable, "-m", "runnel.tools.benchmark.worker", module, folder]
        self.process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **what: Any) -> dict[str, Any]:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(json.dumps(what) + "\n")
            stdin.flush()
            if not select.select([stdout], [], [], self.patience)[0]:
                self.process.kill()
                raise Process.Died(f"does not answer for {self.patience:.0f} s")
            answer = stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise Process.Died(f"ends the process (code {self.process.wait(10)})")
        return dict(json.loads(answer))

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def installed(package: str) -> str | None:
    """The version of a package, None where it is missing; that of runnel for no package."""
    try:
        return version(package or "runnel")
    except PackageNotFoundError:
        return None


def contenders(modules: Iterable[str] = MODULES) -> dict[str, list[Contender]]:
    """By module: a name of this package's, or of any other with dots."""
    return {m: import_module(m if "." in m else f"runnel.tools.benchmark.contenders.{m}").CONTENDERS for m in modules}


class Competition:
    """The contenders of a case, their processes, and those of them that are right."""

    def __init__(self, case: Case, settings: Settings) -> None:
        self.case, self.settings = case, settings
        self.processes: dict[str, Process] = {}
        self.ready: list[tuple[Entry, str]] = []

    def ask(self, module: str, **what: Any) -> dict[str, Any]:
        if module not in self.processes:
            self.processes[module] = Process(module, self.case.folder, self.settings.patience)
        return self.processes[module].ask(**what)

    def enter(self, entry: Entry, module: str) -> None:
        """Let it get ready, and keep its verdict."""
        try:
            answer = self.ask(module, do="open", name=entry.name)
        except Process.Died as died:
            answer = {"verdict": "cannot", "reason": str(died)}
            self.lose(module)
        entry.verdict, entry.reason, entry.error = answer["verdict"], answer.get("reason", ""), answer.get("error")
        if entry.verdict == "right":
            self.ready.append((entry, module))

    def lose(self, module: str) -> None:
        """A process is gone: those that were ready in it enter again."""
        self.processes.pop(module).close()
        lost = [entry for entry, m in self.ready if m == module]
        self.ready = [(entry, m) for entry, m in self.ready if m != module]
        for entry in lost:
            self.enter(entry, module)

    def turn(self) -> None:
        """One round."""
        for entry, module in list(self.ready):
            try:
                answer = self.ask(module, do="turn", name=entry.name, seconds=self.settings.seconds)
            except Process.Died as died:
                entry.verdict, entry.reason, entry.rounds = "cannot", f"while it was timed: {died}", []
                self.ready.remove((entry, module))
                self.lose(module)
            else:
                entry.rounds.append(median(answer["blocks"]))

    def close(self) -> None:
        for process in self.processes.values():
            process.close()


def compete(case: Case, settings: Settings, modules: Iterable[str] = MODULES) -> list[Entry]:
    """Every contender's verdict, and the turns of those that are right."""
    entries: list[Entry] = []
    competition = Competition(case, settings)
    try:
        for module, listed in contenders(modules).items():
            for contender in listed:
                found = installed(contender.package)
                entry = Entry(contender.name, contender.package, found or "")
                entries.append(entry)
                if found is None:
                    entry.verdict, entry.reason = "absent", f"pip install {contender.package}"
                else:
                    competition.enter(entry, module)
        for _ in range(settings.rounds):
            competition.turn()
        if case.period > 1 and competition.ready and competition.ready[0][0].name == OURS:
            ours, module = competition.ready[0]
            ours.phases = competition.ask(module, do="phases", name=OURS, period=case.period, rounds=PHASES)["phases"]
    finally:
        competition.close()
    return entries
