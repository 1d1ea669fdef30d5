"""Logs of measured schedules: JSON that compile reads again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runnel.errors import InputError
from runnel.files import replacing

if TYPE_CHECKING:
    from runnel.compiler.codegen.target import Target
    from runnel.compiler.codegen.tuning import Problem, Schedule, Tuning

SCHEMA = 1
NOISE = 0.97
"""Of the time by rule, below which another schedule is faster."""


@dataclass(frozen=True)
class Record:
    """One problem on one kind of processor. trials: (schedule, microseconds of a call), the one by rule first."""

    problem: Problem
    cpu: str
    features: tuple[str, ...]
    where: str
    trials: tuple[tuple[Schedule, float], ...]

    @property
    def best(self) -> tuple[Schedule, float]:
        """The fastest trial, or the one by rule where that is as fast but for noise."""
        fastest = min(self.trials, key=lambda trial: trial[1])
        return fastest if fastest[1] < NOISE * self.trials[0][1] else self.trials[0]

    @property
    def gain(self) -> float:
        """The time by rule divided by the best time."""
        return self.trials[0][1] / self.best[1]

    def fits(self, target: Target) -> bool:
        return (self.cpu, self.features) == (target.cpu, target.features)


def read(path: str | Path) -> list[Record]:
    """The records of a log. Raises InputError for a file that is none."""
    from runnel.compiler.codegen.tuning import Problem, Schedule

    try:
        data = json.loads(Path(path).read_text("utf-8"))
        if data["schema"] != SCHEMA:
            raise InputError(f"'{path}' is a log of schema {data['schema']}, this version reads {SCHEMA}; tune again.")
        return [
            Record(
                Problem(**row["problem"]), str(row["cpu"]), tuple(row["features"]), str(row["where"]),
                tuple((Schedule(**trial["schedule"]), float(trial["microseconds"])) for trial in row["trials"]),
            )
            for row in data["records"]
        ]  # fmt: skip
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}; check the path.") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"'{path}' is no log of runnel tune; make one with: runnel tune MODEL -o {path}") from None


def write(path: str | Path, records: Iterable[Record]) -> None:
    """Write a log, whole or not at all."""
    rows: list[dict[str, Any]] = [
        {
            "problem": asdict(r.problem), "cpu": r.cpu, "features": list(r.features), "where": r.where,
            "trials": [{"schedule": asdict(s), "microseconds": round(t, 4)} for s, t in r.trials],
        }
        for r in records
    ]  # fmt: skip
    with replacing(path) as file:
        file.write((json.dumps({"schema": SCHEMA, "records": rows}, indent=1) + "\n").encode())


def tuning(path: str | Path, target: Target) -> Tuning:
    """What a log says for a target; schedules that do not fit its registers are left out. Raises InputError."""
    from runnel.compiler.codegen.tuning import Tuning, candidates

    records = read(path)
    known = {r.problem: r.best[0] for r in records if r.trials and r.fits(target)}
    if records and not known:
        raise InputError(
            f"'{path}' was measured on {records[0].cpu}; the target is {target.cpu} or differs in features."
        )
    return Tuning({p: s for p, s in known.items() if s in candidates(target, p)})
