"""What the raw rows say: ratios to the best peer, to our own other forms and to the roofline, and which are reached."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from runnel.tools.benchmark.harness import OURS, OURS_FROM_PYTHON, Entry
from runnel.tools.benchmark.roofline import Roofline

WINDOW = 1.5  # window mode may take this many times its share of a window's multiply-adds
FROM_PYTHON = 3e-6  # seconds that a push of a stream from Python may take more than from C
SHORT = 1e-4  # seconds of a step below which that can be told from noise


@dataclass(frozen=True)
class Goal:
    """A ratio to reach. what: ours to whose."""

    what: str
    ratio: float
    limit: float

    @property
    def reached(self) -> bool:
        return self.ratio <= self.limit


@dataclass
class Figures:
    """Of one row. ours, from_python, roofline, worst: seconds of a step. spread: the least and greatest ratio. least:
    what the roofline is of our step that this one is beside, for each stream."""

    name: str
    entries: list[Entry]
    fault: str = ""
    ours: float | None = None
    from_python: float | None = None
    roofline: float | None = None
    least: float | None = None
    best: Entry | None = None
    ratio: float | None = None
    spread: tuple[float, float] = (0.0, 0.0)
    goals: tuple[Goal, ...] = ()


def ratios(ours: Entry, other: Entry) -> tuple[float, float, float]:
    """Median, least and greatest of the ratios of the same round: how many times ``other``'s step ours takes."""
    pairs = sorted(mine / theirs for mine, theirs in zip(ours.rounds, other.rounds))
    return median(pairs), pairs[0], pairs[-1]


def best_peer(entries: list[Entry]) -> Entry | None:
    """The fastest of the others that are right."""
    others = [e for e in entries if e.package and e.rounds]
    return min(others, key=lambda e: median(e.rounds), default=None)


def own_step(row: dict[str, Any]) -> float | None:
    """Our step from C."""
    return next((Entry(**e).step for e in row.get("entries", ()) if e["name"] == OURS), None)


def figures(row: dict[str, Any], rows: list[dict[str, Any]], top: Roofline) -> Figures:
    """Of a row among all rows of a run."""
    entries = [Entry(**e) for e in row.get("entries", ())]
    found = Figures(row["name"], entries, row.get("fault", ""))
    by_name = {e.name: e for e in entries}
    ours, python = by_name.get(OURS), by_name.get(OURS_FROM_PYTHON)
    if ours is None or ours.step is None:
        return found
    found.ours, found.best = ours.step, best_peer(entries)
    works = [row, *([row["done"]] if row.get("done") else [])]
    found.roofline = min(top.seconds(work["macs"], work["weights_bytes"], row["codes"]) for work in works)
    goals: list[Goal] = []
    if found.best is not None:
        found.ratio, *ends = ratios(ours, found.best)
        found.spread = ends[0], ends[1]
        limit = row["target"]
        if limit is None and row["kind"] == "window":
            limit = WINDOW * row["macs"] / row["macs_of_window"]
        if limit is not None:
            goals.append(Goal("best peer", found.ratio, limit))
    other = next((own_step(r) for r in rows if r["name"] == row["of"]), None)
    if row["own_target"] and other:
        goals.append(Goal(f"our {row['of']}", ours.step / row["lanes"] / other, row["own_target"]))
        found.least = found.roofline / row["lanes"] / other
    if python is not None and python.step is not None:
        found.from_python = python.step
        if ours.step < SHORT:
            goals.append(Goal("3 µs of Python", (python.step - ours.step) / FROM_PYTHON / row["lanes"], 1.0))
    found.goals = tuple(goals)
    return found
