"""The bench itself, on small models: what is right, wrong, unwilling or absent, and what becomes of rows. No times."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from runnel.tools.benchmark import __main__ as command
from runnel.tools.benchmark import driver, nets, page
from runnel.tools.benchmark.case import Answers, load_case
from runnel.tools.benchmark.contenders.base import CannotRun, Run
from runnel.tools.benchmark.figures import best_peer, figures, ratios
from runnel.tools.benchmark.harness import Entry, Settings, compete
from runnel.tools.benchmark.prepare import prepare
from runnel.tools.benchmark.roofline import Roofline
from runnel.tools.benchmark.worker import error_of
from runnel.tools.benchmark.workloads import WORKLOADS, Workload

SHORT = Settings(rounds=2, seconds=0.001)
TOP = Roofline(1e9, 4e9, {1000: 1e9, 100_000: 5e8})
SMALL = Workload(
    "small", lambda: nets.tcn(8, 3), hop=2, options={"hop": 2}, step=lambda: nets.tcn_step(2, 1, 8, 3), target=0.5,
    scale=1.0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _driver(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["RUNNEL_BENCH_DRIVER"] = str(driver.build(tmp_path_factory.mktemp("driver")))


def stepped(step: bytes, inputs: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs y of a step made by hand, called again and again."""
    session = ort.InferenceSession(step, providers=["CPUExecutionProvider"])
    given = [v for v in session.get_inputs() if v.name != "x"]
    made = [o.name for o in session.get_outputs() if o.name != "y"]
    states = {v.name: np.zeros(v.shape, np.float32) for v in given}
    results = []
    for x in inputs:
        y, *values = session.run(["y", *made], {"x": x} | states)
        states = {v.name: value for v, value in zip(given, values)}
        results.append(y)
    return results


@pytest.mark.parametrize(
    ("whole", "step", "shape", "axis", "hop"),
    [
        (nets.tcn(8, 3), nets.tcn_step(4, 1, 8, 3), (1, 8, 32), 2, 4),
        (nets.recurrent("GRU", 5, 7), nets.recurrent_step("GRU", 5, 7), (9, 1, 5), 0, 1),
        (nets.recurrent("LSTM", 5, 7), nets.recurrent_step("LSTM", 5, 7), (9, 1, 5), 0, 1),
        (nets.soundstream(4, (2, 4), 6), nets.soundstream(4, (2, 4), 6, 16), (1, 1, 160), 2, 16),
        (nets.movinet(size=32, head=(24, 16, 5)), nets.movinet(True, 32, (24, 16, 5)), (1, 3, 7, 32, 32), 2, 1),
    ],
    ids=["tcn", "gru", "lstm", "soundstream", "movinet"],
)
def test_steps_by_hand_are_the_whole_network(
    whole: bytes, step: bytes, shape: tuple[int, ...], axis: int, hop: int
) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = ort.InferenceSession(whole, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    got = stepped(step, np.split(x, shape[axis] // hop, axis))
    along = next((i for i, (a, b) in enumerate(zip(y.shape, got[0].shape)) if a != b), 0)
    np.testing.assert_allclose(np.concatenate(got, along), y, atol=2e-5 * np.abs(y).max())
    assert np.std(y) > 1e-3


def test_contenders_are_right_wrong_unwilling_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "__init__.py").write_text("from fake_runtimes import CONTENDERS\n")
    (tmp_path / "fake" / "runtimes.py").write_text("from fake_runtimes import CONTENDERS\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ['PYTHONPATH']}")
    case, _ = prepare(SMALL, tmp_path / "case")
    found = {e.name: e for e in compete(case, SHORT, ["native", "ort", "fake.runtimes"])}
    for name in ("runnel", "runnel, Python", "onnxruntime, window", "onnxruntime, states", "onnxruntime, bound"):
        assert (found[name].verdict, len(found[name].rounds)) == ("right", 2), found[name]
    told = {name: (e.verdict, e.reason) for name, e in found.items()}
    assert told["wrong"] == ("wrong", "") and found["wrong"].error == pytest.approx(10, rel=1e-3)
    assert told["late"][0] == "wrong"
    assert told["unwilling"] == ("cannot", "it has no such op")
    assert told["faulty"][0] == "cannot" and "a fault of its own" in told["faulty"][1]
    assert told["missing"] == ("absent", "pip install no-package-has-this-name")
    assert told["ending"] == ("cannot", "ends the process (code 3)")
    assert told["ending later"] == ("cannot", "while it was timed: ends the process (code 4)")
    assert told["right"] == ("right", "") and len(found["right"].rounds) == 2  # it entered again, twice
    assert not any(
        found[name].rounds for name in ("wrong", "late", "unwilling", "faulty", "missing", "ending", "ending later")
    )


def test_a_runtime_that_never_gets_ready_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "__init__.py").touch()
    lines = ["import time", "from runnel.tools.benchmark.contenders.base import Contender"]
    lines += ["CONTENDERS = [Contender('sleeping', 'numpy', lambda case: time.sleep(600))]"]
    (tmp_path / "slow" / "runtimes.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    case, _ = prepare(SMALL, tmp_path / "case")
    (sleeping,) = compete(case, Settings(2, 0.001, patience=2), ["slow.runtimes"])
    assert (sleeping.verdict, sleeping.reason, sleeping.rounds) == ("cannot", "does not answer for 2 s", [])


@pytest.mark.parametrize("lanes", [1, 3])
def test_our_step_and_the_peers_take_the_same_streams(tmp_path: Path, lanes: int) -> None:
    workload = Workload(
        "gru", lambda: nets.recurrent("GRU", 5, 7), lanes=lanes, batch_axis=1, scale=1.0,
        step=lambda: nets.recurrent_step("GRU", 5, 7, lanes),
    )  # fmt: skip
    case, _ = prepare(workload, tmp_path)
    assert case.steps()[0].shape == (1, lanes, 5)
    assert load_case(tmp_path) == case
    found = {e.name: e.verdict for e in compete(case, SHORT, ["native", "ort"])}
    assert found.pop("onnxruntime, window") == "cannot"
    assert set(found.values()) == {"right"}


def test_phases_of_a_net_with_strides(tmp_path: Path) -> None:
    workload = Workload("strided", lambda: nets.soundstream(4, (2, 4), 6), hop=8, scale=1.0)
    case, _ = prepare(workload, tmp_path)
    ours = compete(case, SHORT, ["native"])[0]
    assert case.period == len(ours.phases) == 8
    assert max(ours.phases) == ours.phases[7]  # the push that ends a frame of the output does most of the work


def test_errors_are_counted_from_the_right_frame() -> None:
    wanted = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert error_of(wanted[2:], wanted, 2, 0.1) == 0
    assert error_of(wanted[:3], wanted, -1, 0.1) == pytest.approx(2 / 11 / 0.1)
    assert error_of(np.full_like(wanted, np.nan), wanted, 0, 0.1) == np.inf
    with pytest.raises(CannotRun, match="too few"):
        error_of(wanted, wanted, 6, 0.1)
    with pytest.raises(CannotRun, match="frames of"):
        error_of(wanted[:, :1], wanted, 0, 0.1)
    codes = np.zeros((50, 2), np.int8)
    other = codes.copy()
    other[:2, 0] = [2, 3]  # of 100 codes one is more than 2 away: a fifth of the share that is allowed
    assert error_of(other, codes, 0, 0.1) == pytest.approx(0.2)


@pytest.mark.parametrize(("step", "seconds", "steps"), [(1.0, 0.05, 1), (0.1, 0.05, 3), (1e-6, 0.001, 1203)])
def test_slow_steps_are_timed_less_often(step: float, seconds: float, steps: int) -> None:
    class Fixed(Run):
        made = 0

        def answers(self) -> Answers:
            return {}

        def time(self, blocks: int, steps: int) -> list[float]:
            self.made += blocks * steps
            return [step] * blocks

    run = Fixed()
    assert set(run.turn(seconds)) == {step}
    assert run.made == steps


def test_ratios_are_those_of_the_same_round() -> None:
    ours = Entry("runnel", "", verdict="right", rounds=[1.0, 4.0, 3.0])
    slow = Entry("slow", "p", verdict="right", rounds=[4.0, 8.0, 3.0])
    fast = Entry("fast", "p", verdict="right", rounds=[2.0, 2.0, 9.0])
    assert ratios(ours, slow) == (0.5, 0.25, 1.0)
    assert best_peer([ours, slow, fast, Entry("wrong", "p", verdict="wrong")]) is fast
    assert best_peer([ours]) is None


def row(name: str, ours: list[float], peer: list[float], **more: object) -> dict[str, object]:
    entries = [Entry("runnel", "", rounds=ours), Entry("runnel, Python", "", rounds=[o + 2e-6 for o in ours]),
               Entry("peer", "p", rounds=peer)]  # fmt: skip
    facts = {"name": name, "kind": "stream", "hop": 1, "lanes": 1, "codes": False, "target": None, "of": "",
             "own_target": None, "macs": 1000.0, "macs_of_window": None, "weights_bytes": 400}  # fmt: skip
    return facts | {"entries": [vars(e) for e in entries]} | more


def test_goals_of_a_row() -> None:
    one = row("one", [10e-6, 10e-6], [40e-6, 40e-6], target=0.2)
    many = row("many", [40e-6, 40e-6], [80e-6, 80e-6], lanes=8, of="one", own_target=0.6)
    window = row("window", [10e-6], [50e-6], kind="window", macs=100.0, macs_of_window=1000.0)
    thinner = row("thinner", [10e-6], [40e-6]) | {"done": {"macs": 500.0, "weights_bytes": 100}}
    rows = [one, many, window, thinner]
    found = figures(one, rows, TOP)
    assert found.best is not None and (found.best.name, found.ratio) == ("peer", 0.25)
    assert found.roofline == pytest.approx(1e-6)  # 1000 multiply-adds at 1e9 a second; reading 400 bytes takes 0.4 µs
    assert [(g.what, g.limit, g.reached) for g in found.goals] == [
        ("best peer", 0.2, False), ("3 µs of Python", 1.0, True),
    ]  # fmt: skip
    own = figures(many, rows, TOP).goals[0]
    assert (own.what, own.ratio, own.reached) == ("our one", pytest.approx(0.5), True)
    least = figures(many, rows, TOP).least
    assert least == pytest.approx(1e-6 / 8 / 10e-6)
    assert figures(thinner, rows, TOP).roofline == pytest.approx(0.5e-6)  # what our plan does, where that is less
    assert figures(window, rows, TOP).goals[0].limit == pytest.approx(0.15)
    assert figures({"name": "x", "fault": "refused"}, rows, TOP).fault == "refused"


def test_the_roofline_is_arithmetic_or_bytes() -> None:
    assert TOP.seconds(1000, 900, codes=False) == pytest.approx(1e-6)
    assert TOP.seconds(4000, 900, codes=True) == pytest.approx(1e-6)
    assert TOP.seconds(1000, 50_000, codes=False) == pytest.approx(1e-4)
    assert TOP.better(Roofline(2e9, 1e9, {1000: 5e8, 100_000: 6e8})) == Roofline(2e9, 4e9, {1000: 1e9, 100_000: 6e8})


def test_the_page_says_what_the_rows_say(tmp_path: Path) -> None:
    one = row("one", [10e-6, 10e-6], [40e-6, 40e-6], target=0.2)
    many = row("many", [40e-6, 40e-6], [80e-6, 80e-6], lanes=8, of="one", own_target=0.4)
    refused = {**row("refused", [1e-6], [1e-6]), "fault": "refused, an op does not stream", "entries": []}
    for entry in one["entries"][:1]:  # type: ignore[index]
        entry["phases"] = [1e-6, 3e-6]
    told = [Entry("lame", "q", verdict="wrong", error=7.0), Entry("shy", "r", verdict="absent", reason="pip install r")]
    one["entries"] += [vars(e) for e in told]  # type: ignore[operator]
    machine = {"machine": "m", "cpu": "c", "when": "today", "settings": {"rounds": 2}, "roofline": TOP.to_dict()}
    kept = json.loads(json.dumps({"machine": machine, "rows": [one, many, refused]}))
    path = tmp_path / "performance.md"
    path.write_text("# old\n" + page.NOTES + "\nWhat somebody found out.\n")
    page.write(kept, path)
    text = path.read_text()
    assert (
        "| one | 0.001 | 0 | 1.00 | 10 % | 10.0 | +2.0 | peer, 40.0 | 0.250 [0.250 … 0.250] | 0.200 | **no** |" in text
    )
    assert "- **one**: 0.250, not 0.200. Our step is at 10 % of the roofline." in text
    assert "| many | our one for each stream | 0.500 | 0.40 | **no** |" in text
    told = "- **many** beside our one: 0.500, not 0.40. The roofline is 0.01 of it for each stream, and the step at 2 %"
    assert told in text
    assert "| one | 2 | 2.00 | 3.00 | 1.5 |" in text
    assert "| one | 40.0 (0.25) | **wrong** |  |" in text
    assert "- **lame**: wrong numbers, 7 times what is allowed (one)" in text
    assert "- **shy**: pip install r (one)" in text
    assert "refused, an op does not stream" in text
    assert text.endswith(page.NOTES + "\nWhat somebody found out.\n")
    again = text
    page.write(kept, path)
    assert path.read_text() == again


def test_the_roofline_tells_what_cannot_be_reached() -> None:
    near = figures(row("near", [1e-6], [2e-6], target=0.1, macs=900.0), [], TOP)
    assert "The roofline itself is 0.45 of peer's step" in page.why([near])[0]


def test_the_command_keeps_raw_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--quick", "--only", "gru 32-64", "--folder", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert kept["machine"]["roofline"]["float32"] > 1e8
    assert kept["rows"][0]["done"]["macs"] == pytest.approx(kept["rows"][0]["macs"], rel=0.01)
    (told,) = kept["rows"]
    assert told["macs"] == 3 * 64 * (32 + 64)
    assert told["weights_bytes"] >= 4 * 3 * 64 * (32 + 64)
    ours = told["entries"][0]
    assert (ours["name"], ours["verdict"], len(ours["rounds"])) == ("runnel", "right", 3)
    assert all(seconds > 0 for seconds in ours["rounds"])
    absent = [e for e in told["entries"] if e["verdict"] == "absent"]
    assert all(e["reason"] == f"pip install {e['package']}" for e in absent)
    assert "roofline" in capsys.readouterr().out


def test_a_model_that_is_missing_is_a_row_without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNEL_ZOO", str(tmp_path / "nowhere"))
    sww = next(w for w in WORKLOADS if w.name == "sww")
    told = command.bench(sww, tmp_path, SHORT)
    assert "nowhere/mlperf-tiny/sww_fp32.onnx; name the folder" in told["fault"] and "entries" not in told


def test_the_page_and_its_rows_lie_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quick run leaves the page of a whole one alone; other rows are kept."""
    monkeypatch.setattr(command, "bench", lambda workload, *_: row(workload.name, [1e-6, 2.00004e-6], [3e-6, 4e-6]))
    monkeypatch.setattr(command.roofline, "measure", lambda *_: TOP)
    monkeypatch.setattr(page, "draw", lambda *_: None)
    made, quick = tmp_path / "docs" / "performance.md", tmp_path / "bench" / "performance.md"
    made.parent.mkdir()
    words = ["--folder", str(tmp_path / "bench"), "--page", str(made)]
    assert command.main([*words, "--only", "gru 32-64,kws int8"]) == 0
    text, rows = made.read_text(), made.with_suffix(".json").read_text()
    assert command.main([*words, "--only", "lstm 32-64", "--quick"]) == 0
    assert (made.read_text(), made.with_suffix(".json").read_text()) == (text, rows)
    assert "lstm 32-64" in quick.read_text()
    assert command.main([*words, "--only", "lstm 32-64"]) == 0
    names = [r["name"] for r in command.read(made.with_suffix(".json"))["rows"]]
    assert names == ["gru 32-64", "lstm 32-64", "kws int8"]
    assert command.read(made.with_suffix(".json"))["rows"][0]["entries"][0]["rounds"] == [1e-6, 2e-6]
    made.write_text("")
    assert command.main(["--keep", *words]) == 0
    assert all(name in made.read_text() for name in names)


def test_rows_of_earlier_runs_are_kept_until_they_are_measured_again() -> None:
    machine = {"cpu": "c", "when": "before", "roofline": TOP.to_dict()}
    later = machine | {"when": "now", "roofline": Roofline(2e9, 1e9, {1000: 5e8, 100_000: 6e8}).to_dict()}
    before = json.loads(json.dumps({"machine": machine, "rows": [row("sww", [1.0], [2.0]), row("kws", [3.0], [4.0])]}))
    now = {"machine": later, "rows": [row("tcn hop 1", [5.0], [6.0]), row("kws", [7.0], [8.0])]}
    both = command.merged(before, now)
    assert [(r["name"], r["entries"][0]["rounds"]) for r in both["rows"]] == [
        ("tcn hop 1", [5.0]), ("sww", [1.0]), ("kws", [7.0]),
    ]  # fmt: skip
    assert both["machine"]["when"] == "now"
    assert (both["machine"]["roofline"]["float32"], both["machine"]["roofline"]["int8"]) == (2e9, 4e9)
    assert command.merged({"machine": machine | {"cpu": "another"}, "rows": before["rows"]}, now) == now
    assert command.merged(None, now) == now


def test_workloads_have_names_of_their_own() -> None:
    names = [w.name for w in WORKLOADS]
    assert len(set(names)) == len(names)
    assert {w.of for w in WORKLOADS} - {""} <= set(names)
