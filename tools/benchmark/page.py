"""Makes docs/performance.md and its plot of the rows of a run. What stands under "Notes" on the page is kept."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from runnel.tools.benchmark.figures import SHORT, Figures, figures, ratios
from runnel.tools.benchmark.harness import OURS, OURS_FROM_PYTHON
from runnel.tools.benchmark.roofline import Roofline

NOTES = "\n## Notes\n"
HOLES = {"wrong": "**wrong**", "cannot": "–", "absent": ""}


def top_of(machine: dict[str, Any]) -> Roofline:
    """The roofline as it was kept."""
    kept = machine["roofline"]
    return Roofline(kept["float32"], kept["int8"], {int(size): rate for size, rate in kept["bandwidth"].items()})


def micro(seconds: float | None) -> str:
    """Microseconds with three figures."""
    if seconds is None:
        return ""
    value = 1e6 * seconds
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def main_row(found: Figures, row: dict[str, Any]) -> list[str]:
    """Of the first table."""
    if found.ours is None:
        ours = next((e for e in found.entries if e.name == OURS), None)
        why = found.fault or (f"{ours.verdict} {ours.reason}" if ours is not None else "")
        return [found.name, why, *[""] * 9]
    more = "" if found.from_python is None else f"{1e6 * (found.from_python - found.ours):+.1f}"
    best = "" if found.best is None else f"{found.best.name}, {micro(found.best.step)}"
    ratio = "" if found.ratio is None else f"{found.ratio:.3f} [{found.spread[0]:.3f} … {found.spread[1]:.3f}]"
    goals = [g for g in found.goals if g.what == "best peer"]
    share = found.roofline / found.ours if found.roofline else 0
    return [
        found.name, f"{row['macs'] / 1e6:.3g}", f"{row['weights_bytes'] / 1e3:.0f}", micro(found.roofline),
        f"{100 * share:.0f} %", micro(found.ours), more if found.ours < SHORT else "", best, ratio,
        f"{goals[0].limit:.3f}" if goals else "", ("yes" if goals[0].reached else "**no**") if goals else "",
    ]  # fmt: skip


def peer_row(found: Figures, names: list[str]) -> list[str]:
    """Of the second table: each peer's step, and how much of it ours takes."""
    by_name = {e.name: e for e in found.entries}
    ours = by_name.get(OURS)
    cells = [found.name]
    for name in names:
        entry = by_name.get(name)
        if entry is None or entry.step is None:
            cells.append(HOLES.get(entry.verdict, "") if entry is not None else "")
        elif ours is None or not ours.rounds:
            cells.append(micro(entry.step))
        else:
            cells.append(f"{micro(entry.step)} ({ratios(ours, entry)[0]:.3g})")
    return cells


def own_rows(every: list[Figures], rows: list[dict[str, Any]]) -> list[list[str]]:
    """Of the third table: our step beside another of ours."""
    lines = []
    for found, row in zip(every, rows):
        for goal in found.goals:
            if goal.what.startswith("our "):
                each = "" if row["lanes"] == 1 else " for each stream"
                reached = "yes" if goal.reached else "**no**"
                lines.append([found.name, goal.what + each, f"{goal.ratio:.3f}", f"{goal.limit:.2f}", reached])
    return lines


def phase_rows(every: list[Figures]) -> list[list[str]]:
    """Of the fourth: pushes of one frame of nets with strides."""
    lines = []
    for found in every:
        phases = next((e.phases for e in found.entries if e.name == OURS), [])
        if phases:
            mean = sum(phases) / len(phases)
            worst = max(phases)
            lines.append([found.name, str(len(phases)), micro(mean), micro(worst), f"{worst / mean:.1f}"])
    return lines


def why(every: list[Figures]) -> list[str]:
    """What the roofline says of ratios that are not reached."""
    lines = []
    for found in every:
        for goal in found.goals:
            if not goal.reached and goal.what.startswith("our ") and found.least is not None and found.roofline:
                text = f"- **{found.name}** beside {goal.what}: {goal.ratio:.3f}, not {goal.limit:.2f}. "
                share = 100 * found.roofline / (found.ours or 1)
                text += (
                    f"The roofline is {found.least:.2f} of it for each stream, and the step at {share:.0f} % of that."
                )
                lines.append(text)
            if goal.reached or goal.what != "best peer" or found.best is None or not found.roofline or not found.ours:
                continue
            step = found.best.step or 0.0
            least, share = found.roofline / step, 100 * found.roofline / found.ours
            text = f"- **{found.name}**: {goal.ratio:.3f}, not {goal.limit:.3f}. "
            if least > goal.limit:
                text += (
                    f"The roofline itself is {least:.2f} of {found.best.name}'s step, so no step with these bytes and "
                )
                text += f"multiply-adds gets there; ours is at {share:.0f} % of the roofline."
            else:
                text += f"Our step is at {share:.0f} % of the roofline."
            lines.append(text)
    return lines


def reasons(every: list[Figures]) -> list[str]:
    """Why peers have no figure, by peer."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in every:
        for e in row.entries:
            if e.verdict == "wrong":
                text = f"wrong numbers, {e.error:.3g} times what is allowed"
            elif e.verdict in ("cannot", "absent"):
                text = e.reason.split("\n")[0][:140].replace("`", "'")
            else:
                continue
            found.setdefault(e.name, {}).setdefault(text, []).append(row.name)
    return [
        f"- **{name}**: " + "; ".join(f"{text} ({', '.join(rows)})" for text, rows in texts.items())
        for name, texts in found.items()
    ]


def peers(every: list[Figures]) -> list[str]:
    """The names of the others, in their order."""
    return list(dict.fromkeys(e.name for f in every for e in f.entries if e.name not in (OURS, OURS_FROM_PYTHON)))


def page(kept: dict[str, Any], notes: str, plot: str) -> str:
    """The page in Markdown."""
    rows, machine = kept["rows"], kept["machine"]
    top = top_of(machine)
    every = [figures(row, rows, top) for row in rows]
    names = list(
        dict.fromkeys(e.name for found in every for e in found.entries if e.name not in (OURS, OURS_FROM_PYTHON))
    )
    versions = {e.package: e.version for found in every for e in found.entries if e.package and e.version}
    sizes = {"32 KiB": 1 << 15, "512 KiB": 1 << 19, "2 MiB": 1 << 21, "64 MiB": 1 << 26}
    bandwidth = ", ".join(
        f"{name} {top.bandwidth[size] / 1e9:.0f}" for name, size in sizes.items() if size in top.bandwidth
    )
    head = [
        "workload",
        "10⁶ MACs",
        "weights kB",
        "roofline",
        "of it",
        "ours",
        "Python",
        "best peer",
        "ratio",
        "to reach",
        "",
    ]
    lines = [main_row(found, row) for found, row in zip(every, rows)]
    brought = ", ".join(f"{package} {number}" for package, number in versions.items())
    return f"""# Performance

`make bench` makes this page and its plot. Every runtime gets the same models, the same inputs, one thread and the same
core, and they take turns ({machine["settings"]["rounds"]} rounds). A runtime's numbers are first compared with the
offline model's; one that is wrong is not timed. Times are processor time in microseconds a step, medians. A ratio is
the median of the ratios of the same round, with the least and the greatest. Raw rows are in
[performance.json](performance.json); `make bench BENCH="--only tcn,gru"` measures some again and keeps the others.

This run: {machine["when"]}, {machine["cpu"]} ({machine["machine"]}), {brought}.
Measured in it, of one core: {top.float32 / 1e9:.0f} · 10⁹ multiply-adds a second in float32, {top.int8 / 1e9:.0f} · 10⁹
on codes of 8 bits, and bandwidth in GB/s: {bandwidth}. The roofline of a step is its multiply-adds at that peak or its
weights at the bandwidth of a block of their size, whichever takes longer; both as the model has them, or as our plan
has them where that is less (Fourier transforms as two thin products).

![steps of other runtimes, in steps of ours]({plot})

{table(head, lines)}

*ours*: the step from C. *Python*: what `stream.push` takes more; at most 3 µs a stream is the goal (left out where a
step takes over {1e6 * SHORT:.0f} µs, in whose noise it drowns). Peers are called from Python in the cheapest way that
they offer, which is a few microseconds of their steps: see "one number", the Relu of one number. Window mode (sww, kws)
shall take 1.5 times its share of a window's multiply-adds; peers run the whole window again.

## Where a ratio is not reached

{chr(10).join(why(every)) or "Nowhere."}

## Every peer

Microseconds a step, and in brackets how much of that ours takes. –: it cannot run the model, for the reasons below.

{table(["workload", *names], [peer_row(found, names) for found in every])}

## Ours beside ours

{table(["workload", "beside", "ratio", "to reach", ""], own_rows(every, rows))}

Nets with strides, pushed one frame at a time: the push that completes a stride does the work.

{table(["workload", "phases", "mean", "worst", "worst / mean"], phase_rows(every))}

## Why a peer has no figure

{chr(10).join(reasons(every))}
{NOTES}{notes}"""


def draw(kept: dict[str, Any], path: Path) -> None:
    """The plot: each peer's step in steps of ours. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows, top = kept["rows"], top_of(kept["machine"])
    every = [f for f in (figures(row, rows, top) for row in rows) if f.ours is not None]
    names = peers(every)
    colours = plt.colormaps["tab10"]
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(every) + 1.4))
    for k, name in enumerate(names):
        points = [(e, f, y) for y, f in enumerate(every) for e in f.entries if e.name == name and e.rounds]
        if points:
            shown = [median(e.rounds) / f.ours for e, f, _ in points if f.ours]
            marker = "ovs^Dp*XPh"[k % 10]
            axes.scatter(
                shown, [y for *_, y in points], s=26, color=colours(k % 10), marker=marker, label=name, zorder=3
            )
    axes.scatter([(f.roofline or 0) / (f.ours or 1) for f in every], range(len(every)), s=60, color="black", marker="|",
                 label="roofline")  # fmt: skip
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(every)), [f.name for f in every])
    axes.set_ylim(len(every) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.4)
    axes.set_xlabel("time of a step, in steps of runnel (from C)")
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.45, -0.08))
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def notes_of(text: str) -> str:
    """What somebody wrote on the page."""
    return text.split(NOTES, 1)[1] if NOTES in text else "\n"


def write(kept: dict[str, Any], path: Path) -> None:
    """The page, and beside it the plot of the same name; without matplotlib the plot stays as it is."""
    plot = path.with_suffix(".png")
    try:
        draw(kept, plot)
    except ImportError:
        print("no plot: pip install matplotlib")
    before = path.read_text("utf-8") if path.exists() else ""
    path.write_text(page(kept, notes_of(before), plot.name), "utf-8")
