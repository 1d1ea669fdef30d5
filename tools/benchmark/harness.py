"""Opens every contender for a case, lets those that are right take turns, and keeps what each turn took."""

from __future__ import annotations

import json
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
    """rounds: turns of each contender. seconds: of a turn."""

    rounds: int = 9
    seconds: float = 0.05


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
    """A worker and the lines that go to and fro. ask raises Died when it does not answer."""

    class Died(Exception):
        pass

    def __init__(self, module: str, folder: str) -> None:
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


def compete(case: Case, settings: Settings, modules: Iterable[str] = MODULES) -> list[Entry]:
    """Every contender's verdict, and the turns of those that are right."""
    entries: list[Entry] = []
    processes: dict[str, Process] = {}
    ready: list[tuple[Entry, str]] = []
    try:
        for module, listed in contenders(modules).items():
            for contender in listed:
                found = installed(contender.package)
                entry = Entry(contender.name, contender.package, found or "")
                entries.append(entry)
                if found is None:
                    entry.verdict, entry.reason = "absent", f"pip install {contender.package}"
                    continue
                try:
                    if module not in processes:
                        processes[module] = Process(module, case.folder)
                    answer = processes[module].ask(do="open", name=contender.name)
                except Process.Died as died:
                    answer = {"verdict": "cannot", "reason": str(died)}
                    ready = [(e, m) for e, m in ready if m != module]
                    processes.pop(module).close()
                entry.verdict, entry.reason = answer["verdict"], answer.get("reason", "")
                entry.error = answer.get("error")
                if entry.verdict == "right":
                    ready.append((entry, module))
        for _ in range(settings.rounds):
            for entry, module in ready:
                blocks = processes[module].ask(do="turn", name=entry.name, seconds=settings.seconds)["blocks"]
                entry.rounds.append(median(blocks))
        if case.period > 1 and ready and ready[0][0].name == OURS:
            asked = {"name": OURS, "period": case.period, "rounds": PHASES}
            ready[0][0].phases = processes[ready[0][1]].ask(do="phases", **asked)["phases"]
    finally:
        for process in processes.values():
            process.close()
    return entries
