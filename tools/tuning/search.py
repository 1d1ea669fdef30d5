"""Meets the products of a model and measures schedules for each of them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runnel.compiler.codegen.module import KernelModule, gathered
from runnel.compiler.codegen.tuning import Problem, Schedule, Tuning, candidates
from runnel.compiler.lowering.frame import Group
from runnel.tools.tuning.bench import Case, Session
from runnel.tools.tuning.log import Record

if TYPE_CHECKING:
    from runnel.compiler.codegen.context import Context
    from runnel.compiler.codegen.target import Target

Progress = Callable[[str, float | None], None]


class Recorder(KernelModule):
    """Compiles kernels as usual and keeps their groups."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self.groups: list[Group] = []

    def add(self, group: Group) -> Any:
        kernel = super().add(group)
        self.groups.append(group)
        return kernel


def met(target: Target, groups: Iterable[Group]) -> dict[Problem, tuple[Group, int]]:
    """The problems of groups, each with a kernel that has it: a group and a number of rows."""
    found: dict[Problem, tuple[Group, int]] = {}
    for group in groups:
        forms = [(group, rows) for rows in dict.fromkeys((1, *group.rows))]
        forms += [(gathered(group), group.apart)] if group.apart else []
        for form, rows in forms:
            tuning = Tuning()
            KernelModule(target, tuning).emit(form, rows)
            for problem in tuning.met:
                found.setdefault(problem, (form, rows))
    return found


def measured(
    target: Target, problem: Problem, group: Group, rows: int, schedules: Sequence[Schedule], session: Session
) -> list[float]:
    """Microseconds of a call of the group's kernel with each schedule of a problem."""
    with tempfile.TemporaryDirectory() as folder:
        with session.alone:
            module = KernelModule(target)
            cases = []
            for schedule in schedules:
                module.tuning = Tuning({problem: schedule})
                context: Context = module.emit(group, rows)
                function, args = context.finish()
                elements = (rows + 1) * max(group.out_row_pitch, 1) + _elements(group)
                cases.append(Case(module.symbol(function), args, rows, elements))
            library = session.link(module.lowered(), cases, Path(folder))
        return session.times(library, cases)


def _elements(group: Group) -> int:
    from runnel.compiler.lowering.frame import frame_elements

    return frame_elements(group.output.shape)


def search(
    target: Target, groups: Sequence[Group], session: Session, known: Sequence[Record], trials: int, progress: Progress
) -> list[Record]:
    """Records of all problems that ``known`` has none of. trials: the most schedules of each.

    All schedules of a problem are measured on one board; several boards measure several problems at once.
    """
    done = {record.problem for record in known if record.fits(target)}
    left = {p: form for p, form in met(target, groups).items() if p not in done}
    ready = itertools.count()

    def record(problem: Problem, group: Group, rows: int) -> Record:
        schedules = list(itertools.islice(candidates(target, problem), trials))
        trial = tuple(zip(schedules, measured(target, problem, group, rows, schedules, session), strict=True))
        progress(
            f"measured {problem.rows} x {problem.vectors} vectors, sums of {problem.depth}", next(ready) / len(left)
        )
        return Record(problem, target.cpu, target.features, session.where, trial)

    if session.boards == 1:
        return [record(problem, group, rows) for problem, (group, rows) in left.items()]
    with ThreadPoolExecutor(session.boards) as pool:
        waiting = [pool.submit(record, problem, group, rows) for problem, (group, rows) in left.items()]
        try:
            return [future.result() for future in waiting]
        finally:
            pool.shutdown(cancel_futures=True)
